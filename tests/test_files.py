"""Files are whole or absent; a disk that refuses is told by name."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from whit import files
from whit.errors import StorageError
from whit.files import atomic_open, atomic_write


def test_text_and_bytes_are_written_and_folders_made(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "name"
    atomic_write(target, "grüße\n")
    assert target.read_bytes() == "grüße\n".encode()
    atomic_write(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_inside_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_open(target, "w") as handle:
        handle.write("half")
        raise ZeroDivisionError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "not permitted")],
)
def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: str) -> None:
    target = tmp_path / "kept"
    target.write_text("old")

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(StorageError) as caught:
        atomic_write(target, "new")
    assert told in str(caught.value) and str(target) in str(caught.value)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_really_full_disk() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    # Opened where the file aside would be: what is written there fails as on a full disk.
    real = Path.open

    def full(self: Path, *arguments: Any, **more: Any) -> Any:
        return real(Path("/dev/full"), *arguments, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match="disk is full"):
        patch.setattr(Path, "open", full)
        atomic_write(Path("/dev/shm/whit-never-made") if Path("/dev/shm").is_dir() else Path("never-made"), "x")


def test_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_text("old")
    code = (
        "import os, sys, signal\n"
        "from whit.files import atomic_open\n"
        "with atomic_open(sys.argv[1], 'w') as handle:\n"
        "    handle.write('half'); handle.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert [path.suffix for path in tmp_path.iterdir() if path != target] == [".partial"]
