"""The folder that `whit bundle` writes: what is in it, what its list says of it, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from whit.errors import BaseError, UsageError, WhitError


def run(out: Path, *adapters: Path, **settings: Any) -> Any:
    from whit.settings import BundleSettings
    from whit.verbs.bundle import bundle as verb

    return verb(BundleSettings(adapters=tuple(map(str, adapters)), out=out, **settings))


def test_every_file_is_listed_with_its_size_and_hash(bundle: Path) -> None:
    about = json.loads((bundle / "bundle.json").read_text("utf-8"))
    listed = about["files"] | {about["base"]["file"]: about["base"]}
    there = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert there == set(listed) | {"bundle.json", "sw.js"}
    for name, entry in listed.items():
        content = (bundle / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"]), name
    assert {"engine/simd.wasm", "engine/relaxed.wasm", "basis/rank-2.basis", "whit.js", "whit.d.ts"} <= there
    # Relative paths alone, so that any sub-path will do; and nothing of this machine.
    for name in there:
        if name.endswith((".html", ".css", ".js", ".json")):
            text = (bundle / name).read_text("utf-8")
            assert str(bundle.parent) not in text and str(Path.home()) not in text, name
            for mark in ('src="/', 'href="/', 'from "/', 'import("/', "url(/"):
                assert mark not in text, (name, mark)


def test_its_size_is_told_and_a_second_one_takes_its_place(adapters: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "page"
    first = run(out, adapters["quiet"], base="eeny")
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    assert (first.bytes, first.files) == (sum(sizes), len(sizes)) and "MB in" in first.to_text()
    second = run(out, base="eeny", title="Only the base")
    assert second.adapters == () and not (out / "adapters").exists()
    assert json.loads((out / "bundle.json").read_text("utf-8"))["title"] == "Only the base"
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_what_is_refused_changes_nothing(adapters: dict[str, Path], tmp_path: Path) -> None:
    from whit.adapters import compact

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep this")
    with pytest.raises(UsageError, match="something else"):
        run(tmp_path / "mine", adapters["quiet"], base="eeny")
    shutil.copytree(adapters["quiet"], tmp_path / "other" / "quiet")
    with pytest.raises(UsageError, match="'quiet'"):
        run(tmp_path / "page", adapters["quiet"], tmp_path / "other" / "quiet", base="eeny")
    with pytest.raises(UsageError, match="nothing to bundle"):
        run(tmp_path / "page")
    held = compact.unpack((adapters["quiet"] / "adapter.whit").read_bytes())
    strange = compact.pack(
        held.spec, held.vector, number_type="bfloat16", base="ab" * 32, basis=held.basis, layers=held.layers
    )
    (tmp_path / "strange.whit").write_bytes(strange)
    with pytest.raises(WhitError, match=r"another base|other base|made for"):
        run(tmp_path / "page", tmp_path / "strange.whit", base="eeny")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep this" and not (tmp_path / "page").exists()


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_a_base_that_is_quantised_when_loaded_is_no_file_to_ship(tmp_path: Path, method: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    with pytest.raises(BaseError, match=rf"eeny:{method}: a page holds the base's file .* trained on eeny$"):
        run(tmp_path / "page", base=f"eeny:{method}")
    assert not (tmp_path / "page").exists()
