"""Local embeddings: vectors that depend on the text alone, the base that was learned with, and nothing that leaks."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upstreams import FakeModel, Reply, Upstream, call, config, gateway, say

from whit.errors import DataError
from whit.routing.app import App
from whit.routing.choosing import WAYS, Choice, best_way, fit, load_choice
from whit.routing.embedding import Embedder, Space, embedder, nearest, pack
from whit.testing import write_tiny_base

CARD = "4111 1111 1111 1111"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("base"), context=1024))


@pytest.fixture(scope="module")
def embed(folder: str) -> Embedder:
    return Embedder.load(folder)


def rows(count: int, seed: int = 0) -> tuple[list[str], list[bool], list[bool]]:
    rng = random.Random(seed)
    easy = [rng.random() < 0.5 for _ in range(count)]
    prompts = [f"please {'add' if each else 'integrate'} {rng.randint(1, 99)}" for each in easy]
    return prompts, [each and rng.random() < 0.95 for each in easy], [rng.random() < 0.95 for _ in range(count)]


@pytest.fixture(scope="module")
def choice(embed: Embedder) -> Choice:
    return fit(*rows(200), keep_quality=0.95, embed=embed)


def test_a_vector_is_the_mean_of_the_last_hidden_states_and_of_length_one(embed: Embedder) -> None:
    import torch

    texts = ["short", "a text that is rather longer than the others are", "middling words"]
    found = embed(texts)
    for text, vector in zip(texts, found, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([embed.base.encode(text)])
            states = embed.base.model(ids, output_hidden_states=True).hidden_states[-1][0]
        mean = states.mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)
        assert embed([text])[0] == pytest.approx(vector, abs=1e-5), "padding of others changes nothing"


def test_no_text_is_too_long_or_too_short(embed: Embedder) -> None:
    end = "word " * 2000
    assert embed(["x" * 1_000_000 + end])[0] == pytest.approx(embed([end])[0], abs=1e-5)
    assert not embed([""]).any() and np.isfinite(embed(["", "🙂", "\x00"])).all() and len(embed([])) == 0


def test_it_learns_and_its_file_reads_the_same(choice: Choice, folder: str, tmp_path: Path) -> None:
    held, weak, strong = rows(200, seed=1)
    to_strong = np.array([choice.chance(prompt) < choice.threshold for prompt in held])
    assert np.where(to_strong, strong, weak).mean() / np.mean(strong) >= 0.9 and 0.3 < to_strong.mean() < 0.75
    assert choice.features == "embeddings" and choice.rivals["p_value"] < 0.001
    choice.save(tmp_path / "c.json")
    again = load_choice(tmp_path / "c.json")
    assert again.space is not None and again.space.base == folder
    assert [again.chance(each) for each in held[:9]] == pytest.approx([choice.chance(each) for each in held[:9]])
    assert "integrate" not in (tmp_path / "c.json").read_text()


def test_the_way_is_chosen_by_rows_it_did_not_see() -> None:
    rng = np.random.default_rng(0)
    line = rng.normal(size=(200, 8))
    assert best_way(line, list(line[:, 0] > 0))[0] == "logistic"
    quarters = rng.normal(size=(300, 2))  # opposite quarters belong together: no line tells them apart
    kind, size = best_way(quarters / np.linalg.norm(quarters, axis=1, keepdims=True), list(quarters.prod(axis=1) > 0))
    assert kind == "knn" and (kind, size) in WAYS


def test_nearest_rows_by_hand() -> None:
    points, labels = np.eye(3, dtype=np.float32), np.array([1.0, 0.0, 1.0])
    vectors = np.array([[1, 0.1, 0], [0.1, 1, 0.2]], np.float32)
    assert nearest(points, labels, vectors, 1).tolist() == [1, 0]
    assert nearest(points, labels, vectors, 2).tolist() == [0.5, 0.5]
    space = Space("b", "f", "knn", neighbours=1, points=pack(points), labels="101")
    assert space.chances(vectors).tolist() == [1, 0]


def test_another_base_is_refused(choice: Choice, tmp_path: Path) -> None:
    other = write_tiny_base(tmp_path / "other", seed=1, context=1024)
    assert choice.space is not None
    with pytest.raises(DataError, match="fit it anew"):
        embedder(str(other), choice.space.fingerprint)
    choice.save(tmp_path / "c.json")
    given = json.loads((tmp_path / "c.json").read_text())
    given["space"]["base"] = str(other)
    (tmp_path / "c.json").write_text(json.dumps(given))
    with pytest.raises(DataError, match="fit it anew"):
        gateway(config(tmp_path, 'choice = "c.json"\n'))


def test_a_damaged_space_is_refused(choice: Choice, tmp_path: Path) -> None:
    choice.save(path := tmp_path / "c.json")
    given = json.loads(path.read_text())
    knn: dict[str, Any] = {"kind": "knn", "neighbours": 1, "points": pack(np.eye(2)), "labels": "01"}
    path.write_text(json.dumps({**given, "space": {**given["space"], **knn}}))
    assert load_choice(path).space is not None
    for wrong in (
        {"kind": "other"}, {"kind": "logistic", "weights": []}, {"kind": "logistic", "weights": [float("nan")]},
        {"base": ""}, {**knn, "labels": "012"}, {**knn, "labels": "011"}, {**knn, "points": "?"}, {**knn, "labels": ""},
        {**knn, "neighbours": 0}, {**knn, "points": pack(np.full((2, 2), np.nan))}, {"more": 1},
    ):  # fmt: skip
        path.write_text(json.dumps({**given, "space": {**given["space"], **wrong}}))
        with pytest.raises(DataError, match="whit route fit"):
            load_choice(path)


def ask(of: Any, *bodies: Any, upstream: Upstream, **more: Any) -> list[Reply]:
    async def run() -> list[Reply]:
        app = App(gateway(of, upstream, FakeModel()))
        found = [await call(app, body, **more) for body in bodies]
        await app.gateway.close()
        return found

    return asyncio.run(run())


def test_the_gateway_asks_by_it_and_only_what_the_clearance_allows(choice: Choice, tmp_path: Path) -> None:
    choice.save(tmp_path / "c.json")
    of, upstream = config(tmp_path, 'choice = "c.json"\n'), Upstream()
    easy, hard = ask(of, say("please add 12"), say("please integrate 12"), upstream=upstream)
    assert easy.headers["x-whit-tier"] == "local" and hard.headers["x-whit-tier"] == "strong"
    assert len(upstream.received) == 1
    (kept,) = ask(of, say(f"please integrate {CARD}"), upstream=upstream)
    (secret,) = ask(of, say("please integrate 12"), upstream=upstream, headers={"x-whit-label": "secret"})
    assert kept.headers["x-whit-tier"] == secret.headers["x-whit-tier"] == "local" and len(upstream.received) == 1


@pytest.mark.parametrize("slow", [True, False])
def test_a_guess_that_fails_or_is_late_counts_for_nothing(
    choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    choice.save(tmp_path / "c.json")
    of, upstream = config(tmp_path, 'choice = "c.json"\nchoice_timeout = 0.1\n'), Upstream()
    where: list[threading.Thread] = []

    def fails(self: Space, prompt: str) -> float:
        where.append(threading.current_thread())
        if not slow:
            raise RuntimeError("canary")
        time.sleep(0.6)
        return 0.0

    monkeypatch.setattr(Space, "chance", fails)
    began = time.monotonic()
    first, second = ask(of, say("please integrate 12"), say("please integrate 7"), upstream=upstream)
    assert first.headers["x-whit-tier"] == second.headers["x-whit-tier"] == "local" and not upstream.received
    assert b"canary" not in first.body and where and threading.main_thread() not in where
    if slow:
        assert time.monotonic() - began < 30 and len(where) == 1, "the second was taken back before it began"
