"""What all tests share: where the task data lies, one thread for torch."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell starts what it runs in the background with interrupts ignored, and that is inherited: tests that
# interrupt a command would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of task data (`tasks/…`, `corpus/…`); the test is skipped where it is absent."""
    named = os.environ.get("WHIT_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "tasks").is_dir():
        pytest.skip(f"no task data at {folder}; set WHIT_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2's file in the user's cache, pulled if need be; the test is skipped where it cannot be had."""
    from whit.bases import pull
    from whit.errors import PullError, StorageError

    try:
        return pull("smollm2")
    except (PullError, StorageError) as error:
        pytest.skip(f"smollm2 is not here and cannot be pulled: {error}")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny base."""
    from whit.testing import write_tiny_base

    return write_tiny_base(
        tmp_path_factory.mktemp("base") / "tiny",
        layers=2, hidden=32, heads=2, kv_heads=1, ffn=64, vocab=384, context=160,
    )  # fmt: skip


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 labelled rows."""
    from whit.testing import write_rows

    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 120)
