"""The committed builds are those of the committed sources."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WASM = ROOT / "src" / "whit" / "engine" / "wasm"
#: Debian's packages, whose build is the same byte for byte; with rustup the bytes are others.
TOOLS = ("/usr/bin/cargo", "/usr/bin/rustc", "lld-22")


def test_the_hashes_are_those_of_the_builds() -> None:
    import hashlib

    listed = dict(reversed(line.split()) for line in (WASM / "SHA256SUMS").read_text("utf-8").splitlines())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in WASM.glob("*.wasm")}
    assert found == listed and set(found) == {"simd.wasm", "relaxed.wasm"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_building_anew_gives_the_same_bytes() -> None:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if not missing:
        library = Path(subprocess.check_output(["/usr/bin/rustc", "--print", "sysroot"], text=True).strip())
        missing = [] if (library / "lib/rustlib/src/rust/library/vendor").is_dir() else ["rust-web-src"]
    if missing:
        pytest.skip(f"Debian's toolchain is not here ({', '.join(missing)}): docs/engine.md, Building it")
    done = subprocess.run([ROOT / "scripts" / "build-engine", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
