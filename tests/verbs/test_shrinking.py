"""`whit train --teacher`: what a larger adapter expects is learned by a smaller one, and proved beside it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from whit.adapters.adapter import Adapter
from whit.bases import load_base
from whit.errors import DataError, UsageError, WrongBase
from whit.evaluation.proof import Examiner
from whit.evaluation.scoring import make_scorer
from whit.settings import TrainSettings
from whit.talk import Talk
from whit.verbs import common, shrinking
from whit.verbs.personal import command
from whit.verbs.runs import read_and_split
from whit.verbs.train import train


@pytest.fixture(scope="module")
def plain(base: Path, rows: Path) -> TrainSettings:
    return TrainSettings(
        data=rows, base=str(base), dtype="float32", epochs=2.0, batch=8, shots=(), instruction="Sort it.", threads=1,
        evaluations=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(plain: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "big"
    train(replace(plain, kind="lora", rank=4, out=out, learning_rate=5e-3, baselines=False))
    return out


@pytest.fixture(scope="module")
def unlabelled(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs without answers, one of which the labelled rows have too."""
    path = tmp_path_factory.mktemp("unlabelled") / "more.jsonl"
    known = [json.loads(line)["prompt"] for line in rows.read_text().splitlines()]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in [*known, "zz 17 qq", "something else"]))
    return path


@pytest.fixture(scope="module")
def pupil(plain: TrainSettings, teacher: Path, unlabelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("pupil") / "small"
    return train(replace(plain, kind="xs", teacher=(teacher,), unlabelled=unlabelled, out=out, learning_rate=0.05))


def test_the_pupil_is_set_beside_its_teacher(pupil: Any, teacher: Path) -> None:
    found = pupil.card.baselines["the teacher"]
    assert found.rows == pupil.card.result.rows and pupil.adapter.kind == "xs"
    report = (pupil.folder / "report.html").read_text()
    assert f"{Adapter.load(teacher).numbers:,} numbers" in report and "its teacher" in report
    assert "--teacher big" in pupil.card.command and "--unlabelled more.jsonl" in pupil.card.command
    assert str(teacher.parent) not in (pupil.folder / "card.json").read_text()


def test_what_is_learned_is_what_the_teacher_expects(
    plain: TrainSettings, teacher: Path, unlabelled: Path, capsys: Any
) -> None:
    settings = replace(plain, teacher=(teacher,), unlabelled=unlabelled)
    split = read_and_split(settings, Talk(quiet=True))
    base = load_base(plain.base, dtype="float32")
    examiner = Examiner(base, make_scorer("auto", split.train), settings.instruction, 8)
    encoded = examiner.encode(split.train, learn=True)
    found = shrinking.lesson(settings, split, examiner, encoded, Talk())
    assert "are like held-out ones: left out" in capsys.readouterr().err
    assert [row.row.id for row in found.rows[: len(encoded)]] == [row.id for row in split.train]
    held = {row.prompt for row in (*split.test, *split.validation, *split.train)}
    more = found.rows[len(encoded) :]
    assert more and not held & {row.row.prompt for row in more}
    assert len(found.told) == len(found.rows)
    with common.bound_to(base, Adapter.load(teacher)) as bound, bound.active(), torch.no_grad():
        for row, told in [(found.rows[at], found.told[at]) for at in (0, 5, len(encoded))]:
            ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
            logs = base.model(ids).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
            assert torch.allclose(told.logs, logs.topk(told.logs.shape[1]).values, atol=1e-4)
    answers = examiner.answer(examiner.encode([row.row for row in more]), None)
    assert [row.row.completion for row in more] != answers  # they are the teacher's, not the base's


def test_a_pupil_comes_nearer_to_its_teacher(pupil: Any, plain: TrainSettings, teacher: Path) -> None:
    split = read_and_split(plain, Talk(quiet=True))
    base = load_base(plain.base, dtype="float32")
    examiner = Examiner(base, make_scorer("auto", split.train), plain.instruction, 8)
    rows = examiner.encode(split.test, learn=True)
    from whit.training.batching import collate
    from whit.training.distil import distributions, divergence
    from whit.training.sft import logits_of

    with common.bound_to(base, Adapter.load(teacher)) as bound, bound.active():
        told = distributions(base, rows)

    def apart(adapter: Adapter | None) -> float:
        with torch.no_grad():
            if adapter is None:
                return sum(float(divergence(logits_of(base, collate([row])), one).sum())
                           for row, one in zip(rows, told, strict=True))  # fmt: skip
            with common.bound_to(base, adapter) as bound, bound.active():
                return apart(None)

    assert apart(pupil.adapter) < 0.8 * apart(None)


def test_of_several_teachers_the_mean_is_learned(plain: TrainSettings, teacher: Path, tmp_path: Path) -> None:
    other = train(replace(plain, kind="xs", out=tmp_path / "other", learning_rate=0.1, baselines=False))
    settings = replace(plain, kind="tiny", numbers=13, teacher=(teacher, other.folder), out=tmp_path / "small")
    split = read_and_split(settings, Talk(quiet=True))
    base = load_base(plain.base, dtype="float32")
    examiner = Examiner(base, make_scorer("auto", split.train), settings.instruction, 8)
    encoded = examiner.encode(split.train, learn=True)
    alone, second, both = (
        shrinking.lesson(replace(settings, teacher=some), split, examiner, encoded, Talk(quiet=True))
        for some in ((teacher,), (other.folder,), (teacher, other.folder))
    )
    assert len({alone.run, second.run, both.run}) == 3
    one, two, mean = (found.told[3] for found in (alone, second, both))
    assert torch.equal(mean.ids, one.ids) and not torch.allclose(mean.logs, one.logs, atol=1e-3)
    first = {(at, int(token)): float(log) for at in range(len(two.ids))
             for token, log in zip(two.ids[at], two.logs[at], strict=True)}  # fmt: skip
    checked = 0
    for at in range(len(mean.ids)):
        for token, log, mine in zip(mean.ids[at].tolist(), mean.logs[at].exp(), one.logs[at].exp(), strict=True):
            if (at, token) in first:
                expected = (float(mine) + math.exp(first[at, token])) / 2
                assert float(log) == pytest.approx(expected, abs=1e-4)
                checked += 1
    assert checked > 3
    card = train(settings).card
    assert {"the teacher", "teacher 2"} <= set(card.baselines) and "--teacher big --teacher other" in card.command


def test_killed_and_resumed_it_is_the_same(
    pupil: Any, plain: TrainSettings, teacher: Path, unlabelled: Path, tmp_path: Path
) -> None:
    from whit.errors import Interrupted

    settings = replace(
        plain, kind="xs", teacher=(teacher,), unlabelled=unlabelled, out=tmp_path / "small", learning_rate=0.05
    )

    class Stopping(Talk):
        def progress(self, what: str, done: int, of: int, seconds: float, more: str = "") -> None:
            if what == "training" and done == 5:
                raise Interrupted("enough")

    with pytest.raises(Interrupted):
        train(settings, talk=Stopping(quiet=True))
    again = train(replace(settings, resume=True))
    assert again.adapter.to_bytes() == pupil.adapter.to_bytes()


def test_what_cannot_be_is_told(
    plain: TrainSettings, teacher: Path, unlabelled: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from whit.testing import write_tiny_base

    wanted = replace(plain, teacher=(teacher,), out=tmp_path / "out")
    with pytest.raises(UsageError, match="--unlabelled does nothing"):
        command(replace(wanted, teacher=(), unlabelled=unlabelled))
    with pytest.raises(UsageError, match="--teacher does not go with --kind auto"):
        command(replace(wanted, kind="auto"))
    with pytest.raises(UsageError, match="Sort it"):
        train(replace(wanted, instruction="Something else."))
    with pytest.raises(DataError, match="held out here"):
        train(replace(wanted, seed=9))
    other = write_tiny_base(tmp_path_factory.mktemp("other") / "tiny", layers=3, hidden=32, heads=2, kv_heads=1, ffn=64)
    with pytest.raises(WrongBase):
        train(replace(wanted, base=str(other)))
