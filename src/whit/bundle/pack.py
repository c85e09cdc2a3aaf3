"""A bundle: a folder that is a web page with the engine, a base and adapters, for any static host.

Every path in it is relative, so it works under any sub-path. `bundle.json` names each file with its size and
SHA-256; the page checks what it fetches against it. The folder is written aside and renamed: it is whole or not
there. Promises that no row of the data is in it: adapters, their cards, and the instruction are. Knows nothing of the
command line.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whit.errors import BaseError, StorageError, UsageError
from whit.files import atomic_write

if TYPE_CHECKING:
    from whit.adapters.adapter import Adapter
    from whit.adapters.basis import Basis
    from whit.bases import Base
    from whit.evaluation.card import Card

FORMAT = 1
MANIFEST = "bundle.json"
WORKER = "sw.js"
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Packed:
    """An adapter for a bundle: its name there, itself, and its card where it has one."""

    name: str
    adapter: Adapter
    card: Card | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """What was written: the folder, each file with its bytes, and which of them are the base."""

    folder: Path
    sizes: Mapping[str, int]
    base_file: str

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.sizes.values())


def pack(out: str | Path, base: Base, adapters: Sequence[Packed], *, title: str = "") -> Bundle:
    """Write a bundle of `base` and `adapters` to `out`, a folder that is new or empty, or an older bundle.

    Raises `BaseError` where the engine cannot run the base, `UsageError` where two adapters have one name or `out`
    holds something else, `WrongBase`, `StorageError`.
    """
    target = Path(out)
    _check_target(target)
    names = [item.name for item in adapters]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two adapters have the name {twice!r}; give one of their folders another name")
    for item in adapters:
        item.adapter.check_fits(base)
    content, about = _content(base, adapters, title)
    content[MANIFEST] = (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()
    content[WORKER] = _service_worker(about, hashlib.sha256(content[MANIFEST]).hexdigest())
    base_file = about["base"]["file"]
    sizes = {name: len(part) for name, part in content.items()}
    sizes[base_file] = base.path.stat().st_size
    _write(target, content, base.path, base_file)
    return Bundle(target, dict(sorted(sizes.items())), base_file)


def page_files() -> dict[str, bytes]:
    """The page itself, as it lies in the package: name -> content."""
    folder = files("whit.bundle") / "page"
    return {item.name: item.read_bytes() for item in sorted(folder.iterdir(), key=lambda item: item.name)}


def plain_name(text: str) -> str:
    """A name that may stand in a path, a menu and a link: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:_LONGEST_NAME] or "adapter"


def _content(base: Base, adapters: Sequence[Packed], title: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Every file but the base's and the two that list the others; and the list."""
    from importlib.metadata import version

    from whit.engine.runtime import VARIANTS, engine_bytes

    described = _base(base)
    content: dict[str, bytes] = {name: part for name, part in page_files().items() if name != WORKER}
    for variant in VARIANTS:
        content[f"engine/{variant}.wasm"] = engine_bytes(variant)
    teach = _teach(base)
    ranks = {item.adapter.spec.rank for item in adapters if item.adapter.spec}
    ranks |= {int(teach["rank"])} if teach["kind"] == "xs" else set()
    bases = []
    for rank in sorted(ranks):
        basis, packed = _basis(base, rank)
        content[f"basis/rank-{rank}.basis"] = packed
        bases.append({"rank": rank, "file": f"basis/rank-{rank}.basis", "fingerprint": basis.fingerprint})
    listed = []
    for item in adapters:
        entry, parts = _adapter(item)
        content |= parts
        listed.append(entry)
    about = {
        "bundle": FORMAT,
        "whit": version("whit"),
        "title": title or (adapters[0].name if len(adapters) == 1 else base.name),
        "base": described,
        "engine": {variant: f"engine/{variant}.wasm" for variant in VARIANTS},
        "basis": bases,
        "adapters": listed,
        "teach": teach,
        "files": {
            name: {"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}
            for name, part in sorted(content.items())
        },
    }
    return content, about


def _base(base: Base) -> dict[str, Any]:
    from whit.bases.quantize import split_name
    from whit.bundle.prompts import prompt_form

    if base.quantized:
        plain, _ = split_name(base.name)
        raise BaseError(
            f"{base.name}: a page holds the base's file as it is, and this base is in {base.quantized} only once it is "
            f"loaded; bundle an adapter that was trained on {plain}"
        )
    if base.path.suffix.lower() != ".gguf":
        raise BaseError(f"{base.name}: a page runs GGUF files; this base is a folder of another format")
    if base.source.architecture.model_type != "llama":
        kind = base.source.architecture.model_type
        raise BaseError(f"{base.name}: the engine runs Llama models, not {kind}; use eeny, meeny or smollm2")
    own = base.tokenizer.eos_token_id
    with base.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "name": base.name if len(base.name) < _LONGEST_NAME and "/" not in base.name else base.path.stem,
        "file": f"base/{plain_name(base.path.name)}",
        "bytes": base.path.stat().st_size,
        "sha256": digest,
        "fingerprint": base.fingerprint,
        "licence": base.licence,
        "parameters": base.parameters,
        "context": base.context,
        "stops": list(base.stop_ids),
        "stop": int(own) if own in base.stop_ids else base.stop_ids[-1],
        "prompt": prompt_form(base.template, base.name).to_json(),
    }


def _teach(base: Base) -> dict[str, Any]:
    """How the page trains: ranks that a tab can afford, rates a little below those of `whit.training.sft`."""
    from whit.bases.dtypes import SMALL

    if base.parameters < SMALL:
        return {"kind": "lora", "rank": 4, "alpha": 8.0, "rate": 3e-3, "batch": 8}
    return {"kind": "xs", "rank": 2, "rate": 2.5e-2, "batch": 4}


def _basis(base: Base, rank: int) -> tuple[Basis, bytes]:
    from whit.adapters.basis import basis_of
    from whit.engine.basis import write_basis

    basis = basis_of(base, rank)
    return basis, write_basis(basis)


def _adapter(item: Packed) -> tuple[dict[str, Any], dict[str, bytes]]:
    from whit.adapters.adapter import FILE_NAME

    adapter, card = item.adapter, item.card
    stem = f"adapters/{item.name}"
    parts = {f"{stem}/{name}": content for name, content in item.files.items()}
    if adapter.spec is not None:
        parts[f"{stem}/{FILE_NAME}"] = adapter.to_bytes()
    entry: dict[str, Any] = {
        "name": item.name,
        "kind": adapter.kind,
        "numbers": adapter.numbers,
        "files": sorted(parts),
        "instruction": "",
        "verdict": "",
        "sentence": "",
        "most": None,
    }
    if card is not None:
        most = card.settings.get("max_tokens")
        entry |= {
            "instruction": card.instruction,
            "verdict": card.verdict,
            "sentence": card.result.sentence() if card.result else "",
            "most": most if isinstance(most, int) else None,
        }
    return entry, parts


def _service_worker(about: Mapping[str, Any], digest: str) -> bytes:
    """The page's service worker with this bundle's version and list of files written into it."""
    source = page_files()[WORKER].decode("utf-8")
    shell = ["./", MANIFEST, *(name for name in about["files"] if not name.endswith(".d.ts"))]
    for name, value in (("VERSION", digest[:16]), ("SHELL", shell)):
        found = re.search(rf"^const {name} = .*;$", source, re.M)
        if found is None:
            raise BaseError(f"the page in the package is damaged ({WORKER} has no {name}): install whit again")
        source = f"{source[: found.start()]}const {name} = {json.dumps(value)};{source[found.end() :]}"
    return source.encode("utf-8")


def _check_target(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; name a folder for the bundle")
    if any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UsageError(f"{target} holds something else than a bundle; name a new folder")


def _write(target: Path, content: Mapping[str, bytes], base: Path, base_file: str) -> None:
    """All files in a folder beside the target, which then takes its place."""
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    try:
        for name, part in content.items():
            atomic_write(aside / name, part)
        (aside / base_file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base, aside / base_file)
        if target.exists():
            target.replace(old)
        aside.replace(target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
