"""The package as a whole: light to import, and documented as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from whit.evaluation import Score, compare

DOCS = Path(__file__).resolve().parents[2] / "docs" / "proof.md"
HEAVY = ("torch", "transformers", "sklearn", "scipy", "numpy", "jinja2", "peft")


def test_importing_it_imports_nothing_heavy() -> None:
    parts = "scoring, statistics, verdict, baselines, card, report, findings, figures"
    code = f"import sys; from whit.evaluation import {parts}; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_key_of_a_comparison_is_documented() -> None:
    keys = compare([Score(0.0)], [Score(1.0)]).to_json()
    text = DOCS.read_text(encoding="utf-8")
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_the_example_of_the_documentation_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Helped:")
