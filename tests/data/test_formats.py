"""Files that are not what they should be: each gives one clear error, and soon."""

from __future__ import annotations

import builtins
import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from whit.data import formats
from whit.data.formats import read_records
from whit.errors import DataError


def write(folder: Path, content: bytes | str, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    return [record.values for record in read_records(path, limit)]


def failure(path: Path, limit: int | None = None) -> str:
    with pytest.raises(DataError) as caught:
        values(path, limit)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_json_lines_with_blank_lines_and_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": 1}\n\n{"a": "ü\u2028x"}')
    records = list(read_records(path))
    assert [(r.line, r.values["a"]) for r in records] == [(1, 1), (3, "ü\u2028x")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_line_ends_and_marked_encodings(tmp_path: Path, end: str, encoding: str) -> None:
    rows = [{"prompt": "käse", "completion": "ja"}, {"prompt": "日本", "completion": "nein"}]
    lines = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert values(write(tmp_path, lines.encode(encoding))) == rows
    table = end.join(["prompt,completion", "käse,ja", "日本,nein"])
    assert values(write(tmp_path, table.encode(encoding), "rows.csv")) == rows


def test_array(tmp_path: Path) -> None:
    assert values(write(tmp_path, '[{"a": 1}, {"a": 2}]', "rows.json"), limit=1) == [{"a": 1}]
    assert "item 2" in failure(write(tmp_path, '[{"a": 1}, 5]', "rows.json"))
    assert "line 2" in failure(write(tmp_path, '[{"a": 1},\n {"a": }]', "rows.json"))
    assert values(write(tmp_path, '{"a": 1}\n{"a": 2}\n', "lines.json")) == [{"a": 1}, {"a": 2}]


def test_table_with_quotes_semicolons_and_tabs(tmp_path: Path) -> None:
    path = write(tmp_path, 'prompt,completion\n"one, ""two""\nthree",yes\nfour,no\n', "rows.csv")
    records = list(read_records(path))
    assert [(r.line, r.values["prompt"]) for r in records] == [(2, 'one, "two"\nthree'), (4, "four")]
    assert values(write(tmp_path, "a;b\n1,5;2\n", "semicolon.csv")) == [{"a": "1,5", "b": "2"}]
    assert values(write(tmp_path, "a\tb\n1\t2\n", "rows.tsv")) == [{"a": "1", "b": "2"}]
    assert values(write(tmp_path, "a\tb\n1\t2\n", "rows.txt")) == [{"a": "1", "b": "2"}]


def test_table_that_is_none(tmp_path: Path) -> None:
    assert "line 3: 3 cells" in failure(write(tmp_path, "a,b\n1,2\n1,2,3\n", "rows.csv"))
    assert "without a name" in failure(write(tmp_path, "a,,c\n1,2,3\n", "rows.csv"))
    assert "two columns are called 'a'" in failure(write(tmp_path, "a,a\n1,2\n", "rows.csv"))
    assert "line 2" in failure(write(tmp_path, 'a,b\n1,"2\n' + "x,y\n" * 10, "rows.csv"))


def test_a_quote_that_is_never_closed_does_not_take_the_whole_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'a,b\n1,"2\n' + "x" * 999 + "\n" * 1, "rows.csv")
    with path.open("a") as handle:
        for _ in range(20):
            handle.write(("y" * 999 + "\n") * 500)
    assert "line 2" in failure(path)


def test_missing_offers_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, "{}", "tickets.jsonl")
    message = failure(tmp_path / "tikets.jsonl")
    assert "no such file" in message and str(tmp_path / "tickets.jsonl") in message
    assert "folder" in failure(tmp_path / "nowhere" / "rows.jsonl")
    assert "did you mean" not in failure(tmp_path / "absent.jsonl")  # the same ending makes no two names alike


@pytest.mark.parametrize("content", ["", "\n \n\n", b"\xef\xbb\xbf"])
def test_empty(tmp_path: Path, content: bytes | str) -> None:
    assert "empty" in failure(write(tmp_path, content))


def test_header_only_has_no_records(tmp_path: Path) -> None:
    assert values(write(tmp_path, "a,b\n", "rows.csv")) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x00\x01\x02\x03" * 100, "NUL"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"\x1f\x8b\x08\x00abc", "gzip"),
        (b"PK\x03\x04zip", "spreadsheet"),
        (b"\x80\x04\x95pickle", "pickle"),
        (b"%PDF-1.7", "PDF"),
        (bytes(range(1, 32)) * 30, "binary"),
        ('{"a": 1}\n'.encode("utf-16-le"), "UTF-16"),
    ],
)
def test_binary(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in failure(write(tmp_path, content))


def test_a_byte_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    content = b'{"a": "x"}\n' * 5000 + '{"a": "käse"}\n'.encode("latin-1")
    message = failure(write(tmp_path, content))
    assert "line 5001" in message and "0xe4" in message and "iconv" in message


def test_nul_byte_far_into_the_file(tmp_path: Path) -> None:
    assert "line 10001: a NUL byte" in failure(write(tmp_path, b'{"a": "x"}\n' * 10_000 + b'{"a": "\x00"}\n'))


@pytest.mark.parametrize(
    "line", ["{'a': 1}", '{"a": 1', "hello", '{"a": NaN}', "[" * 100_000, '{"a": ' + "1" * 5000 + "}"]
)
def test_a_row_that_is_not_json_is_named_by_line(tmp_path: Path, line: str) -> None:
    message = failure(write(tmp_path, '{"a": 1}\n' * 6 + line + "\n"))
    assert "line 7: not JSON" in message and len(message) < 400


@pytest.mark.parametrize(("line", "says"), [("[1]", "a list"), ("3", "a number"), ('"x"', "a text"), ("null", "null")])
def test_a_row_that_is_no_object(tmp_path: Path, line: str, says: str) -> None:
    message = failure(write(tmp_path, '{"a": 1}\n' + line))
    assert "line 2" in message and says in message


def test_neither_lines_nor_table(tmp_path: Path) -> None:
    assert "one for each line" in failure(write(tmp_path, "just a sentence\n", "rows.txt"))


def test_ten_gigabytes_fail_at_once_and_in_little_memory(tmp_path: Path) -> None:
    zeros, lines = tmp_path / "zeros.jsonl", tmp_path / "lines.jsonl"
    for path, head in ((zeros, b""), (lines, b'{"prompt": "p", "completion": "c"}\n')):
        path.write_bytes(head)
        os.truncate(path, 10 * 2**30)
    tracemalloc.start()
    started = time.monotonic()
    assert "NUL" in failure(zeros)
    lines.write_bytes(b'{"a": 1}\n' * 10_000)  # its first block is sound
    os.truncate(lines, 10 * 2**30)
    message = failure(lines)
    assert "10.0 GiB" in message and "256 MiB" in message
    assert values(lines, limit=3) == [{"a": 1}] * 3
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - started < 5
    assert peak < 8 * 2**20


def test_bounds_on_rows_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, '{"a": 1}\n' * 11)
    monkeypatch.setattr(formats, "MAX_ROWS", 10)
    assert "more than 10 rows" in failure(path)
    assert len(values(path, limit=11)) == 11
    monkeypatch.setattr(formats, "MAX_LINE", 100)
    assert "line 2: longer than 100" in failure(write(tmp_path, '{"a": 1}\n{"a": "' + "x" * 100 + '"}\n'))
    wide = json.dumps({str(i): i for i in range(20)})
    monkeypatch.setattr(formats, "MAX_LINE", 10_000)
    monkeypatch.setattr(formats, "MAX_COLUMNS", 19)
    assert "20 columns" in failure(write(tmp_path, wide))


def test_a_limit_below_one(tmp_path: Path) -> None:
    assert "limit of 0" in failure(write(tmp_path, "{}"), limit=0)


def test_devices_and_odd_paths() -> None:
    assert "device" in failure(Path("/dev/zero"))
    with pytest.raises(DataError, match="not a path"):
        values(Path("a\0b"))


def test_folder_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"p{i}", "completion": "c", "n": i} for i in range(5)]
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(tmp_path / "saved")
    assert values(tmp_path / "saved") == rows
    made.to_parquet(tmp_path / "rows.parquet")
    assert values(tmp_path / "rows.parquet", limit=2) == rows[:2]
    assert values(tmp_path / "saved", limit=2) == rows[:2]
    datasets.DatasetDict({"train": made, "dev": made}).save_to_disk(tmp_path / "both")
    assert str(tmp_path / "both" / "dev") in failure(tmp_path / "both")
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "one")
    assert values(tmp_path / "one") == rows
    (tmp_path / "many").mkdir()
    for part in ("a", "b"):
        made.to_parquet(tmp_path / "many" / f"{part}.parquet")
    assert values(tmp_path / "many") == rows * 2
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"damaged")
    assert "cannot be read" in failure(tmp_path / "saved")
    assert "Parquet" in failure(write(tmp_path, b"PAR1 damaged", "bad.parquet"))


def test_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    assert "notes" in failure(tmp_path)


def test_datasets_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def absent(name: str) -> Any:
        raise ImportError(name)

    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setattr(importlib, "import_module", absent)
    assert "pip install datasets" in failure(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "{}")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    assert "Permission denied" in failure(path)
