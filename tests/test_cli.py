"""The command line as users and their scripts meet it: help, options, exit codes, stdout, completion."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whit import cli, errors
from whit.settings import TrainSettings
from whit.testing import write_rows, write_tiny_base

HEAVY = ("torch", "transformers", "numpy", "scipy", "sklearn", "peft", "gguf", "tokenizers", "datasketch", "rich")


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


Whit = Callable[..., Said]


@pytest.fixture
def whit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Whit:
    """Runs `whit` with these words, in this process."""

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["whit", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0 if code is None else 1, said.out, said.err)

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base, rows, later rows, and an adapter trained from them by the command line."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny_base(folder / "base", layers=1, hidden=32, heads=2, kv_heads=1, ffn=64)
    write_rows(folder / "rows.jsonl", 60)
    write_rows(folder / "later.jsonl", 30, seed=1)
    return folder


@pytest.fixture(scope="module")
def adapter(place: Path) -> Path:
    """The folder of a trained adapter."""
    import whit

    out = place / "adapter"
    whit.train(
        place / "rows.jsonl", base=str(place / "base"), out=out, kind="xs", epochs=1, evaluations=1, shots=(),
        instruction="card or cash?", max_tokens=3,
    )  # fmt: skip
    return out


def fresh(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """A Python process of its own."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **more)


# -- help


@pytest.mark.parametrize("command", ["", *(command.name for command in cli.COMMANDS), "completion"])
def test_help_leads_with_an_example(whit: Whit, command: str) -> None:
    said = whit(*command.split(), "--help")
    assert said.code == 0 and said.err == ""
    assert said.out.startswith(f"$ whit {command}".rstrip())
    assert said.out.index("$ whit") < said.out.index("Usage:")


def test_the_examples_are_commands_that_parse() -> None:
    import shlex

    group = cli.build()
    for command in cli.COMMANDS:
        words = shlex.split(command.example)
        assert words[:2] == ["whit", command.name]
        group.commands[command.name].make_context(command.name, words[2:])


def test_every_setting_is_an_option_with_help() -> None:
    group = cli.build()
    for command in cli.COMMANDS:
        parameters = {part.name: part for part in group.commands[command.name].params}
        for setting in fields(command.settings):
            assert setting.name in parameters, (command.name, setting.name)
            assert setting.metadata["help"].endswith("."), (command.name, setting.name)
        assert {"as_json", "config"} <= set(parameters)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['whit', 'train', '--help']\n"
        "from whit.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = fresh("-c", code)
    assert done.stderr.strip() == "[]" and "Usage: whit train" in done.stdout


def test_importing_whit_imports_nothing_heavy() -> None:
    code = (
        "import whit, sys\n"
        "for name in ('errors', 'settings', 'configuration', 'files', 'talk', 'api', 'cli', 'testing',\n"
        "             'data', 'bases', 'adapters', 'training', 'evaluation', 'verbs', 'engine'):\n"
        "    __import__('whit.' + name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = fresh("-c", code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_version_is_the_packages(whit: Whit) -> None:
    from importlib.metadata import version

    assert whit("--version").out.strip().endswith(version("whit"))


# -- options


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that the verb `train` was called with; it does nothing else."""
    from whit.verbs import personal

    calls: list[Any] = []
    monkeypatch.setattr(personal, "command", lambda settings, talk: calls.append(settings))
    return calls


def test_without_options_the_settings_are_the_defaults(whit: Whit, seen: list[Any], tmp_path: Path) -> None:
    assert whit("train", tmp_path / "rows.jsonl").code == 0
    assert seen == [TrainSettings(data=tmp_path / "rows.jsonl")]


def test_command_line_beats_file_beats_default(whit: Whit, seen: list[Any], tmp_path: Path) -> None:
    (tmp_path / "whit.toml").write_text(
        '[train]\nepochs = 3\nbatch = 3\nlearning-rate = 0.5\nbaselines = false\nresume = true\nshots = [1, 3]\n'
        'out = "made"\n[eval]\nlimit = 9\n'
    )  # fmt: skip
    data = tmp_path / "rows.jsonl"
    assert whit("train", data).code == 0
    assert whit("train", data, "--batch", 5, "--baselines", "--no-resume", "--shots", 5, "--shots", 6).code == 0
    first, second = seen
    assert (first.epochs, first.batch, first.learning_rate, first.seeds) == (3.0, 3, 0.5, 1)
    assert (first.baselines, first.resume, first.shots, first.out) == (False, True, (1, 3), tmp_path / "made")
    assert (second.epochs, second.batch, second.learning_rate) == (3.0, 5, 0.5)
    assert (second.baselines, second.resume, second.shots) == (True, False, (5, 6))


def test_a_file_of_options_may_be_named(whit: Whit, seen: list[Any], tmp_path: Path) -> None:
    (tmp_path / "whit.toml").write_text("[train]\nbatch = 3\n")
    (tmp_path / "other.toml").write_text("[train]\nseed = 7\n")
    assert whit("train", tmp_path / "rows.jsonl", "--config", tmp_path / "other.toml").code == 0
    assert seen == [TrainSettings(data=tmp_path / "rows.jsonl", seed=7)]


def test_the_current_folders_file_is_read_too(
    whit: Whit, seen: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whit.toml").write_text("[train]\nbatch = 3\n")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert whit("train", "data/rows.jsonl").code == 0
    assert seen[0].batch == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian", "x"], "'train'"),
        (["train", "x", "--instrction", "y"], "--instruction"),
        (["train", "x", "--kind", "huge"], "'xs', 'tiny', 'lora'"),
        (["train", "x", "--rank", "0"], "1<=x<=64"),
        (["train", "x", "--rank", "two"], "not a valid integer"),
        (["train"], "Missing argument 'DATA'"),
        (["completion", "cmd"], "'bash', 'zsh', 'fish'"),
    ],
)
def test_a_wrong_word_is_exit_2_and_says_which_is_right(whit: Whit, words: list[str], told: str) -> None:
    said = whit(*words)
    assert said.code == 2 and said.out == "" and told in said.err


# -- exit codes


def tree() -> list[type[errors.WhitError]]:
    """The errors of `whit.errors`."""
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.WhitError)]


@pytest.mark.parametrize("kind", tree())
def test_each_error_ends_with_its_code_and_one_line(
    whit: Whit, monkeypatch: pytest.MonkeyPatch, kind: type[errors.WhitError]
) -> None:
    from whit.verbs import bases

    def fail(settings: Any, talk: Any) -> None:
        raise kind("what happened, where, what to do")

    monkeypatch.setattr(bases, "command", fail)
    assert whit("bases") == Said(kind.exit_code, "", "whit: what happened, where, what to do\n")


def test_codes_differ_by_cause_and_leave_the_verdicts_theirs() -> None:
    from whit.evaluation.verdict import Verdict

    codes = [kind.exit_code for kind in tree() if "exit_code" in vars(kind)]
    assert len(set(codes)) == len(codes)
    assert not set(codes) & {verdict.exit_code for verdict in Verdict}
    drawn = errors.__doc__ or ""
    for kind in tree():
        line = next(line for line in drawn.splitlines() if kind.__name__ in line.split())
        assert f"exit {kind.exit_code} " in f"{line} " or "exit_code" not in vars(kind), line


def test_causes_as_they_happen(whit: Whit, place: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{nothing\n')
    (tmp_path / "scores.py").write_text("def fails(*given):\n    raise RuntimeError('on purpose')\n")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "adapter.whit").write_bytes(b"not an adapter")
    cases = {
        3: ("check", tmp_path / "absent.jsonl"),
        4: ("train", place / "rows.jsonl", "--base", tmp_path / "no-such-base"),
        5: ("show", tmp_path / "junk"),
        2: ("eval", adapter, place / "later.jsonl", "--score", "no_such_module:score"),
        7: ("eval", adapter, place / "later.jsonl", "--score", f"{tmp_path / 'scores.py'}:fails"),
    }
    for code, words in cases.items():
        said = whit(*words)
        assert said.code == code and said.out == "" and "whit: " in said.err, (words, said)
    said = whit("check", tmp_path / "broken.jsonl")
    assert said.code == 3 and "line 2" in said.err


# -- what is printed


def document(said: Said) -> Any:
    """The JSON on stdout, which holds nothing else; numbers are numbers (no NaN)."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(said.out, parse_constant=refuse)


def documented(head: str) -> set[str]:
    """The keys that docs/json.md names under a heading: of its table, or else of its text."""
    page = (Path(__file__).parents[1] / "docs" / "json.md").read_text("utf-8")
    section = page.split(f"\n## {head}\n")[1].split("\n## ")[0]
    table = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return set(re.findall(r"`(\w+)`", " ".join(table) or section))


def documented_of(kind: str) -> set[str]:
    """The keys that docs/json.md names for `whit show` of a kind of adapter."""
    page = (Path(__file__).parents[1] / "docs" / "json.md").read_text("utf-8")
    table = page.split("\n## show\n")[1].split("\n## ")[0]
    found = set()
    for keys, what in re.findall(r"^\| (`.+?) \| (.+) \|$", table, re.M):
        only = re.match(r"only of (.+):", what)
        if only is None or f"`{kind}`" in only[1]:
            found |= set(re.findall(r"`(\w+)`", keys))
    return found


@pytest.mark.parametrize("kind", ["xs", "tiny", "sparse", "lora"])
def test_show_prints_what_is_documented_of_each_kind(whit: Whit, place: Path, tmp_path: Path, kind: str) -> None:
    from whit.adapters.adapter import Adapter
    from whit.adapters.basis import basis_of
    from whit.adapters.sparse import SparseSpec
    from whit.adapters.targets import all_targets
    from whit.adapters.tunable import tune_lora
    from whit.adapters.vector import tiny_spec, xs_spec
    from whit.bases import load_base

    base = load_base(str(place / "base"), dtype="float32")
    targets = all_targets(name for name, _ in base.model.named_modules())
    if kind == "lora":
        bound = tune_lora(base, targets[:2], rank=2, alpha=4.0, dropout=0.0, seed=0)
        adapter = bound.export()
        bound.detach()
    elif kind == "sparse":
        adapter = Adapter.from_sparse(SparseSpec(4096, (1, 5)), np.ones(2, np.float32), base)
    else:
        spec = xs_spec([0, 1], 2) if kind == "xs" else tiny_spec([0, 1], 5, rank=2)
        adapter = Adapter.from_vector(spec, np.ones(spec.numbers, np.float32), basis_of(base, 2))
    adapter.save(tmp_path)
    found = document(whit("show", tmp_path, "--json"))
    assert set(found) == documented_of(kind) and found["kind"] == kind and found["card"] is None
    assert found["base"] == base.fingerprint[: len(found["base"])] and len(found["base"]) >= 16
    assert (found["basis"] is None) == (kind in ("lora", "sparse")) and (found["text"] is None) == (kind == "lora")
    assert found["number_type"] == str(adapter.lora.number_type if adapter.lora else adapter.number_type)


VERDICT_KEYS = {
    "contract", "verdict", "rows", "base", "tuned", "difference", "interval", "p_value", "smallest_detectable",
    "baselines", "adapter",
}  # fmt: skip


def test_train_prints_its_contract(whit: Whit, place: Path, tmp_path: Path) -> None:
    said = whit(
        "train", place / "rows.jsonl", "--base", place / "base", "--out", tmp_path / "out", "--kind", "xs",
        "--epochs", 0.5, "--evaluations", 1, "--shots", 1, "--max-tokens", 3, "--json",
    )  # fmt: skip
    assert said.code == 0
    found = document(said)
    assert set(found) >= VERDICT_KEYS
    assert set(found) == documented("train, eval") | {"kind", "numbers", "payload_bytes"}
    assert found["contract"] == 1 and len(found["interval"]) == 2 and found["adapter"] == str(tmp_path / "out")
    assert "null adapter" in found["baselines"]
    for baseline in found["baselines"].values():
        assert set(baseline) == {"score", "difference", "interval", "p_value", "verdict"}
    for word in ("base ", "rows ", "adapter ", "plan ", "time "):  # said before it starts
        assert f"\n{word}" in f"\n{said.err}"


def test_eval_prints_its_contract_and_exits_with_the_verdict(whit: Whit, place: Path, adapter: Path) -> None:
    from whit.evaluation.verdict import Verdict

    said = whit("eval", adapter, place / "later.jsonl", "--json")
    found = document(said)
    assert set(found) >= VERDICT_KEYS
    assert set(found) == documented("train, eval") | {"left_out", "nearly_seen"}
    assert said.code == Verdict(found["verdict"]).exit_code


def test_show_prints_its_contract(whit: Whit, adapter: Path) -> None:
    said = whit("show", adapter, "--json")
    found = document(said)
    assert said.code == 0 and said.err == ""
    assert set(found) == documented_of("xs")
    assert document(whit("show", found["text"], "--json"))["numbers"] == found["numbers"]


def test_run_compare_check_bases_export_print_theirs(whit: Whit, place: Path, adapter: Path, tmp_path: Path) -> None:
    found = document(whit("run", adapter, "send money", "--max-tokens", 2, "--json"))
    assert [set(item) for item in found["answers"]] == [{"prompt", "answer"}]
    found = document(whit("compare", adapter, "--json"))
    assert set(found) >= {"contract", "adapter", "held_out", "wins", "losses", "rows"}
    row = {"id", "prompt", "completion", "base", "tuned", "base_score", "tuned_score"}
    assert set(found["rows"][0]) == row and len(found["rows"]) <= found["held_out"]
    found = document(whit("check", place / "rows.jsonl", "--against", place / "rows.jsonl", "--json"))
    assert found["rows"] == 60 and found["problems"] and set(found) == {"contract", "rows", "notes", "problems"}
    assert {"kind", "ids", "message"} <= set(found["problems"][0])
    found = document(whit("bases", "--json"))
    assert isinstance(found, list) and {"name", "parameters", "bytes", "present", "licence"} <= set(found[0])
    found = document(whit("export", adapter, tmp_path / "lora", "--to", "lora", "--json"))
    assert set(found) == documented("export")
    assert found["checked"] and found["largest_difference"] <= found["tolerance"]
    narrow = ("--to", "merged", "--number-type", "bfloat16", "--json")
    assert document(whit("export", adapter, tmp_path / "merged", *narrow))["number_type"] == "bfloat16"


def test_export_and_import_give_the_same_numbers_back(whit: Whit, adapter: Path, tmp_path: Path) -> None:
    whit("export", adapter, tmp_path / "peft", "--to", "peft")
    base = document(whit("show", adapter, "--json"))["card"]["base"]
    found = document(whit("import", tmp_path / "peft", tmp_path / "back", "--base", base, "--json"))
    assert set(found) == documented("import")
    assert found["checked"] and found["largest_difference"] <= found["tolerance"]
    before, after = (document(whit("show", each, "--json"))["text"] for each in (adapter, tmp_path / "back"))
    assert before == after
    refused = whit("import", tmp_path / "peft", tmp_path / "back", "--base", base)
    assert refused.code == 2 and "is there already" in refused.err


def test_stdout_has_only_the_answers(whit: Whit, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("send money\nblock my card\n"))
    said = whit("run", adapter, "--max-tokens", 3)
    assert said.code == 0 and said.out.endswith("\n") and "Loading" in said.err
    one = whit("run", adapter, "send money", "--max-tokens", 3).out
    assert said.out.startswith(one) and said.out != one


def test_a_closed_pipe_ends_quietly(adapter: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", "from whit.cli import main; main()", "compare", str(adapter)],
        stdout=write, stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("name", "how", "code"),
    [("bases", "SIGINT", 130), ("train", "SIGINT", 130), ("train", "SIGTERM", 143), ("bases", "SIGTERM", -15)],
)
def test_signals_end_without_a_traceback(name: str, how: str, code: int) -> None:
    # A verb that waits, so that the signal comes while it works and not while Python starts.
    source = (
        "import sys, time, whit.verbs.bases as verb, whit.verbs.personal as other\n"
        "from whit.cli import main\n"
        "def wait(settings, talk):\n"
        "    print('waiting', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "verb.command = other.command = wait\n"
        f"sys.argv = ['whit', '{name}']\n"
        "main()"
    )
    process = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal.Signals[how])
    _, said = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in said
    assert ("whit: stopped by SIGTERM" in said) == (code == 143)


# -- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(whit: Whit, shell: str) -> None:
    said = whit("completion", shell)
    assert said.code == 0 and "_WHIT_COMPLETE" in said.out and f"{shell}_complete" in said.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("whit tr", {"train"}),
        ("whit train --opt", {"--optimizer"}),
        ("whit export a b --to g", {"gguf-lora"}),
        ("whit train --base smo", {"smollm2", "smo"}),
        ("whit eval tick", {"tick"}),
        ("whit check tick", {"tick"}),
    ],
)
def test_completion_knows_commands_options_and_choices(words: str, expected: set[str]) -> None:
    done = fresh(
        "-c", "import sys; sys.argv = ['whit']; from whit.cli import main; main()",
        env={**os.environ, "_WHIT_COMPLETE": "bash_complete", "COMP_WORDS": words,
             "COMP_CWORD": str(len(words.split()) - 1)},
    )  # fmt: skip
    assert {line.partition(",")[2] for line in done.stdout.split()} == expected, done
