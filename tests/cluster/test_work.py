"""Where a worker keeps bases: in a folder that is its user's alone, or nowhere."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from whit.cluster.work import bases_folder


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_is_made_for_its_user_alone() -> None:
    folder = bases_folder()
    assert folder is not None and folder.is_dir() and not folder.stat().st_mode & 0o077
    assert bases_folder() == folder


def test_a_folder_that_others_may_write_to_is_not_used() -> None:
    folder = bases_folder()
    assert folder is not None
    folder.chmod(0o777)
    assert bases_folder() is None


def test_a_link_that_stands_in_its_place_is_not_followed(temporary: Path) -> None:
    folder = bases_folder()
    assert folder is not None
    folder.rmdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    assert bases_folder() is None
