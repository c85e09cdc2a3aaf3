"""Hostile bases, each handed to whit as a user would hand it over.

    python attacks/bases/run.py            all of them
    python attacks/bases/run.py auto_map   one

Each attack is a function that prepares something harmful in an empty folder and returns what to load.
An attack is held off if whit answers with its own `BaseError`, in bounded time and memory, and if the
mark (a file that any code which is run would write) is not there afterwards. Exits 1 if one gets through.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS, MEGABYTES = 20, 300
ATTACKS: dict[str, Callable[[Path], str]] = {}


def attack(prepare: Callable[[Path], str]) -> Callable[[Path], str]:
    ATTACKS[prepare.__name__] = prepare
    return prepare


def tiny(folder: Path, **changed: Any) -> Path:
    from whit.testing import write_tiny_base

    base = write_tiny_base(folder / "base")
    change(base / "config.json", **changed)
    return base


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class Marks:
    """Unpickled, it writes the mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch mark",)


# --- code ----------------------------------------------------------------------------------------------


@attack
def auto_map(folder: Path) -> str:
    """CVE-2026-22807: the configuration names a Python file of the folder."""
    base = tiny(folder, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    (base / "evil.py").write_text("open('mark', 'w')")
    return str(base)


@attack
def auto_map_of_the_tokenizer(folder: Path) -> str:
    """The same, hidden in the tokenizer's settings."""
    base = tiny(folder)
    change(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    (base / "evil.py").write_text("open('mark', 'w')")
    return str(base)


@attack
def attention_from_the_hub(folder: Path) -> str:
    """An attention implementation that names a repository of kernels."""
    return str(tiny(folder, _attn_implementation="someone/evil-kernel"))


@attack
def pickled_weights(folder: Path) -> str:
    """Weights that are a pickle."""
    base = tiny(folder)
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Marks()))
    return str(base)


@attack
def pickle_named_safetensors(folder: Path) -> str:
    """A pickle under a trusted name."""
    base = tiny(folder)
    (base / "model.safetensors").write_bytes(pickle.dumps(Marks()) * 100)
    return str(base)


@attack
def pickle_named_gguf(folder: Path) -> str:
    """A pickle under another trusted name."""
    (folder / "base.gguf").write_bytes(pickle.dumps(Marks()) * 100)
    return str(folder / "base.gguf")


# --- sizes ---------------------------------------------------------------------------------------------


def gguf(folder: Path, head: bytes, fill: int = 256) -> str:
    path = folder / "base.gguf"
    path.write_bytes(b"GGUF" + head + b"\0" * fill)
    return str(path)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


@attack
def gguf_tensor_count(folder: Path) -> str:
    """2^63 tensors."""
    return gguf(folder, struct.pack("<IQQ", 3, 1 << 63, 0))


@attack
def gguf_string_length(folder: Path) -> str:
    """A key of 2^64 - 1 bytes (a length plus one is zero)."""
    return gguf(folder, struct.pack("<IQQQ", 3, 0, 1, (1 << 64) - 1))


@attack
def gguf_array_length(folder: Path) -> str:
    """CVE-2026-27940's class: an array whose size in bytes overflows."""
    return gguf(folder, struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 12, 1 << 61))


@attack
def gguf_nested_arrays(folder: Path) -> str:
    """Arrays in arrays in arrays, 100,000 deep."""
    nested = struct.pack("<IQ", 9, 1) * 100_000
    return gguf(folder, struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 9) + nested)


@attack
def gguf_tensor_size(folder: Path) -> str:
    """CVE-2026-33298's class: a shape whose product overflows to something small."""
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 1 << 33, 1 << 31, 0, 0)
    return gguf(folder, struct.pack("<IQQ", 3, 1, 0) + tensor)


@attack
def gguf_offset(folder: Path) -> str:
    """A tensor far behind the end of the file."""
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 4, 0, (1 << 64) - 64)
    return gguf(folder, struct.pack("<IQQ", 3, 1, 0) + tensor)


@attack
def gguf_overlapping_tensors(folder: Path) -> str:
    """Ten thousand tensors that all lie on the same bytes: a small file, a large model."""
    tensors = b"".join(text(f"t{i}") + struct.pack("<IQIQ", 1, 1 << 18, 0, 0) for i in range(10_000))
    return gguf(folder, struct.pack("<IQQ", 3, 10_000, 0) + tensors, 1 << 21)


@attack
def safetensors_header(folder: Path) -> str:
    """A header of 2^63 bytes."""
    base = tiny(folder)
    (base / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 63) + b"{}")
    return str(base)


@attack
def safetensors_shape(folder: Path) -> str:
    """A tensor of a petabyte in a small file."""
    base = tiny(folder)
    entry = {"dtype": "F32", "shape": [1 << 24, 1 << 24], "data_offsets": [0, 1 << 50]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    (base / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    return str(base)


@attack
def layers_that_are_not_there(folder: Path) -> str:
    """A configuration whose model would fill the memory before a weight is read."""
    return str(tiny(folder, num_hidden_layers=1000))


@attack
def a_huge_vocabulary(folder: Path) -> str:
    """Sizes that the tensors do not bear out."""
    return str(tiny(folder, vocab_size=4_000_000, hidden_size=131_072))


@attack
def deeply_nested_json(folder: Path) -> str:
    """A configuration that exhausts the stack of a careless parser."""
    base = tiny(folder)
    (base / "config.json").write_text("[" * 1_000_000)
    return str(base)


@attack
def endless_json(folder: Path) -> str:
    """A configuration of 10 GB (sparse)."""
    base = tiny(folder)
    with (base / "config.json").open("wb") as handle:
        handle.truncate(10_000_000_000)
    return str(base)


# --- names ---------------------------------------------------------------------------------------------


@attack
def index_leads_out_of_the_folder(folder: Path) -> str:
    """A shard index that names a file elsewhere."""
    base = tiny(folder)
    (base / "model.safetensors").rename(folder / "elsewhere.safetensors")
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    return str(base)


@attack
def name_with_control_characters(folder: Path) -> str:
    """A name that would write to the terminal."""
    return "smollm2\x1b]0;owned\x07"


@attack
def name_of_a_device(folder: Path) -> str:
    """A path that never ends."""
    return "/dev/zero"


@attack
def name_that_climbs(folder: Path) -> str:
    """A hub name that would climb out of the cache."""
    return "../../../../tmp/evil--x"


def main(chosen: list[str]) -> int:
    """Run the chosen attacks; return 1 if one gets through."""
    through, home = 0, Path.cwd()
    for name in chosen or list(ATTACKS):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # where the mark would be written
            os.environ["WHIT_CACHE"] = str(Path(folder) / "cache")
            held, answer = one(name, Path(folder))
            os.chdir(home)
        through += not held
        print(f"{'held off' if held else 'GOT THROUGH'}  {name}: {answer}", flush=True)
    print(f"{len(chosen or ATTACKS) - through} held off, {through} got through")
    return int(through > 0)


def one(name: str, folder: Path) -> tuple[bool, str]:
    """Prepare and load; held off is a `BaseError` within the bounds, and no mark. Returns also the answer."""
    from whit.bases import load_base
    from whit.errors import BaseError

    target = ATTACKS[name](folder)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        load_base(target, dtype="float32")
        return False, "it was loaded"
    except BaseError as error:
        answer = str(error)
    except BaseException as error:
        return False, f"{type(error).__name__}: {error}"
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if list(folder.rglob("mark")):
        return False, "code of the attacker was run"
    if seconds > SECONDS or grown > MEGABYTES:
        return False, f"it took {seconds:.0f} s and {grown:.0f} MB to say: {answer}"
    return True, answer


if __name__ == "__main__":
    from whit.testing import tiny_base

    tiny_base()  # what is imported on first use is not the attacks' doing
    sys.exit(main(sys.argv[1:]))
