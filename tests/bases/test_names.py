"""Names are names: what each means, and what is no name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whit.bases import resolve
from whit.bases.cache import bases_folder
from whit.errors import BaseError


@pytest.mark.parametrize("name", ["eeny", "meeny"])
def test_built_in_names(name: str) -> None:
    found = resolve(name)
    assert found.kind == "builtin" and found.path.name == f"{name}.gguf"


def test_known_names_lie_in_the_cache(cache: Path) -> None:
    for name in ("smollm2", "gemma3-270m"):
        found = resolve(name)
        assert found.kind == "known" and found.path.is_relative_to(cache) and not found.present


def test_a_file_and_a_folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(tiny_folder)).kind == resolve(tiny_folder).kind == "folder"
    (tmp_path / "x.gguf").write_bytes(b"x")
    assert resolve(tmp_path / "x.gguf").kind == "file"
    monkeypatch.chdir(tmp_path)
    assert resolve("x.gguf").kind == resolve("./x.gguf").kind == "file"


def test_a_known_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert resolve("smollm2").kind == "known"
    assert resolve("./smollm2").kind == "folder"
    assert resolve(Path("smollm2")).kind == "folder"


def test_a_folder_wins_over_a_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("models/mine").kind == "hub"
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert resolve("models/mine").kind == "folder"
    assert resolve("models/mine", paths=False).kind == "hub"


def test_a_hub_repository(cache: Path) -> None:
    found = resolve("HuggingFaceTB/SmolLM2-135M@main")
    assert (found.kind, found.repository, found.revision) == ("hub", "HuggingFaceTB/SmolLM2-135M", "main")
    assert found.path.parent == cache / "bases" / "hub"
    assert resolve("a/b").path != resolve("a/b@b").path


@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "/etc/passwd", "~/x", "./x", "..", ".", "x/..", "C:\\x", "a\\b", "x.gguf", "/"]
)
def test_a_path_is_no_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"x")
    with pytest.raises(BaseError, match="is a path; a name"):
        resolve(name, paths=False)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\x1b[31mred", "smollm2\r", "tab\tbed", "\x7f", "\x9b"])
@pytest.mark.parametrize("paths", [True, False])
def test_control_characters_are_refused_and_not_echoed(name: str, paths: bool) -> None:
    with pytest.raises(BaseError, match="control characters") as caught:
        resolve(name, paths=paths)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", "  ", "x" * 5000])
def test_empty_and_endless_names_are_refused(name: str) -> None:
    with pytest.raises(BaseError, match="must not be empty"):
        resolve(name)


@pytest.mark.parametrize(
    "name", ["-x/y", "a/b/c", "a/-b", "a--b/c", "a/b@", "a b/c", "a/b@../c", ".a/b", "ä/b", "a/b..c"]
)
def test_what_is_no_repository_is_unknown(name: str) -> None:
    with pytest.raises(BaseError):
        resolve(name, paths=False)


def test_a_near_miss_is_told() -> None:
    with pytest.raises(BaseError, match="did you mean smollm2"):
        resolve("smolm2")
    with pytest.raises(BaseError, match="it is not there"):
        resolve("./absent")


@given(st.text(max_size=60))
def test_no_name_leads_out_of_the_cache(name: str) -> None:
    try:
        found = resolve(name, paths=False)
    except BaseError:
        return
    if found.kind != "builtin":
        assert found.path.resolve().is_relative_to(bases_folder().resolve())
        assert ".." not in found.path.parts


def test_resolving_and_listing_import_nothing_heavy() -> None:
    code = (
        "import sys; from whit.bases import resolve, list_bases; resolve('smollm2'); list_bases(); "
        "print(*{'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
