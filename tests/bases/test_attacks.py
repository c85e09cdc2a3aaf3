"""Every attack in attacks/bases is held off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "attacks" / "bases" / "run.py"


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_every_attack_on_bases_is_held_off() -> None:
    done = subprocess.run([sys.executable, str(RUN)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 got through" in done.stdout and "GOT THROUGH" not in done.stdout
