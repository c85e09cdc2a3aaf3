"""A fingerprint is of the content: not of the name, the container or the number of files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from whit.bases import fingerprint as module
from whit.bases.fingerprint import Fingerprinter, fingerprint
from whit.bases.source import open_source

pytestmark = pytest.mark.usefixtures("cache")


def of(path: Path) -> str:
    return fingerprint(open_source(path))


def test_the_definition_written_out(tiny_folder: Path) -> None:
    digest = hashlib.sha256(b"whit base 1\n")
    tensors = load_file(tiny_folder / "model.safetensors")
    for name in sorted(tensors):
        W = tensors[name]
        digest.update(name.encode() + b"\0" + ",".join(str(size) for size in W.shape).encode() + b"\0")
        digest.update(W.numpy().astype("<f4").tobytes())
    assert of(tiny_folder) == digest.hexdigest()


def test_two_containers_of_equal_content_agree(tiny_folder: Path, tiny_gguf: Callable[[str], Path]) -> None:
    assert of(tiny_folder) == of(tiny_gguf("F32"))


def test_other_content_differs(tiny_folder: Path, tiny_gguf: Callable[[str], Path], tiny_copy: Path) -> None:
    assert of(tiny_gguf("Q8_0")) != of(tiny_folder)
    tensors = load_file(tiny_copy / "model.safetensors")
    W = tensors["model.layers.1.mlp.up_proj.weight"]
    W.view(torch.int32)[3, 5] ^= 1  # the last bit of one number
    save_file(tensors, tiny_copy / "model.safetensors")
    assert of(tiny_copy) != of(tiny_folder)


def test_names_of_files_and_sharding_do_not_matter(tiny_folder: Path, tiny_copy: Path) -> None:
    tensors = load_file(tiny_copy / "model.safetensors")
    (tiny_copy / "model.safetensors").unlink()
    where = {name: f"part-{index % 3}.safetensors" for index, name in enumerate(tensors)}
    for part in set(where.values()):
        save_file({name: W for name, W in tensors.items() if where[name] == part}, tiny_copy / part)
    (tiny_copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert of(tiny_copy) == of(tiny_folder)
    renamed = tiny_copy.rename(tiny_copy.parent / "other name")
    assert of(renamed) == of(tiny_folder)


def test_a_tied_head_that_is_stored_again_does_not_matter(tiny_folder: Path, tiny_copy: Path) -> None:
    tensors = load_file(tiny_copy / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tiny_copy / "model.safetensors")
    assert of(tiny_copy) == of(tiny_folder)


def test_it_is_remembered_until_the_file_changes(tiny_copy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_BYTES", 0)
    first = of(tiny_copy)
    monkeypatch.setattr(Fingerprinter, "add", lambda *_: pytest.fail("it was computed again"))
    assert of(tiny_copy) == first
    monkeypatch.undo()
    monkeypatch.setenv("WHIT_CACHE", str(cache))
    path = tiny_copy / "model.safetensors"
    status = path.stat()
    tensors = load_file(path)
    tensors["model.norm.weight"] += 1
    save_file(tensors, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time of writing
    assert of(tiny_copy) != first


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 1}', '{"fingerprint": "x"}'])
def test_a_damaged_memory_is_ignored(
    tiny_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(module, "REMEMBERED_BYTES", 0)
    first = of(tiny_folder)
    (entry,) = (cache / "fingerprints").iterdir()
    entry.write_text(content)
    assert of(tiny_folder) == first


def test_a_cache_that_cannot_be_written_is_no_error(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED_BYTES", 0)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WHIT_CACHE", str(tmp_path / "file"))
    assert len(of(tiny_folder)) == 64


def test_order_is_enforced() -> None:
    hasher = Fingerprinter()
    hasher.add("b", torch.zeros(1))
    with pytest.raises(ValueError, match="order"):
        hasher.add("a", torch.zeros(1))


def test_shape_and_layout_count_and_strides_do_not() -> None:
    def digest(W: torch.Tensor) -> str:
        hasher = Fingerprinter()
        hasher.add("W", W)
        return hasher.hexdigest()

    W = torch.from_numpy(np.arange(6, dtype=np.float32)).reshape(2, 3)
    assert digest(W) != digest(W.reshape(3, 2))
    assert digest(W.T) == digest(W.T.contiguous())
