"""A zip of an adapter's folder: read as the folder is, and refused where it asks for more than that."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.adapters import zipped
from whit.adapters.adapter import FILE_NAME, Adapter
from whit.adapters.targets import all_targets
from whit.adapters.tunable import tune_lora
from whit.adapters.vector import VectorSpec
from whit.bases import Base
from whit.errors import DamagedAdapter

Make = Callable[..., Adapter]


def zip_of(path: Path, files: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


@pytest.fixture
def content(make: Make, specs: dict[str, VectorSpec]) -> bytes:
    return make(specs["xs"]).to_bytes()


@pytest.mark.parametrize("inside", ["", "mine/"])
def test_a_compact_file_in_a_zip(tmp_path: Path, content: bytes, inside: str) -> None:
    path = zip_of(tmp_path / "mine.zip", {f"{inside}{FILE_NAME}": content, f"{inside}report.html": b"<p>"})
    assert Adapter.load(path).to_bytes() == Adapter.load(str(path)).to_bytes() == content


def test_a_lora_in_a_zip(tmp_path: Path, base: Base) -> None:
    targets = all_targets(name for name, _ in base.model.named_modules())
    bound = tune_lora(base, targets, rank=2, alpha=4.0, dropout=0.0, seed=3)
    adapter = bound.export()
    bound.detach()
    adapter.save(tmp_path / "mine")
    files = {f"mine/{each.name}": each.read_bytes() for each in (tmp_path / "mine").iterdir()}
    held = Adapter.load(zip_of(tmp_path / "mine.zip", files))
    assert held.lora is not None and adapter.lora is not None and held.base == adapter.base
    assert held.lora.A.keys() == adapter.lora.A.keys()
    assert all(torch.equal(held.lora.A[name], part) for name, part in adapter.lora.A.items())
    broken = files | {"mine/adapter_config.json": b"{}"}
    with pytest.raises(DamagedAdapter) as told:
        Adapter.load(zip_of(tmp_path / "broken.zip", broken))
    assert "broken.zip" in str(told.value) and "whit-" not in str(told.value)


def test_nothing_is_written_elsewhere(tmp_path: Path, content: bytes) -> None:
    names = [f"../{FILE_NAME}", f"/tmp/{FILE_NAME}", f"a/b/{FILE_NAME}", "../../card.json"]
    for name in names:
        with pytest.raises(DamagedAdapter), zipped.unzipped(zip_of(tmp_path / "x.zip", {f"a/b/c/{name}": content})):
            pass
    with zipped.unzipped(
        zip_of(tmp_path / "y.zip", {FILE_NAME: content, "a/b/card.json": b"{}", "evil.py": b"1"})
    ) as to:
        assert [each.name for each in to.iterdir()] == [FILE_NAME]
    assert not to.exists()


@pytest.mark.parametrize(
    "names",
    [["notes.txt"], [], [f"one/{FILE_NAME}", f"two/{FILE_NAME}"], [f"one/{FILE_NAME}", "card.json"]],
)
def test_what_is_no_adapters_folder(tmp_path: Path, content: bytes, names: list[str]) -> None:
    path = zip_of(tmp_path / "x.zip", dict.fromkeys(names, content))
    with pytest.raises(DamagedAdapter, match=r"x\.zip"):
        Adapter.load(path)


def test_sizes_are_bounded_whatever_is_claimed(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zipped.LARGEST, FILE_NAME, 1000)
    bomb = zip_of(tmp_path / "bomb.zip", {FILE_NAME: bytes(10_000_000)})
    with pytest.raises(DamagedAdapter, match="10,000,000 bytes"):
        Adapter.load(bomb)
    raw = bytearray(bomb.read_bytes())
    size = (10_000_000).to_bytes(4, "little")
    at = raw.rindex(size)  # in the list at the end, which is what is read first
    raw[at : at + 4] = (10).to_bytes(4, "little")
    bomb.write_bytes(raw)
    with pytest.raises(DamagedAdapter):
        Adapter.load(bomb)
    many = zip_of(tmp_path / "many.zip", {f"{at}.txt": b"" for at in range(1001)})
    with pytest.raises(DamagedAdapter, match="1,001 files"):
        Adapter.load(many)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_zip_is_told_so(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("zips")
    whole = zip_of(folder / "whole.zip", {FILE_NAME: b"no adapter at all" * 9}).read_bytes()
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "x.zip"
    path.write_bytes(bytes(raw[: data.draw(st.integers(1, len(raw)))]))
    with pytest.raises(DamagedAdapter):
        Adapter.load(path)


def test_a_list_that_points_before_the_file_is_told_so(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "x.zip", {FILE_NAME: b"no adapter at all"})
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x05\x06") + 16  # where the list begins; entries are then taken to stand earlier
    raw[at : at + 4] = (int.from_bytes(raw[at : at + 4], "little") + 1).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(DamagedAdapter, match="not a whole zip"):
        Adapter.load(path)
