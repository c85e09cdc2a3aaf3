"""Hostile files and names, each given to the command line as a user would give it.

    python attacks/commands/run.py             all of them
    python attacks/commands/run.py auto_map    one

Each attack is a function that prepares something harmful in an empty folder and returns the arguments of `whit`. It
is held off if the command ends with the exit code of its cause, says exactly one error on stderr without a control
character or a traceback, in bounded time, and if the mark (a file that any code which is run would write) is not
there afterwards. Exits 1 if one gets through. How single formats are attacked: see the folders beside this one.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 60.0
Prepare = Callable[[Path], list[str]]
#: By name: the exit code that its cause has, and what prepares it.
ATTACKS: dict[str, tuple[int, Prepare]] = {}


def attack(code: int) -> Callable[[Prepare], Prepare]:
    def add(prepare: Prepare) -> Prepare:
        ATTACKS[prepare.__name__] = code, prepare
        return prepare

    return add


class Marks:
    """Unpickled, it writes the mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch mark",)


def base(folder: Path) -> Path:
    from whit.testing import write_tiny_base

    return write_tiny_base(folder / "base", layers=1, hidden=32, heads=2, kv_heads=1, ffn=32)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rows(folder: Path) -> str:
    from whit.testing import write_rows

    return str(write_rows(folder / "rows.jsonl", 30))


# --- adapters --------------------------------------------------------------------------------------------------------


@attack(5)
def pickled_adapter(folder: Path) -> list[str]:
    """PEFT falls back to such a file."""
    (folder / "adapter.bin").write_bytes(pickle.dumps(Marks()))
    return ["show", "adapter.bin"]


@attack(5)
def pickled_adapter_in_a_folder(folder: Path) -> list[str]:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["q"]}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Marks()))
    return ["run", ".", "hello"]


@attack(5)
def adapter_auto_map(folder: Path) -> list[str]:
    """CVE-2026-22807: a configuration that names code."""
    (folder / "evil.py").write_text("open('mark', 'w')")
    about = {"peft_type": "LORA", "r": 1, "target_modules": ["q"], "auto_map": {"AutoModel": "evil.M"}}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return ["show", "."]


@attack(5)
def adapter_without_end(folder: Path) -> list[str]:
    """20 GB of nothing, which must not be read."""
    with (folder / "adapter.whit").open("wb") as file:
        file.truncate(20 << 30)
    return ["run", "adapter.whit", "hello"]


@attack(5)
def text_form_that_lies(folder: Path) -> list[str]:
    return ["run", "whit1_" + "A" * 4000, "hello", "--base", str(base(folder))]


@attack(5)
def text_form_with_escapes(folder: Path) -> list[str]:
    return ["show", "whit1_\x1b]0;owned\x07\x1b[31m"]


@attack(5)
def adapter_name_with_escapes(folder: Path) -> list[str]:
    """A name that would colour the terminal and forge a line of output."""
    return ["show", "a\x1b[31m\nwhit: all is well"]


@attack(5)
def adapter_name_without_end(folder: Path) -> list[str]:
    return ["show", "a" * 100_000]


@attack(5)
def adapter_name_that_climbs(folder: Path) -> list[str]:
    """Naming a file that is no adapter tells nothing of what is in it."""
    (folder / "secret.txt").write_text("the secret")
    (folder / "in").mkdir()
    return ["show", "in/../secret.txt"]


@attack(5)
def card_that_is_hostile(folder: Path) -> list[str]:
    """An adapter's own card, nested without end."""
    import whit

    whit.train(rows(folder), base=str(base(folder)), out=folder / "a", kind="xs", epochs=0.5, baselines=False)
    (folder / "a" / "card.json").write_text("[" * 200_000)
    return ["show", "a"]


@attack(5)
def card_that_names_a_hub_base(folder: Path) -> list[str]:
    """A card's word for its base is not believed against the fingerprint in the adapter."""
    import whit

    whit.train(rows(folder), base=str(base(folder)), out=folder / "a", kind="xs", epochs=0.5, baselines=False)
    change(folder / "a" / "card.json", base="../../etc", base_fingerprint="0" * 64)
    return ["run", "a", "hello"]


# --- bases -----------------------------------------------------------------------------------------------------------


@attack(4)
def base_auto_map(folder: Path) -> list[str]:
    """CVE-2026-22807 again."""
    change(base(folder) / "config.json", auto_map={"AutoModelForCausalLM": "evil.M"})
    (folder / "base" / "evil.py").write_text("open('mark', 'w')")
    return ["run", "./base", "hello"]


@attack(4)
def base_pickled(folder: Path) -> list[str]:
    made = base(folder)
    (made / "model.safetensors").unlink()
    (made / "pytorch_model.bin").write_bytes(pickle.dumps(Marks()))
    return ["run", "./base", "hello"]


@attack(4)
def base_name_that_climbs(folder: Path) -> list[str]:
    return ["train", rows(folder), "--base", "../../../../etc/passwd"]


@attack(4)
def base_name_with_escapes(folder: Path) -> list[str]:
    return ["train", rows(folder), "--base", "smollm2\x1b[2J\r\n"]


@attack(4)
def base_name_to_pull_is_a_path(folder: Path) -> list[str]:
    return ["pull", "../../../../tmp/x"]


# --- chat templates --------------------------------------------------------------------------------------------------


def template(folder: Path, source: str) -> list[str]:
    change(base(folder) / "tokenizer_config.json", chat_template=source)
    return ["run", "./base", "hello"]


@attack(3)
def template_that_runs_code(folder: Path) -> list[str]:
    """CVE-2026-5760, and llama-cpp-python and vLLM before it."""
    return template(folder, "{{ cycler.__init__.__globals__.os.system('touch mark') }}")


@attack(3)
def template_that_climbs_classes(folder: Path) -> list[str]:
    return template(folder, "{{ ''.__class__.__mro__[1].__subclasses__() }}")


@attack(3)
def template_without_end(folder: Path) -> list[str]:
    return template(folder, "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}")


@attack(3)
def template_that_eats_memory(folder: Path) -> list[str]:
    return template(folder, "{{ 'x' * 999999999999 }}")


# --- rows and options ------------------------------------------------------------------------------------------------


@attack(3)
def rows_without_end(folder: Path) -> list[str]:
    """10 GB of nothing."""
    with (folder / "rows.jsonl").open("wb") as file:
        file.truncate(10 << 30)
    return ["train", "rows.jsonl"]


@attack(3)
def rows_nested_without_end(folder: Path) -> list[str]:
    (folder / "rows.jsonl").write_text('{"prompt": ' + "[" * 100_000 + "\n")
    return ["check", "rows.jsonl"]


@attack(3)
def rows_pickled(folder: Path) -> list[str]:
    (folder / "rows.pkl").write_bytes(pickle.dumps(Marks()))
    return ["train", "rows.pkl"]


@attack(2)
def scorer_that_is_not_a_function(folder: Path) -> list[str]:
    return ["train", rows(folder), "--base", str(base(folder)), "--score", "os:nothing_of_this_name"]


@attack(2)
def options_without_end(folder: Path) -> list[str]:
    with (folder / "whit.toml").open("wb") as file:
        file.truncate(4 << 30)
    return ["train", rows(folder)]


def _held_off(name: str) -> str:
    """Empty if the attack was held off, else what happened."""
    code, prepare = ATTACKS[name]
    with tempfile.TemporaryDirectory(prefix="whit-attack-") as place:
        folder = Path(place)
        os.chdir(folder)
        arguments = prepare(folder)
        began = time.monotonic()
        errors = folder / "stderr"
        pid = os.fork()
        if pid == 0:
            _run(arguments, errors)
        _, status = os.waitpid(pid, 0)
        took = time.monotonic() - began
        said = errors.read_text("utf-8", errors="replace")
        os.chdir("/")
        if (folder / "mark").exists():
            return "code was run"
        return judge(code, os.waitstatus_to_exitcode(status), said, took)


def judge(code: int, got: int, said: str, took: float) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    lines = said.splitlines()
    told = [line for line in lines if line.startswith(("whit: ", "Error: "))]
    if got != code:
        return f"exit {got} instead of {code}: {said[-300:]!r}"
    if "Traceback" in said or len(told) != 1 or lines[-1] != told[0]:
        return f"not one clear error: {said[-300:]!r}"
    if any(ord(letter) < 32 and letter not in "\n\t" for letter in said):
        return f"control characters reach the terminal: {said[-300:]!r}"
    return f"it took {took:.0f} s" if took > SECONDS else ""


def _run(arguments: list[str], errors: Path) -> None:
    """In the child: the command, as the shell would start it."""
    code = 1
    try:
        for number, flag in ((1, os.devnull), (2, str(errors))):
            os.dup2(os.open(flag, os.O_WRONLY | os.O_CREAT), number)
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        sys.argv = ["whit", *arguments]
        from whit.cli import main

        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> int:
    import torch

    torch.set_num_threads(1)  # a fork has one thread
    through = 0
    with tempfile.TemporaryDirectory(prefix="whit-cache-") as cache:
        os.environ["WHIT_CACHE"] = cache
        for name in sys.argv[1:] or ATTACKS:
            found = _held_off(name)
            through += bool(found)
            print(f"{name:32} {'GOT THROUGH: ' + found if found else 'held off'}", flush=True)
    print(f"{through} got through")
    return 1 if through else 0


if __name__ == "__main__":
    sys.exit(main())
