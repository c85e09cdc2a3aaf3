"""The number type is measured once and remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from whit.bases import dtypes
from whit.bases.dtypes import choose_dtype, fastest_dtype
from whit.errors import UsageError


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [(1.0, 0.5, "bfloat16"), (1.0, 0.9, "float32"), (1.0, 4.0, "float32")],
)
def test_the_faster_is_taken_where_it_is_clearly_faster(
    cache: Path, monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float, expected: str
) -> None:
    seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(dtypes, "_measure", seconds.__getitem__)
    assert fastest_dtype() == expected
    monkeypatch.setattr(dtypes, "_measure", lambda _: pytest.fail("measured again"))
    assert fastest_dtype() == expected
    assert choose_dtype("auto", "cpu") == getattr(torch, expected)
    assert choose_dtype("auto", "cpu", 135_000_000) == getattr(torch, expected)
    assert choose_dtype("auto", "cpu", 6_000_000) == torch.float32  # too small for conversions to pay
    assert choose_dtype("bfloat16", "cpu", 6_000_000) == torch.bfloat16


@pytest.mark.parametrize("content", ["", "[]", "{", '{"machine": 1}', '{"dtype": "float16"}'])
def test_a_damaged_memory_is_measured_anew(cache: Path, content: str) -> None:
    cache.mkdir()
    (cache / "dtype.json").write_text(content)
    assert fastest_dtype() in ("float32", "bfloat16")
    assert json.loads((cache / "dtype.json").read_text())["dtype"] == fastest_dtype()


def test_another_machine_is_measured_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastest_dtype()
    measured = []
    monkeypatch.setattr(dtypes, "_measure", lambda dtype: measured.append(dtype) or 1.0)
    monkeypatch.setattr("platform.node", lambda: "another")
    fastest_dtype()
    assert len(measured) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WHIT_CACHE", str(tmp_path / "file"))
    assert fastest_dtype() in ("float32", "bfloat16")


def test_what_is_asked_for_is_given(cache: Path) -> None:
    assert choose_dtype("float32", "cpu") == torch.float32
    assert choose_dtype("bfloat16", "cpu") == torch.bfloat16
    with pytest.raises(UsageError, match="float16"):
        choose_dtype("float16", "cpu")


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'nonsense' is not known"):
        choose_dtype("auto", "nonsense")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_dtype("float32", "cuda")
