"""Records from a file: JSON lines, a JSON array, CSV, TSV, Parquet, or a folder of `datasets`.

Promises that a file is streamed and bounded: a file that is binary, far too big or broken on its first line
fails after its first block, with one `DataError` that names file and line. Knows nothing of prompts,
completions or of which columns are wanted.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from whit.errors import DataError

MAX_FILE_BYTES = 256 * 2**20
MAX_ARRAY_BYTES = 64 * 2**20
MAX_ROWS = 1_000_000
MAX_LINE = 2 * 2**20
MAX_COLUMNS = 1_000

_HEAD = 64 * 1024
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_ESCAPED = re.compile("[\udc80-\udcff]")  # how surrogateescape writes a byte that is not UTF-8
_MAGIC = (
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"PK\x03\x04", "a zip or a spreadsheet: save it as CSV first"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet or document: save it as CSV first"),
    (b"SQLite format 3", "a database: export its table as CSV first"),
    (b"GGUF", "a GGUF model, not rows"),
    (b"%PDF", "a PDF, not rows"),
    (b"\x80\x04", "a pickle, which whit never opens: save it as JSON lines"),
    (b"\x7fELF", "a program, not rows"),
)


@dataclass(frozen=True)
class Record:
    """One row as the file has it: its columns, and where it stands (`line` counts from 1)."""

    values: dict[str, Any]
    place: str
    line: int | None = None


def read_records(path: Path, limit: int | None = None) -> Iterator[Record]:
    """Yield the records of `path`, at most `limit` of them; raise `DataError` where they are no records.

    With a `limit`, a file of lines may be of any size: no more of it is read than is asked for.
    """
    if limit is not None and limit < 1:
        raise DataError(f"{path}: a limit of {limit} rows leaves nothing to read; give 1 or more")
    records = _open(path, limit)
    if limit is not None:
        yield from islice(records, limit)
        return
    for count, record in enumerate(records):
        if count >= MAX_ROWS:
            raise DataError(f"{path}: more than {MAX_ROWS:,} rows; give a smaller file, or a limit of rows")
        yield record


def _open(path: Path, limit: int | None) -> Iterator[Record]:
    if "\0" in str(path):
        raise DataError(f"{str(path)!r}: not a path: it holds a NUL character")
    try:
        if path.is_dir():
            return _folder(path)
        if not path.exists():
            raise DataError(f"{path}: there is no such file{_near(path)}")
        if not path.is_file():
            raise DataError(f"{path}: not a file of rows but a device or a pipe")
        with path.open("rb") as handle:
            head = handle.read(_HEAD)
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if head[:4] == b"PAR1":
        return _parquet(path, size)
    if head[:6] == b"ARROW1":
        raise DataError(f"{path}: an Arrow file; give the folder that `save_to_disk` wrote, or Parquet")
    encoding = _encoding(path, head)
    text = head.decode(encoding, errors="ignore").lstrip()
    if not text and size <= _HEAD:
        raise DataError(f"{path}: the file is empty; whit needs one row for each line")
    kind = _kind(path, text)
    if size > (MAX_ARRAY_BYTES if kind == "array" else MAX_FILE_BYTES) and (limit is None or kind == "array"):
        bound = MAX_ARRAY_BYTES if kind == "array" else MAX_FILE_BYTES
        advice = "save it as JSON lines" if kind == "array" else "give a smaller file, or a limit of rows"
        raise DataError(f"{path}: {_size(size)}, more than the {_size(bound)} that whit reads; {advice}")
    if kind == "array":
        return _array(path, encoding)
    if kind == "lines":
        return _json_lines(path, encoding)
    return _table(path, encoding, kind)


def _near(path: Path) -> str:
    try:
        names = [entry.name for entry in islice(os.scandir(path.parent), 1_000)]
    except OSError:
        return f"; its folder {path.parent} is not there either"
    # Of names without what they all end in: it would make any two of them alike.
    by_stem = {Path(name).stem: name for name in names}
    near = get_close_matches(path.stem, by_stem, n=1)
    return f"; did you mean {path.with_name(by_stem[near[0]])}?" if near else ""


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _encoding(path: Path, head: bytes) -> str:
    for bom, encoding in _BOMS:
        if head.startswith(bom):
            return encoding
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise DataError(f"{path}: {what}")
    if b"\0" in head:
        hint = ""
        if head[1::2].count(0) > len(head) // 4 or head[0::2].count(0) > len(head) // 4:
            hint = "; should it be UTF-16 without its mark, save it as UTF-8" if head.strip(b"\0") else ""
        raise DataError(f"{path}: not text: it holds NUL bytes{hint}")
    if sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head) > len(head) // 20:
        raise DataError(f"{path}: not text but a binary file; whit reads JSON lines, CSV, TSV and Parquet")
    return "utf-8"


def _kind(path: Path, text: str) -> str:
    """`lines`, `array`, or the delimiter of a table."""
    suffix = path.suffix.lower()
    first = text[:1]
    if suffix in (".jsonl", ".ndjson"):
        return "array" if first == "[" and text[1:].lstrip()[:1] in ("{", "") else "lines"
    if suffix == ".tsv":
        return "\t"
    header = text.splitlines()[0] if text else ""
    delimiter = max(",;\t", key=header.count)
    if suffix == ".csv":
        return delimiter if header.count(delimiter) else ","
    if first == "[":
        return "array"
    if first == "{" or suffix == ".json":
        return "lines"
    if header.count(delimiter):
        return delimiter
    raise DataError(
        f"{path}: neither JSON lines nor a table: it starts with {header[:40]!r}; "
        'whit reads rows such as {"prompt": "…", "completion": "…"}, one for each line, or CSV with a header'
    )


def _text_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """Lines with their endings, from 1; each decoded, bounded and free of NUL."""
    # surrogateescape lets a byte that is not UTF-8 through, so that its line can be named.
    escape = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    number = 0
    try:
        with path.open(encoding=encoding, errors=escape, newline="") as handle:
            while line := handle.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise DataError(f"{path}, line {number}: longer than {MAX_LINE:,} characters")
                if not line.isascii():
                    _decodable(path, number, line)
                if "\0" in line:
                    raise DataError(f"{path}, line {number}: a NUL byte; the file is binary or damaged")
                yield number, line
    except UnicodeError as error:
        raise DataError(f"{path}, line {number + 1}: not {encoding} as its mark says: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decodable(path: Path, number: int, line: str) -> None:
    escaped = _ESCAPED.search(line)
    if escaped:
        byte = ord(escaped.group()) - 0xDC00
        raise DataError(
            f"{path}, line {number}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8, for example "
            f"with `iconv -f WINDOWS-1252 -t UTF-8`"
        )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _mapping(path: Path, place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {place}: a row must be a JSON object with named columns, not {_json_type(value)}")
    if len(value) > MAX_COLUMNS:
        raise DataError(f"{path}, {place}: {len(value):,} columns, more than {MAX_COLUMNS:,}")
    return value


def _json_type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}.get(
        type(value), type(value).__name__
    )


def _json_lines(path: Path, encoding: str) -> Iterator[Record]:
    for number, line in _text_lines(path, encoding):
        if not line.strip():
            continue
        try:
            value = _parse(line)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
            start = line.strip()[:60]
            raise DataError(f"{path}, line {number}: not JSON ({reason}{where}): {start!r}") from None
        yield Record(_mapping(path, f"line {number}", value), f"line {number}", number)


def _array(path: Path, encoding: str) -> Iterator[Record]:
    text = "".join(line for _, line in _text_lines(path, encoding))
    try:
        values = _parse(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    del text
    if not isinstance(values, list):
        raise DataError(f"{path}: a list of rows is expected, not {_json_type(values)}")
    for item, value in enumerate(values, 1):
        yield Record(_mapping(path, f"item {item}", value), f"item {item}")


def _table(path: Path, encoding: str, delimiter: str) -> Iterator[Record]:
    reached = 0  # the last line handed to the reader
    taken = 0  # characters handed out since the last whole record

    def lines() -> Iterator[str]:
        nonlocal reached, taken
        for number, line in _text_lines(path, encoding):
            reached, taken = number, taken + len(line)
            if taken > MAX_LINE:
                raise DataError(
                    f"{path}, line {started}: a row longer than {MAX_LINE:,} characters; a quote not closed?"
                )
            yield line

    started = 1
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            place, started, taken = started, reached + 1, 0
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _header(path, cells)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {place}: {len(cells)} cells, but the header names {len(header)} columns "
                    f"({', '.join(header[:20])}); put a cell that holds {delimiter!r} in quotes"
                )
            yield Record(dict(zip(header, cells, strict=True)), f"line {place}", place)
    except csv.Error as error:
        raise DataError(f"{path}, line {started}: not a table: {error}") from None


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{path}, line 1: {len(names):,} columns, more than {MAX_COLUMNS:,}")
    for name in names:
        if not name:
            raise DataError(f"{path}, line 1: a column without a name; the first line must name every column")
        if names.count(name) > 1:
            raise DataError(f"{path}, line 1: two columns are called {name!r}")
    return names


def _require(module: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(f"{path}: this needs `pip install datasets`; or save it as JSON lines") from None


def _parquet(path: Path, size: int) -> Iterator[Record]:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path}: {_size(size)}, more than the {_size(MAX_FILE_BYTES)} that whit reads")
    parquet = _require("pyarrow.parquet", path)
    count = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    count += 1
                    yield Record(dict(values), f"row {count}")
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are of these kinds
        raise DataError(f"{path}: a Parquet file that cannot be read: {str(error)[:200]}") from error


def _folder(path: Path) -> Iterator[Record]:
    total = sum(entry.stat().st_size for entry in islice(path.rglob("*"), 10_000) if entry.is_file())
    if total > MAX_FILE_BYTES:
        raise DataError(f"{path}: {_size(total)}, more than the {_size(MAX_FILE_BYTES)} that whit reads")
    if (path / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in path.iterdir() if (entry / "state.json").is_file())
        if splits == ["train"] or len(splits) == 1:
            return _saved(path / splits[0])
        raise DataError(f"{path}: several data sets; name one: {', '.join(str(path / s) for s in splits)}")
    if (path / "state.json").is_file():
        return _saved(path)
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    if files:
        return (
            record if len(files) == 1 else Record(record.values, f"{file.name}, {record.place}")
            for file in files
            for record in _parquet(file, file.stat().st_size)
        )
    names = ", ".join(sorted(entry.name for entry in islice(path.iterdir(), 8))) or "nothing"
    raise DataError(f"{path}: not a folder that `datasets` saved (it holds {names}); give a file, or such a folder")


def _saved(path: Path) -> Iterator[Record]:
    datasets = _require("datasets", path)
    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # damaged folders raise whatever they meet first
        raise DataError(f"{path}: cannot be read by `datasets`: {str(error)[:200]}") from error
    for count, values in enumerate(rows, 1):
        yield Record(dict(values), f"row {count}")
