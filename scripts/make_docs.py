"""Write the docs that the code already says: docs/reference.md and the map of files in README.md.

    python scripts/make_docs.py            write them
    python scripts/make_docs.py --check    fail where what is written is stale

The reference comes from the commands, their settings and the errors; the map from the first line of each file's
own docstring or comment, and from `ABOUT` for files that cannot hold one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from whit import errors  # noqa: E402
from whit.cli import COMMANDS, Command  # noqa: E402

BEGIN, END = "<!-- map: written by scripts/make_docs.py -->", "<!-- end of map -->"

# Files that cannot say what they are.
ABOUT = {
    "benchmarks/baking-examples.jsonl": "messages of spam and none, written for baking.py",
    "benchmarks/baking-guide.md": "the instruction that baking.py bakes",
    "benchmarks/results/reward.jsonl": "what each run of the experiment by reward gave, for docs/experiment.md",
    "docs/experiment.svg": "its figure",
    ".gitignore": "what git leaves alone",
    ".ci/run": "what CI runs on a clean checkout: missing system packages, a PostgreSQL, then `make check`",
    "LICENSE": "Apache License 2.0",
    "engine/Cargo.lock": "the engine's dependencies: none but itself",
    "engine/Cargo.toml": "how the engine is built",
    "examples/sensitive-later.jsonl": "the same with other templates and terms, for judging",
    "examples/sensitive.jsonl": "texts with marked names, places and health, and plain ones, made for this project",
    "examples/tickets-later.jsonl": "100 tickets that came in later, for `whit eval`",
    "examples/tickets.jsonl": "440 support tickets with the wanted JSON, written for this project",
    "models/tokenizer.json": "the tokenizer of eeny and meeny",
    "src/whit/bases/builtin/eeny.gguf": "eeny: 1 M parameters in int8",
    "src/whit/bases/builtin/meeny.gguf": "meeny: 5.8 M parameters, ternary",
    "src/whit/engine/wasm/SHA256SUMS": "hashes of the engine's builds",
    "src/whit/engine/wasm/relaxed.wasm": "the engine for machines with relaxed SIMD",
    "src/whit/engine/wasm/simd.wasm": "the engine for every machine with SIMD128",
    "src/whit/evaluation/plain.txt": "plain text on which forgetting is measured",
    "src/whit/evaluation/templates/report.css": "how the report looks",
    "src/whit/evaluation/templates/report.html.jinja": "the page of the report",
    "src/whit/routing/detection/names/adapter_config.json": "the settings of the adapter that marks names, for PEFT",
    "src/whit/routing/detection/names/adapter_model.safetensors": "its numbers",
    "src/whit/routing/detection/names/card.json": "what is known of it",
    "src/whit/routing/tiers.schema.json": "what may stand in a tiers.toml, for editors: `whit route schema`",
    "web/package-lock.json": "the version and hash of TypeScript",
    "web/package.json": "what building the page needs: TypeScript",
    "web/tsconfig.json": "how the page is type-checked and compiled",
    "web/static/icon.svg": "the page's icon",
    "web/static/index.html": "the page: its views and its policy",
    "src/whit/adapters/calibration.txt": "the text whose outputs make the basis",
    "src/whit/py.typed": "says that the package carries its types",
    "pyproject.toml": "the package, its dependencies, and the settings of ruff, mypy and pytest",
    "README.md": "this page",
}


def reference() -> str:
    """docs/reference.md."""
    parts = [
        "# Reference\n\nWritten by `scripts/make_docs.py` from the code; `make docs` writes it anew.\n",
        "Any option may stand in a `whit.toml` beside the data (or in the current folder), under a table of the"
        " command's name; the command line beats the file, and the file beats the default. A flag that is on is"
        ' taken back with its `--no-` form.\n\n```toml\n[train]\nbase = "smollm2"\n'
        'instruction = "Sort the support ticket. Answer with JSON: product, issue, urgency."\nepochs = 3\n\n'
        "[run]\nmax-tokens = 40\n```\n",
        "Every command takes `--json` (see [json.md](json.md)), `--config FILE` (options from this file) and `--help`."
        " The answer goes to stdout, everything else to stderr.\n",
    ]
    parts += [_command(command) for command in COMMANDS]
    parts.append(
        "## whit completion\n\n```\nwhit completion bash >> ~/.bashrc\n```\n\nPrints the completion script of bash,"
        " zsh or fish.\n"
    )
    parts.append(_exit_codes())
    return "\n".join(parts)


def _command(command: Command) -> str:
    hints = get_type_hints(command.settings)
    lines = [f"## whit {command.name}", "", "```", command.example, "```", "", command.help, ""]
    listed = [part for part in fields(command.settings) if part.metadata["positional"]]
    if listed:
        lines += ["| argument | what |", "| --- | --- |"]
        for part in listed:
            name = f"[{part.name.upper()}]" if part.metadata.get("optional") else part.name.upper()
            lines.append(f"| `{name}` | {_cell(part.metadata['help'])} |")
        lines.append("")
    listed = [part for part in fields(command.settings) if not part.metadata["positional"]]
    if listed:
        lines += ["| option | default | what |", "| --- | --- | --- |"]
        lines += [_option(part, hints[part.name]) for part in listed]
        lines.append("")
    return "\n".join(lines)


def _option(part: Field[Any], hint: Any) -> str:
    about, flag = part.metadata, "--" + part.name.replace("_", "-")
    takes = ""
    if about.get("choices"):
        takes = " " + "\\|".join(about["choices"])
    elif hint is not bool:
        takes = " " + _kind(hint)
    if about.get("many"):
        takes += " …"
    default = part.default
    if default in (None, (), MISSING):
        shown = ""
    elif isinstance(default, bool):
        shown = "on" if default else "off"
    else:
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        shown = f"`{shown}`"
    least, most = about.get("least"), about.get("most")
    limits = f" From {least} to {most}." if most is not None else f" At least {least}." if least is not None else ""
    return f"| `{flag}{takes}` | {shown} | {_cell(about['help'])}{limits} |"


def _kind(hint: Any) -> str:
    text = str(hint)
    return "N" if "int" in text else "NUMBER" if "float" in text else "PATH" if "Path" in text else "TEXT"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("'*", "`'*").replace("*'", "*'`")


def _exit_codes() -> str:
    from whit.evaluation.verdict import Verdict

    kinds: list[type[errors.WhitError]] = [errors.WhitError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    said = {0: "done; of `whit eval`: the verdict is `helped`", 141: "nobody reads stdout any more"}
    said[143] = "SIGTERM ended training; what was done so far is saved"
    for kind in kinds:
        if "exit_code" in vars(kind):
            text = " ".join((kind.__doc__ or "").split())
            said[kind.exit_code] = f"`{kind.__name__}`: {text[0].lower()}{text[1:].rstrip('.')}"
    for verdict in Verdict:
        said.setdefault(verdict.exit_code, f"of `whit eval`: the verdict is `{verdict}`")
    lines = ["## Exit codes", "", "| code | cause |", "| --- | --- |"]
    lines += [f"| {code} | {cause} |" for code, cause in sorted(said.items())]
    drawn = re.search(r"(?:^    .*\n)+", errors.__doc__ or "", re.M)
    assert drawn is not None, "the tree of errors is gone from whit.errors"
    tree = "\n".join(line[4:] for line in drawn.group().splitlines())
    return "\n".join([*lines, "", "The errors as Python sees them, in `whit.errors`:", "", "```", tree, "```", ""])


def file_map() -> str:
    """A line for every file that git knows, by folder. Raises `SystemExit` naming files that say nothing."""
    named = subprocess.run(
        ["git", "ls-files", "--cached", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout.split("\0")
    groups: dict[str, list[str]] = {}
    silent = []
    for name in sorted(filter(None, named)):
        path = ROOT / name
        if not path.is_file() or (path.name == "__init__.py" and path.stat().st_size == 0):
            continue
        about = ABOUT.get(name) or first_line(path) or _by_place(name)
        if not about:
            silent.append(name)
            continue
        groups.setdefault(_group(name), []).append(f"| `{name}` | {about} |")
    if silent:
        raise SystemExit("these files do not say what they are in their first line: " + ", ".join(silent))
    blocks = []
    for group in sorted(groups, key=lambda group: (group.count("/") == 0 and group != ".", group)):
        lines = ["| file | what |", "| --- | --- |", *groups[group]]
        title = "at the top" if group == "." else f"{group}/"
        blocks.append(f"<details><summary><code>{title}</code> ({len(lines) - 2})</summary>\n")
        blocks += ["\n".join(lines), "\n</details>\n"]
    return "\n".join(blocks)


def _by_place(name: str) -> str:
    """What a file is from where it lies: a test mirrors its module, and each own base has a manifest."""
    mirrored = re.fullmatch(r"tests/(?:(.+)/)?test_(.+)\.py", name)
    if mirrored:
        return f"tests of `whit.{'.'.join(filter(None, [*(mirrored[1] or '').split('/'), mirrored[2]]))}`"
    if name.startswith("src/whit/bundle/page/"):
        return "the page, built from `web/`"
    made = re.fullmatch(r"models/(\w+)/(.+)", name)
    if made:
        return (
            f"{made[1]}: {'what it learned from, with licences and hashes' if made[2] == 'manifest.json' else made[2]}"
        )
    return ""


def _group(name: str) -> str:
    parts = name.split("/")[:-1]
    return "/".join(parts[:3] if parts[:1] == ["src"] else parts[:1]) or "."


def first_line(path: Path) -> str:
    """What a file says it is: its docstring, heading or first comment, one sentence at most."""
    try:
        text = path.read_text("utf-8")[:4000]
    except UnicodeDecodeError:
        return ""
    if path.suffix == ".py" or text.startswith("#!/usr/bin/env python"):
        found = re.search(r'^(?:#[^\n]*\n|\s*\n)*"""(.+?)(?:\n\s*\n|""")', text, re.S)
    elif text.startswith("/*"):
        found = re.search(r"^/\*\*?\s*(?:\* )?(.+?)(?:\n \*\s*\n|\s*\*/)", text, re.S)
    elif path.suffix in (".rs", ".ts", ".js"):
        found = re.search(r"^//!? ?(.+?)(?:\n//!? ?\n|\n[^/]|\Z)", text, re.S | re.M)
    elif path.suffix == ".md":
        found = re.search(r"^# (.+)$", text, re.M)
    else:
        found = re.search(r"^(?:#![^\n]*\n)?# ?(.+?)(?:\n#? *\n|\n[^#]|\Z)", text, re.S)
    if found is None:
        return ""
    said = " ".join(re.sub(r"\n\s*(?://!?|#|\*)?\s*", " ", found.group(1)).split())
    sentence = re.match(r"(.+?[.?!])(?: |$)", said)
    return (sentence.group(1) if sentence else said).rstrip(".").replace("|", "\\|")


def written() -> dict[Path, str]:
    """What each generated file should hold."""
    readme = (ROOT / "README.md").read_text("utf-8")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"README.md has no place for the map: {BEGIN} … {END}")
    return {
        ROOT / "docs" / "reference.md": reference(),
        ROOT / "README.md": f"{before}{BEGIN}\n\n{file_map()}\n{END}{after}",
    }


def main(check: bool) -> int:
    """Write, or compare; the exit code."""
    stale = []
    for path, content in written().items():
        if not path.is_file() or path.read_text("utf-8") != content:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(content, "utf-8")
                print(f"wrote {stale[-1]}")
    if check and stale:
        print(f"stale: {', '.join(stale)}; run `make docs` and commit what it writes", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
