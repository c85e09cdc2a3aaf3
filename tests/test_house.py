"""The house itself: docs that are true, installs without CUDA, nothing of anybody's machine in the tree."""

from __future__ import annotations

import doctest
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from whit import cli
from whit.testing import write_tiny_base

ROOT = Path(__file__).resolve().parent.parent
HOWTOS = sorted((ROOT / "docs").glob("howto-*.md"), key=lambda page: "first" not in page.stem)


def load(path: str) -> ModuleType:
    """A script as a module."""
    loader = SourceFileLoader(re.sub(r"\W", "_", path), str(ROOT / path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def tracked(*patterns: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


# -- docs


def test_generated_docs_are_fresh() -> None:
    docs = load("scripts/make_docs.py")
    for path, content in docs.written().items():
        assert path.read_text("utf-8") == content, f"{path.name} is stale: make docs"


def test_the_experiments_page_has_every_run_as_it_was() -> None:
    experiment = load("benchmarks/experiment.py")
    runs, page = experiment.load(), (ROOT / "docs" / "experiment.md").read_text("utf-8")
    written = page.partition(experiment.BEGIN)[2].partition(experiment.END)[0]
    assert written.strip() == "\n".join(experiment.table(runs)), (
        "python benchmarks/experiment.py --page docs/experiment.md"
    )
    keys = [tuple(run.get(name) for name in experiment.KEY) for run in runs]
    assert len(keys) == len(set(keys))


def test_a_stale_page_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    docs = load("scripts/make_docs.py")
    page = ROOT / "docs" / "reference.md"
    monkeypatch.setattr(docs, "written", lambda: {page: page.read_text("utf-8") + "more\n"})
    assert docs.main(check=True) == 1 and "stale: docs/reference.md" in capsys.readouterr().err


def test_links_lead_somewhere() -> None:
    for page in tracked("*.md"):
        text = page.read_text("utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith(("http:", "https:", "mailto:")):
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{page.relative_to(ROOT)} links to {link}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.M)
                anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
                assert anchor in anchors, f"{page.relative_to(ROOT)} links to {link}"


def test_the_json_page_names_every_command_and_the_contract() -> None:
    from whit.verbs.common import CONTRACT

    text = (ROOT / "docs" / "json.md").read_text("utf-8")
    assert f"version **{CONTRACT}**" in text
    heads = {name for line in re.findall(r"^## (.+)$", text, re.M) for name in line.split(", ")}
    assert heads == {command.name for command in cli.COMMANDS} - {"chat"}


def commands_in(page: Path) -> list[list[str]]:
    """The `whit` commands in a page's plain fenced blocks."""
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("whit ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the how-tos have it, with a tiny base and options that make everything short."""
    folder = tmp_path_factory.mktemp("howto")
    base = write_tiny_base(folder / "base", layers=2, hidden=32, heads=2, kv_heads=1, ffn=64, context=512)
    for name in ("tickets.jsonl", "tickets-later.jsonl"):
        rows = [json.loads(line) for line in (ROOT / "examples" / name).read_text("utf-8").splitlines()[:60]]
        lines = [json.dumps({**row, "customer": f"customer-{at // 3}"}) for at, row in enumerate(rows)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    inbox = [json.dumps({"prompt": f"parcel {at} has not come, who can tell me more?"}) for at in range(6)]
    (folder / "inbox.jsonl").write_text("\n".join(inbox) + "\n", encoding="utf-8")
    (folder / "whit.toml").write_text(
        f"[train]\nbase = '{base}'\nepochs = 0.2\nevaluations = 1\nvalidation-rows = 4\nmax-tokens = 3\nlimit = 60\n"
        "shots = [1]\ntest = 0.1\n[eval]\nlimit = 6\n[run]\nmax-tokens = 3\n"
    )
    return folder


@pytest.mark.parametrize("page", HOWTOS, ids=lambda page: page.stem)
def test_commands_of_the_howtos_work(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for words in commands_in(page):
        # A page may begin where the first one ended: with an adapter in tickets/.
        if "tickets" in words and words[0] != "train" and not (place / "tickets").exists():
            assert run(monkeypatch, ["train", "tickets.jsonl", "--out", "tickets"]) == 0
        code = run(monkeypatch, words)
        assert code in ((0, 10, 11, 12) if words[0] == "eval" else (0,)), (words, code)


def run(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    """A command's exit code."""
    monkeypatch.setattr(sys, "argv", ["whit", *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_every_whit_command_in_the_docs_parses() -> None:
    group = cli.build()
    found = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for words in commands_in(page):
            if words and words[0] in group.commands:
                group.commands[words[0]].make_context(words[0], list(words[1:]))
                found += 1
    assert found >= 15


def test_every_option_that_the_docs_name_is_there() -> None:
    parameters = [part for command in cli.build().commands.values() for part in command.params]
    known = {flag for part in parameters for flag in (*part.opts, *part.secondary_opts)} | {"--help", "--version"}
    for script in tracked("benchmarks/*.py", "models/*.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', script.read_text("utf-8")))
    known |= {"--no-", "--lora"}  # how every switch is taken back; llama.cpp's own
    for page in (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))):
        if page.name != "log.md":  # what was tried may be gone
            spans = " ".join(re.findall(r"`(--[a-z][^`]*)`", page.read_text("utf-8")))
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", spans)) <= known, page.name


def test_the_python_howto_and_docstrings_run() -> None:
    found = doctest.testfile(str(ROOT / "docs" / "howto-python.md"), module_relative=False)
    assert found.failed == 0 and found.attempted >= 10
    import whit
    from whit import api
    from whit.adapters import adapter
    from whit.bases import load

    for module, least in ((api, 10), (whit, 7), (load, 4), (adapter, 9)):
        found = doctest.testmod(module)
        assert found.failed == 0 and found.attempted >= least, module.__name__
        assert "+SKIP" not in Path(str(module.__file__)).read_text("utf-8")


def test_help_in_python_lists_the_options() -> None:
    import inspect

    import whit
    from whit.settings import TrainSettings

    known = inspect.signature(whit.train).parameters
    assert next(iter(known)) == "data" and {part.name for part in fields(TrainSettings)} <= set(known)
    assert known["epochs"].kind is inspect.Parameter.KEYWORD_ONLY and known["shots"].default == (2, 4, 8)
    assert "more" not in known and "learning_rate: Peak learning rate" in str(whit.train.__doc__)


def test_the_public_names_are_these() -> None:
    import whit

    assert set(whit.__all__) == {
        "Adapter", "Base", "WhitError", "bake", "bind", "check", "compare", "evaluate", "export", "list_bases",
        "load_base", "pull", "run", "show", "sweep", "train",
    }  # fmt: skip
    for name in whit.__all__:
        assert getattr(whit, name).__doc__, name


# -- the tree


def test_no_path_of_a_machine_and_no_registry_is_in_the_tree() -> None:
    # Spelt in parts, so that this file does not find itself.
    words = ["/" + "root/", "/" + "home/", "/" + "work/", "files." + "pythonhosted", "download." + "pytorch.org"]
    for path in tracked():
        if path.suffix in (".wasm", ".gguf"):
            continue
        text = path.read_text("utf-8", errors="replace")
        for word in words:
            assert word not in text, f"{path.relative_to(ROOT)} names {word}"


def test_files_are_about_one_thing() -> None:
    for path in tracked("src/*.py", "scripts/*", "tests/*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 600, path


# -- installing


def test_pins_have_hashes_and_name_no_host() -> None:
    for path in tracked("requirements/*.txt"):
        text = path.read_text("utf-8")
        entries = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", text, re.M | re.S)
        assert entries and all("==" in entry and "--hash=sha256:" in entry for entry in entries), path
        assert "://" not in text and "--index" not in text and "--find-links" not in text
        names = {re.split("==", entry)[0] for entry in entries}
        assert not any(name == "torch" or name.startswith(("nvidia", "cuda", "triton")) for name in names)


def test_what_the_package_needs_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = {
        line.split("==")[0]
        for name in ("run", "dev", "bench")
        for line in (ROOT / "requirements" / f"{name}.txt").read_text("utf-8").splitlines()
        if "==" in line
    }
    wanted = [*project["dependencies"], *(each for some in project["optional-dependencies"].values() for each in some)]
    missing = {re.split(r"[\s<>=!~;\[]", each)[0].lower() for each in wanted} - pinned
    assert missing == {"torch"}, "run scripts/lock"


def report(*needs: str) -> dict[str, object]:
    """pip's report of one package that needs these."""
    return {"install": [{"metadata": {"name": "torch", "requires_dist": list(needs)}}]}


def test_a_build_that_needs_cuda_is_known_by_its_dependencies() -> None:
    install = load("scripts/install")
    assert install.needs_cuda(report("filelock", "nvidia-cudnn-cu13==9; platform_system == 'Linux'"))
    assert install.needs_cuda(report("cuda-toolkit[nvrtc]==13.0"))
    assert not install.needs_cuda(report("filelock", "sympy", 'opt-einsum; extra == "opt-einsum"'))
    assert not install.needs_cuda({"install": [{"metadata": {"name": "torch"}}]})


@pytest.mark.parametrize(
    ("gpu", "seen", "cuda_by_default", "expected"),
    [
        (None, False, False, "pip plain"),  # the index's own build has no CUDA: take it
        (None, False, True, "uv cpu"),  # it has: take the CPU build instead
        (None, True, True, "pip cuda"),
        ("1", False, True, "pip cuda"),
        ("0", True, True, "uv cpu"),
    ],
)
def test_torchs_build_follows_the_machine(
    monkeypatch: pytest.MonkeyPatch, gpu: str | None, seen: bool, cuda_by_default: bool, expected: str
) -> None:
    install = load("scripts/install")
    monkeypatch.setattr(install.sys, "platform", "linux")
    monkeypatch.setattr(install, "PYTHON", Path(sys.executable).with_name("no-such-python"))
    monkeypatch.setattr(install.subprocess, "run", lambda *a, **b: subprocess.CompletedProcess(a, 1, "", ""))
    monkeypatch.setattr(install, "has_gpu", lambda: seen)
    monkeypatch.setattr(install, "resolved", lambda _: report("nvidia-x") if cuda_by_default else report())
    done: list[str] = []
    monkeypatch.setattr(install, "pip", lambda *words: done.append(f"pip {' '.join(map(str, words))}"))
    monkeypatch.setattr(install, "run", lambda *words: done.append(" ".join(map(str, words))))
    if gpu is None:
        monkeypatch.delenv("GPU", raising=False)
    else:
        monkeypatch.setenv("GPU", gpu)
    install.torch()
    if expected == "uv cpu":
        assert "--torch-backend=cpu" in done[-1] and install.TORCH in done[-1]
    else:
        assert len(done) == 1 and install.TORCH in done[0]
        assert ("--no-deps" in done[0]) == (expected == "pip plain")


# -- figures


def test_bench_runs_the_readmes_commands_and_goes_on_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = load("scripts/bench")
    named = [part for command in bench.commands() for part in command.split() if part.endswith(".py")]
    assert len(named) > 20 and all((ROOT / name).is_file() for name in named)

    (tmp_path / "benchmarks").mkdir()
    said = "import pathlib, sys; pathlib.Path('said').open('a').write(' '.join(sys.argv) + '\\n')"
    for name, code in (("good", 0), ("bad", 3)):
        (tmp_path / "benchmarks" / f"{name}.py").write_text(f"{said}; sys.exit({code})")
    spans = ("bad.py", "good.py one", "good.py --llama PYTHON", "good.py --corpus CORPUS", "good.py one", "a.py --cuda")
    table = "\n".join(f"| a figure | `python benchmarks/{span}`, the same |" for span in spans)
    (tmp_path / "README.md").write_text(f"`python benchmarks/bad.py no`\n{bench.BEGIN}\n{table}\n{bench.END}\n")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    monkeypatch.setenv("CORPUS", "some where")
    monkeypatch.delenv("LLAMA", raising=False)
    assert bench.main([]) == 1
    ran = ["benchmarks/bad.py", "benchmarks/good.py one", "benchmarks/good.py --corpus some where"]
    assert (tmp_path / "said").read_text().splitlines() == ran
    told = capsys.readouterr().err
    for line in (
        r"failed   python benchmarks/bad.py \(exit 3", r"done     python benchmarks/good.py one \(",
        r"skipped  python benchmarks/good.py --llama PYTHON \(set LLAMA", r"skipped  python benchmarks/a.py .*NVIDIA",
    ):  # fmt: skip
        assert re.search(f"^{line}", told, re.M), line
    assert bench.main(["good.py"]) == 0 and bench.main(["nothing"]) == 2


@pytest.mark.parametrize("name", ["common", "gateway_canary", "tab"])
def test_what_benchmarks_share_says_what_it_is(name: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 3


def test_an_old_python_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install = load("scripts/install")
    monkeypatch.setattr(install, "LEAST", (99, 0))
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    assert install.main([]) == 1
    assert "needs Python 3.11 or later" in capsys.readouterr().err


def test_install_does_nothing_where_nothing_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install = load("scripts/install")
    monkeypatch.setattr(install, "VENV", tmp_path)
    monkeypatch.setattr(install, "PYTHON", Path(sys.executable))
    done: list[list[str]] = []
    monkeypatch.setattr(install, "install", done.append)
    assert install.main(["dev"]) == 0 and install.main(["dev"]) == 0 and install.main([]) == 0
    assert done == [["run", "dev"]]
    assert install.main(["dev", "bench"]) == 0 and done[-1] == ["run", "dev", "bench"]
    assert install.main(["cuda"]) == 1


def test_scripts_can_be_run() -> None:
    for path in tracked("scripts/*", ".ci/run"):
        if not path.suffix:
            assert os.access(path, os.X_OK) and path.read_text("utf-8").startswith("#!"), path
