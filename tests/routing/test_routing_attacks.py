"""Every attack in attacks/routing is held off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parents[2] / "attacks" / "routing" / "run.py"


def test_every_attack_on_the_gateway_is_held_off() -> None:
    done = subprocess.run([sys.executable, str(RUN)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 got through" in done.stdout and "GOT THROUGH" not in done.stdout
