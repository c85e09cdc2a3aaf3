"""The learned guess: what it learns, what it promises, what its file holds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from whit.errors import DataError
from whit.routing.choosing import against, features, fit, load_choice, qualities, read_fit_rows


def rows(count: int, seed: int = 0) -> tuple[list[str], list[bool], list[bool]]:
    """The weak tier does what is easy, the strong one nearly all."""
    rng = random.Random(seed)
    easy = [rng.random() < 0.5 for _ in range(count)]
    prompts = [
        f"please {'add' if each else 'integrate'} {rng.randint(1, 99)} and item {rng.randint(1, 9)}" for each in easy
    ]
    return prompts, [each and rng.random() < 0.95 for each in easy], [rng.random() < 0.95 for _ in range(count)]


def test_it_learns_what_can_be_learned_and_keeps_what_was_stated(tmp_path: Path) -> None:
    choice = fit(*rows(300), keep_quality=0.95)
    held, weak, strong = rows(300, seed=1)
    to_strong = np.array([choice.chance(prompt) < choice.threshold for prompt in held])
    kept = np.where(to_strong, strong, weak).mean() / np.mean(strong)
    assert kept >= 0.9 and 0.3 < to_strong.mean() < 0.75
    assert choice.interval[0] <= choice.quality <= choice.interval[1] and choice.quality >= 0.95
    choice.save(tmp_path / "c.json")
    again = load_choice(tmp_path / "c.json")
    assert all(again.chance(prompt) == pytest.approx(choice.chance(prompt)) for prompt in held[:20])
    assert "integrate" not in (tmp_path / "c.json").read_text()


def test_it_is_compared_with_simple_ways() -> None:
    than = fit(*rows(300), keep_quality=0.95).rivals
    assert than["always_local"] < than["random"] < than["choice"] <= than["always_strong"] + 0.05
    assert than["p_value"] < 0.001 and than["oracle_cost"] < than["random_cost"] <= 1
    _, weak, strong = rows(300)
    blind = fit(["the same words"] * 300, weak, strong, keep_quality=0.9)
    assert blind.rivals["p_value"] > 0.01, "a choice that sees nothing is no better than chance"
    weak_, strong_ = np.array([1.0, 0, 0, 1]), np.array([1.0, 1, 1, 0])
    by_hand = against(np.array([False, True, False, False]), weak_, strong_, 1.0)
    assert by_hand["choice"] == 0.75 and by_hand["random"] == 0.5 + 0.25 * 0.25 and by_hand["oracle_cost"] == 0.25
    assert by_hand["random_cost"] == 1.0


def test_the_threshold_may_be_set_by_cost() -> None:
    rng = random.Random(3)
    hard = [rng.randint(0, 12) for _ in range(900)]
    prompts = [" ".join(rng.choice("abcdefgh") * 3 for _ in range(12 - each)) + " integrate" * each for each in hard]
    weak = [rng.random() > each / 12 for each in hard]
    choice = fit(prompts[:600], weak[:600], [True] * 600, most_strong=0.3)
    assert 0.2 < choice.strong_share <= 0.3 and choice.most_strong == 0.3
    assert choice.interval[0] <= choice.quality <= choice.interval[1] < 1
    to_strong = np.array([choice.chance(prompt) < choice.threshold for prompt in prompts[600:]])
    assert 0.15 < to_strong.mean() < 0.4 and np.mean(weak[600:]) < 0.6
    assert 1 - np.mean(np.array(weak[600:])[to_strong]) > 0.7, "those that need it go first"
    # Half of these rows are alike: rather none of them than more than were stated.
    alike = fit(*rows(300), most_strong=0.3)
    assert np.mean([alike.chance(prompt) < alike.threshold for prompt in rows(300)[0]]) <= 0.3
    assert fit(*rows(300), most_strong=0.0).strong_share == 0
    assert fit(*rows(300), most_strong=1.0).strong_share == 1


def test_keeping_all_or_nothing_are_the_two_ends() -> None:
    prompts, weak, strong = rows(200)
    assert fit(prompts, weak, strong, keep_quality=0.0).strong_share == 0
    many = fit(prompts, weak, [True] * 200, keep_quality=1.0)
    assert many.strong_share > 0.4 and many.quality == pytest.approx(1.0)


def test_quality_by_cost_runs_from_weak_to_strong() -> None:
    curve, _ = qualities(np.array([0.9, 0.1, 0.5]), [1, 0, 1], [1, 1, 0])
    assert curve == pytest.approx([2 / 3, 1.0, 2 / 3, 2 / 3])


def test_rows_that_cannot_teach_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few"):
        fit(*rows(10), keep_quality=0.9)
    with pytest.raises(DataError, match="nothing to learn"):
        fit(["x"] * 50, [True] * 50, [True] * 50, keep_quality=0.9)
    path = tmp_path / "rows.jsonl"
    for line, says in (("{", ":2: not JSON"), ('{"prompt": "x"}', ":2: weak_correct"), ("[]", ":2: has no text")):
        path.write_text('{"prompt": "a", "weak_correct": true, "strong_correct": true}\n' + line)
        with pytest.raises(DataError, match=says):
            read_fit_rows(path)


def test_a_file_that_is_no_choice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for content in ("", "[]", "{}", json.dumps({"format": 1, "weights": {}}), '{"format": 2}'):
        path.write_text(content)
        with pytest.raises(DataError, match="whit route fit"):
            load_choice(path)


def test_no_prompt_has_no_features_that_fail() -> None:
    assert all(
        np.isfinite(list(features(prompt).values())).all() for prompt in ("", "   ", "5", "x" * 10_000, "🙂" * 50)
    )
