"""The ledger: whole records, and no request that waits for a file that is full, locked or gone."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from whit.routing.errors import ConfigError
from whit.routing.ledger import COLUMNS, Ledger, Record, read_ledger
from whit.routing.metrics import Metrics
from whit.routing.report import money, page, summarise

ONE = Record(
    1_700_000_000.0,
    "t",
    "",
    "",
    "local",
    "ok",
    "why",
    "id",
    "local",
    "card",
    0,
    1,
    10,
    20,
    0.0,
    0.5,
    0.1,
    0.05,
    0.9,
    causes="card",
)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "l.db"))
    records = [replace(ONE, at=ONE.at + at, cost=0.25 * at, confidence=None) for at in range(5)]
    for record in records:
        ledger.add(record)
    ledger.close()
    assert list(read_ledger(tmp_path / "l.db")) == records and ledger.lost == 0
    assert ledger.spent("t", ONE.at + 3) == 1.75 and ledger.spent("'; DROP TABLE requests; --", 0) == 0


def test_a_file_of_an_older_whit_is_taken_over(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "l.db")
    columns = COLUMNS[:-2]
    old.execute(f"CREATE TABLE requests (id INTEGER PRIMARY KEY, {', '.join(columns)})")
    old.execute(f"INSERT INTO requests ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                astuple(ONE)[:-2])  # fmt: skip
    old.commit()
    old.close()
    assert list(read_ledger(tmp_path / "l.db")) == [replace(ONE, causes="")], "and read before it is written"
    ledger = Ledger(str(tmp_path / "l.db"))
    ledger.add(replace(ONE, agreement=0.5))
    ledger.close()
    assert ledger.lost == 0 and list(read_ledger(tmp_path / "l.db")) == [
        replace(ONE, causes=""),
        replace(ONE, agreement=0.5),
    ]


def test_a_locked_ledger_loses_records_and_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    first = Ledger(str(path))
    first.add(ONE)
    first.close()
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    ledger = Ledger(str(path), patience=0.05)
    began = time.monotonic()
    ledger.add(ONE)
    assert time.monotonic() - began < 1
    ledger.close()
    assert ledger.lost == 1
    lock.execute("COMMIT")
    lock.close()


def test_a_ledger_that_cannot_be_a_file_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    ledger = Ledger(str(tmp_path / "file" / "l.db"))
    ledger.add(ONE)
    ledger.close()
    assert ledger.lost == 1 and ledger.spent("t", 0) == 0


def test_a_disk_that_is_full_loses_records_and_counts_them(tmp_path: Path) -> None:
    """In a process that may write no file beyond 100 kB: SQLite is told that the disk is full."""
    resource = pytest.importorskip("resource")
    assert resource.RLIMIT_FSIZE
    script = f"""
import resource, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_ledger import ONE, Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
ledger = Ledger({str(tmp_path / "l.db")!r})
began = time.monotonic()
for _ in range(5000):
    ledger.add(ONE)
took = time.monotonic() - began
ledger.close(30)
print(took, ledger.written, ledger.lost)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    took, written, lost = map(float, done.stdout.split())
    assert took < 5 and 0 < written < 5000 and written + lost == 5000
    assert len(list(read_ledger(tmp_path / "l.db"))) == written


def test_a_full_queue_is_counted(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "l.db"), waiting=1)
    for _ in range(2000):
        ledger.add(ONE)
    ledger.close()
    assert ledger.lost + ledger.written == 2000


def test_no_ledger_and_no_ledger_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no ledger yet"):
        list(read_ledger(tmp_path / "none.db"))
    (tmp_path / "text.db").write_text("hello, this is not a database at all" * 50)
    with pytest.raises(ConfigError, match="not a ledger"):
        list(read_ledger(tmp_path / "text.db"))


def test_the_report_counts_and_its_page_is_closed() -> None:
    paid = replace(ONE, tier="strong<b>", cost=0.5, kinds="", causes="")
    failed = replace(ONE, outcome="inside_unavailable", tier="", cost=0.0, causes="tenant <i>, label secret")
    summary = summarise([ONE, ONE, ONE, paid, failed])
    assert (summary.requests, summary.answered, summary.free_share, summary.cost) == (5, 4, 0.75, 0.5)
    assert summary.saved == pytest.approx(1.5) and summary.kept_inside == {
        "card": 3, "tenant <i>": 1, "label secret": 1,
    }  # fmt: skip
    assert summary.failures == {"inside_unavailable": 1} and "75.0%" in summary.to_text()
    html = page(summary, "a <title>")
    assert (
        "<b>strong" not in html
        and "a <title>" not in html
        and "<script" not in html
        and "http" not in html.replace("http-equiv", "")
    )
    assert 'name="viewport"' in html  # a phone shows the text at its size
    # one answer to the other tier's three
    assert '<th scope="row">strong&lt;b&gt;</th><td><i style="width:33.3%' in html
    assert "at most 4 on a day" in html
    assert "None." in page(summarise([]), "empty")


def test_small_money_is_shown_too() -> None:
    assert [money(each) for each in (0, 1234.5, 0.5, 0.0123, 0.0000384, -0.002)] == [
        "0.00", "1,234.50", "0.50", "0.012", "0.000038", "-0.0020",
    ]  # fmt: skip


def test_metrics_are_what_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.add("whit_requests_total", tier='a"b', outcome="ok")
    metrics.time("a", 0.03)
    text = metrics.text(lost=7)
    assert 'whit_requests_total{outcome="ok",tier="a\\"b"} 1' in text and "whit_ledger_lost 7" in text
    metrics.add("whit_tokens_total", 123_456_789, tier="a", direction="in")
    assert 'whit_tokens_total{direction="in",tier="a"} 123456789' in metrics.text()
    assert 'whit_seconds_bucket{tier="a",le="0.05"} 1' in text and 'le="0.025"} 0' in text
