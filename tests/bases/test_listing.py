"""The list of bases."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from whit.bases import catalogue, list_bases, listing
from whit.bases.listing import count_parameters, read_licence
from whit.verbs.bases import bases

KEYS = {"name", "parameters", "bytes", "present", "licence", "description"}


def test_own_bases_come_first(cache: Path) -> None:
    names = [item.name for item in list_bases()]
    assert names[:4] == ["eeny", "meeny", "smollm2", "gemma3-270m"]


def test_what_json_promises(cache: Path) -> None:
    document = bases().to_json()
    assert all(set(entry) == KEYS for entry in document)
    smollm2 = next(entry for entry in document if entry["name"] == "smollm2")
    assert smollm2["parameters"] == 134_515_008 and smollm2["bytes"] == 98_362_432
    assert smollm2["present"] is False and smollm2["licence"] == "Apache-2.0"


def test_text_names_every_base(cache: Path) -> None:
    lines = bases().to_text().splitlines()
    assert lines[0].split()[:4] == ["NAME", "PARAMETERS", "SIZE", "HERE"]
    assert [line.split()[0] for line in lines[1:]] == [item.name for item in list_bases()]


def test_what_was_pulled_is_present(cache: Path, tiny_folder: Path) -> None:
    target = cache / "bases" / "hub" / "me--mine"
    target.mkdir(parents=True)
    for item in tiny_folder.iterdir():
        (target / item.name).write_bytes(item.read_bytes())
    (target / "README.md").write_text("---\ntags: [x]\nlicense: 'mit'\n---\n# Mine\n")
    (target.parent / ".half--done.pulling").mkdir()
    found = {item.name: item for item in list_bases()}
    assert found["me/mine"].present and found["me/mine"].licence == "mit"
    assert found["me/mine"].parameters == 98_624 - 0
    assert not any("half" in name for name in found)


def test_a_built_in_file_is_read_for_its_size(
    cache: Path, tiny_gguf: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf("Q8_0")
    monkeypatch.setattr(listing, "builtin_path", lambda item: path)
    own = list_bases()[0]
    assert own.present and own.bytes == path.stat().st_size and own.parameters == count_parameters(path) == 98_624


def test_a_damaged_base_is_listed_without_figures(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    assert count_parameters(tmp_path / "x.gguf") is None
    assert count_parameters(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "unknown"),
        ("# no front matter\nlicense: mit", "unknown"),
        ("---\nlanguage: en\n---\nlicense: mit", "unknown"),
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\nlicense: " + "x" * 500, "x" * 80),
    ],
)
def test_licences(tmp_path: Path, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "README.md").write_text(content)
    assert read_licence(tmp_path) == expected


def test_the_catalogue_adds_up() -> None:
    for item in catalogue.KNOWN.values():
        assert sum(part.member_bytes for part in item.parts) == item.bytes
        for digest in [item.sha256, *(part.wheel_sha256 for part in item.parts)]:
            assert len(digest) == 64 and math.log2(int(digest, 16) + 1) > 200
        for part in item.parts:
            assert not Path(part.member).is_absolute() and ".." not in part.member
