"""`whit bake`: a guide becomes an adapter, with a local teacher and one behind an address, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

from test_teacher import Server, text

from whit.errors import DataError, TrainingError, UsageError
from whit.evaluation.card import load_card
from whit.settings import BakeSettings
from whit.talk import Talk
from whit.testing import write_rows
from whit.verbs.bake import bake
from whit.verbs.baked import BakeResult

GUIDE = "Is it card or cash? Answer with one word. " * 2


class Said(Talk):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self.counts: list[tuple[str, int, int]] = []

    def progress(self, what: str, done: int, total: int, *args: Any, **options: Any) -> None:
        self.counts.append((what, done, total))

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guide") / "guide.md"
    path.write_text(GUIDE, "utf-8")
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("inputs") / "inputs.jsonl", 90)


def options(base: Path, guide: Path, inputs: Path, out: Path, **more: Any) -> BakeSettings:
    given: dict[str, Any] = {
        "base": str(base), "dtype": "float32", "kind": "lora", "rank": 4, "epochs": 4.0, "evaluations": 2, "batch": 8,
        "learning_rate": 5e-3, "max_tokens": 4, "threads": 1, **more,
    }  # fmt: skip
    return BakeSettings(guide=guide, inputs=inputs, out=out, **given)


@pytest.fixture(scope="module")
def baked(
    cache: Path, base: Path, guide: Path, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BakeResult, Said]:
    talk = Said()
    folder = tmp_path_factory.mktemp("baked") / "out"
    return bake(options(base, guide, inputs, folder), talk=talk), talk


def test_the_base_teaches_itself(baked: tuple[BakeResult, Said]) -> None:
    result, talk = baked
    plain = result.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["agreement"] == plain["tuned"] and plain["base_agreement"] == plain["base"]
    assert plain["saved"]["tokens_with"] > plain["saved"]["tokens_without"] + 20
    assert plain["saved"]["tokens_saved"] > 0.3 and plain["saved"]["ms_with"] > 0
    assert plain["gold"]["rows"] == plain["rows"] and 0 <= plain["gold"]["bare"] <= 1
    assert plain["before"] is not None and "distributions" not in plain
    # A random base knows nothing: the guide makes it no better, which is said before training.
    first = next(at for at, line in enumerate(talk.lines) if "not shown to be better than the bare base" in line)
    assert first < next(at for at, line in enumerate(talk.lines) if line.startswith("training"))
    card = load_card(result.folder / "card.json")
    assert card.instruction == "" and card.command.startswith("whit bake guide.md inputs.jsonl --base ")
    assert (result.folder / "bake.json").is_file() and not (result.folder / "state").exists()
    said = result.to_text()
    assert "as the teacher" in said and "prompt tokens" in said and "Lost: " in said


def test_card_and_report_say_what_baking_is_for(baked: tuple[BakeResult, Said]) -> None:
    result = baked[0]
    card = load_card(result.folder / "card.json")
    assert card == result.card and card.baked.startswith("Baked from an instruction of ")
    for part in ("prompt tokens", " ms ", "Gold answers: bare base", "rows that the teacher had right", "were cut off"):
        assert part in card.baked
    report, page = ((result.folder / name).read_text("utf-8") for name in ("report.html", "README.md"))
    assert "What was baked" in report and "prompt tokens" in report and "Gold answers: bare base" in report
    assert "whit bake guide.md" in report and "whit train inputs" not in report
    assert "## What was baked" in page and "prompt tokens" in page and "whit bake guide.md" in page
    kept = json.loads((result.folder / "bake.json").read_text("utf-8"))
    assert kept == {key: value for key, value in result.to_json().items() if key != "adapter"} and "lost" in kept


def test_answers_are_kept_and_given_once(baked: tuple[BakeResult, Said], base: Path, guide: Path, inputs: Path) -> None:
    kept = (baked[0].folder / "teacher.jsonl").read_text("utf-8")
    assert len(kept.splitlines()) == 91

    talk = Said()
    other: dict[str, Any] = {"epochs": 0.5, "kind": "xs", "learning_rate": 0.01}
    with pytest.raises(UsageError, match="--overwrite"):
        bake(options(base, guide, inputs, baked[0].folder, **other))
    again = bake(options(base, guide, inputs, baked[0].folder, overwrite=True, **other), talk=talk)
    assert any(line.startswith("90 of 90 answers of the teacher are here already") for line in talk.lines)
    assert again.card.kind == "xs" and (again.folder / "teacher.jsonl").read_text("utf-8") == kept
    changed = guide.with_name("other.md")
    changed.write_text(GUIDE + "Be brief.", "utf-8")
    with pytest.raises(TrainingError, match="of another teacher, instruction or limit"):
        bake(options(base, changed, inputs, baked[0].folder, overwrite=True))


def test_a_teacher_behind_an_address_without_gold(base: Path, guide: Path, inputs: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.jsonl"
    lines = [json.loads(line) for line in inputs.read_text("utf-8").splitlines()]
    bare.write_text("".join(json.dumps({"id": row["id"], "prompt": row["prompt"]}) + "\n" for row in lines), "utf-8")
    server = Server()
    server.answer = lambda body, number: (
        200, text("card" if "card" in body["messages"][-1]["content"] else "cash"),
    )  # fmt: skip
    try:
        talk = Said()
        settings = options(
            base, guide, bare, tmp_path / "out", teacher_url=server.url, teacher_model="m", rank=8, epochs=8.0
        )
        result = bake(settings, talk=talk)
    finally:
        server.close()
    assert len(server.asked) == 90 and server.asked[0]["messages"][0]["content"] == GUIDE.strip()
    assert result.gold is None and result.to_json()["gold"] is None and result.lost == ()
    assert any("no gold answers" in line for line in talk.lines)
    # It learned what the teacher does, which is easy: the label stands in the input.
    assert result.card.result.tuned > result.card.result.base + 0.3
    assert "teacher_key" not in json.dumps(load_card(result.folder / "card.json").to_json()["settings"])


def test_what_cannot_be_baked(base: Path, guide: Path, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="cannot be read"):
        bake(options(base, tmp_path / "none.md", inputs, out))
    empty = tmp_path / "empty.md"
    empty.write_text(" \n")
    with pytest.raises(DataError, match="is empty"):
        bake(options(base, empty, inputs, out))
    binary = tmp_path / "binary.md"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not text in UTF-8"):
        bake(options(base, binary, inputs, out))
    long = tmp_path / "long.md"
    long.write_text("all the words of a very long guide " * 60)
    with pytest.raises(UsageError, match=r"tokens leave no room in .* context of 160; shorten it, or let another"):
        bake(options(base, long, inputs, out))
    with pytest.raises(UsageError, match="add --teacher-model"):
        bake(options(base, guide, inputs, out, teacher_url="http://127.0.0.1:9/v1"))
    # Told before the base is loaded, or even looked for.
    with pytest.raises(UsageError, match="give an address such as https"):
        bake(options(tmp_path / "nosuch", guide, inputs, out, teacher_url="ftp://x/v1", teacher_model="m"))
    hollow = tmp_path / "hollow.jsonl"
    hollow.write_text('{"prompt": "a"}\n{"prompt": " "}\n')
    with pytest.raises(DataError, match="no input; fill it in"):
        bake(options(base, guide, hollow, out))


def test_both_sides_are_timed_to_the_same_length(base: Path, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from whit.bases import load_base
    from whit.data.rows import Row, Turn
    from whit.evaluation.decoding import Decoder
    from whit.evaluation.proof import Examiner
    from whit.evaluation.scoring import ExactScorer
    from whit.verbs import common
    from whit.verbs.baked import Saved, _saved

    loaded = load_base(str(base), dtype="float32")
    adapter = trained("lora").adapter
    loaded.stop_ids = tuple(range(384))  # every answer ends at once
    sizes: list[int] = []
    answers = Decoder.answers

    def watched(self: Decoder, *args: Any, **options: Any) -> list[list[int]]:
        found = answers(self, *args, **options)
        sizes.extend(map(len, found))
        return found

    monkeypatch.setattr(Decoder, "answers", watched)
    rows = [Row(f"r{at}", (Turn("user", f"card {at}"),), "") for at in range(4)]
    teach, mine = (Examiner(loaded, ExactScorer(), said, 8) for said in (GUIDE, None))
    wanted = len(loaded.encode("cash")) + 1
    with common.bound_to(loaded, adapter, check=False) as bound:
        saved = _saved(teach, mine, rows, {row.id: "cash" for row in rows}, bound)
    assert sizes == [wanted] * 10 and saved.answer_tokens == wanted
    assert "it costs 42 ms more than 21 (answers of 5 tokens" in Saved(80, 40, 21, 63, 5).sentence()
    assert "40 of 80 prompt tokens (50 %), 42 of 63 ms (" in Saved(80, 40, 63, 21, 5).sentence()


def test_answers_that_were_cut_off_are_no_whole_answers(
    baked: tuple[BakeResult, Said], base: Path, guide: Path, inputs: Path, tmp_path: Path
) -> None:
    # A random base hardly ever ends by itself; its limit was asked for.
    assert baked[0].cut > 45 and any(
        f"{baked[0].cut} of 90 answers of the teacher were cut" in x for x in baked[1].lines
    )
    with pytest.raises(UsageError, match=r"of 90 answers of the teacher are cut off at \d+ tokens: raise --max-tokens"):
        bake(options(base, guide, inputs, tmp_path / "own", max_tokens=None))
    server = Server()
    often = 3
    server.answer = lambda body, number: (200, text(f"it is {number}", "length" if number % often == 0 else "stop"))
    more: dict[str, Any] = {"teacher_url": server.url, "teacher_model": "m", "epochs": 0.3, "evaluations": 1}
    try:
        with pytest.raises(UsageError, match="30 of 90 answers of the teacher are cut off at 4 tokens"):
            bake(options(base, guide, inputs, tmp_path / "out", **more))
        often = 10
        talk = Said()
        result = bake(options(base, guide, inputs, tmp_path / "out", **{**more, "max_tokens": 8}), talk=talk)
    finally:
        server.close()
    # What was here already is not counted as done in no time.
    counts = [found[1:] for found in talk.counts if found[0] == "the teacher's answers"]
    assert counts[0] == (0, 30) and counts[-1] == (30, 30)
    # Asked again for the thirty, of which each tenth was cut once more.
    assert len(server.asked) == 120 and result.cut == 3 == result.to_json()["cut"]
    kept = [json.loads(line) for line in (result.folder / "teacher.jsonl").read_text("utf-8").splitlines()[1:]]
    assert sum("cut" in item for item in kept) == 3
    data = result.card.data
    assert 87 <= data.train + data.validation + data.test <= 90 and "were cut off" in result.folder.joinpath(
        "report.html"
    ).read_text("utf-8")


def test_a_function_judges_gold_answers_alone(base: Path, guide: Path, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def always(answer, row):\n    return 1.0\n", "utf-8")
    talk = Said()
    server = Server()
    server.answer = lambda body, number: (200, text(f"it is {number}"))
    more: dict[str, Any] = {"teacher_url": server.url, "teacher_model": "m", "epochs": 0.3, "evaluations": 1}
    try:
        score = f"{tmp_path / 'mine.py'}:always"
        result = bake(options(base, guide, inputs, tmp_path / "out", score=score, limit=60, **more), talk=talk)
    finally:
        server.close()
    assert any(
        "judges gold answers alone; the teacher is agreed with where an answer is exactly" in x for x in talk.lines
    )
    assert result.card.scorer["kind"] == "exact" and "agreement is with m at" in result.card.baked
    assert ", exactly." in result.card.baked
    assert result.gold is not None and result.gold.base == result.gold.tuned == 1.0 > result.card.result.tuned


def test_a_teacher_that_always_says_the_same_is_told(base: Path, guide: Path, inputs: Path, tmp_path: Path) -> None:
    server = Server()
    try:
        settings = options(base, guide, inputs, tmp_path / "out", teacher_url=server.url, teacher_model="m")
        with pytest.raises(DataError, match="gives every input the answer 'yes': nothing to bake"):
            bake(settings)
    finally:
        server.close()


def test_examples_are_baked_with_the_guide(base: Path, guide: Path, inputs: Path, tmp_path: Path) -> None:
    examples = tmp_path / "shots.jsonl"
    rows = [("may i use my card", "card"), ("only coins here", "cash")]
    examples.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows), "utf-8")
    server = Server()
    try:
        server.answer = lambda body, number: (200, text(("card", "cash")[number % 2]))
        result = bake(
            options(
                base, guide, inputs, tmp_path / "out", examples=examples, teacher_url=server.url, teacher_model="big",
                epochs=0.3, evaluations=1, limit=60,
            )
        )  # fmt: skip
        before = [(each["role"], each["content"]) for each in server.asked[0]["messages"][:-1]]
        assert before == [
            ("system", GUIDE.strip()), ("user", "may i use my card"), ("assistant", "card"),
            ("user", "only coins here"), ("assistant", "cash"),
        ]  # fmt: skip
        asked = len(server.asked)
        # Other examples are another teacher.
        examples.write_text(examples.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
        with pytest.raises(TrainingError, match="of another teacher"):
            bake(
                options(
                    base, guide, inputs, tmp_path / "out", examples=examples, teacher_url=server.url,
                    teacher_model="big", epochs=0.3, evaluations=1, limit=60,
                )
            )  # fmt: skip
        assert len(server.asked) == asked
    finally:
        server.close()
    assert "--examples shots.jsonl" in result.card.command
    saved = result.to_json()["saved"]
    assert saved["tokens_with"] - saved["tokens_without"] > 40
