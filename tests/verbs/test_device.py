"""`--device`: handed to whoever loads the base, refused where it is not there, and all that meets the model is with it.

No GPU is needed: `elsewhere.py` makes a device up, whose tensors meet no others. What is trained there is what is
trained here, but for rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Commands
from elsewhere import DEVICE, Elsewhere

import whit
from whit.errors import Interrupted, UsageError
from whit.settings import BakeSettings, ChatSettings, ServeSettings, TrainSettings
from whit.talk import Talk
from whit.testing import write_rows

Options = Callable[[str], dict[str, Any]]
LITTLE: dict[str, Any] = {
    "shots": (), "baselines": False, "epochs": 0.5, "evaluations": 2, "validation_rows": 8, "max_tokens": 3,
}  # fmt: skip
GRADED = "def graded(answer, row): return sum(map(ord, answer)) % 11 / 10\n"


class FarEnough(Exception):
    """The base would be loaded now."""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`cuda` is the device that is made up."""
    real = whit.load_base

    def load(name: str | Path, *, dtype: str = "auto", device: str = "cpu", quantize: str | None = None) -> Any:
        base = real(name, dtype=dtype, quantize=quantize)
        if device == "cuda":
            base.model.to(DEVICE)
        return base

    monkeypatch.setattr("whit.bases.load_base", load)
    monkeypatch.setattr("whit.bases.dtypes.require_device", lambda device: device)
    with Elsewhere():
        yield


def numbers(result: Any) -> Any:
    adapter = result.adapter
    if adapter.vector is not None:
        return adapter.vector
    return np.concatenate([part.float().numpy().ravel() for part in adapter.lora.B.values()])


def test_directions_are_made_on_the_cpu(base: Path, elsewhere: None) -> None:
    from whit.adapters.basis import compute_basis
    from whit.bases import load_base

    here, there = (load_base(str(base), dtype="float32", device=device) for device in ("cpu", "cuda"))
    assert there.model.device == DEVICE
    assert compute_basis(here, 2).fingerprint == compute_basis(there, 2).fingerprint


def by_user(rows: Path, folder: Path) -> Path:
    """The rows, of two users in turn."""
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    path = folder / "by-user.jsonl"
    path.write_text("\n".join(json.dumps({**line, "user": f"u{at % 2}"}) for at, line in enumerate(lines)))
    return path


def test_the_device_that_is_made_up_tells_places_apart() -> None:
    import torch

    with Elsewhere():
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        assert (there + there).device == DEVICE and (there + 1).sum().item() == 6.0
        assert torch.tensor([1.0], device=DEVICE).cpu().device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(TypeError, match="elsewhere"):
            there.numpy()


@pytest.mark.parametrize(
    "more",
    [
        {"kind": "xs"}, {"kind": "lora", "rank": 2, "dropout": 0.1}, {"kind": "sparse", "numbers": 20},
        {"kind": "xs", "optimizer": "natural", "learning_rate": 0.1},
        {"kind": None, "numbers": 13, "reward": "grpo", "samples": 3},
        {"kind": "lora", "rank": 2, "reward": "grpo", "samples": 3},
        {"kind": None, "numbers": 13, "reward": "es", "population": 4, "sigma": 2.0},
    ],
    ids=lambda more: "-".join(str(each) for each in more.values()),
)  # fmt: skip
def test_what_is_trained_there_is_what_is_trained_here(
    rows: Path, options: Options, tmp_path: Path, more: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if how := more.get("reward"):
        (tmp_path / "graded.py").write_text(GRADED)
        more = {**more, "reward": (f"{tmp_path}/graded.py:graded",), "optimizer": how}
    given = {**options("xs"), **LITTLE, **more}
    here = whit.train(rows, out=tmp_path / "here", **given)
    request.getfixturevalue("elsewhere")
    there = whit.train(rows, out=tmp_path / "there", device="cuda", **given)
    assert there.card.cost.device == str(DEVICE) and there.card.settings["device"] == "cuda"
    v, w = numbers(here), numbers(there)
    assert np.abs(v).max() > 0 and np.allclose(v, w, atol=1e-2 * np.abs(v).max())
    assert there.card.forgetting.after == pytest.approx(here.card.forgetting.after, rel=1e-4)


def test_a_stopped_run_goes_on_there(
    rows: Path, options: Options, tmp_path: Path, elsewhere: None, interrupting: Talk
) -> None:
    given = {**options("xs"), **LITTLE, "evaluations": 4}
    whole = whit.train(rows, out=tmp_path / "whole", device="cuda", **given)
    with pytest.raises(Interrupted, match="--resume"):
        whit.train(rows, out=tmp_path / "cut", device="cuda", talk=interrupting, **given)
    again = whit.train(rows, out=tmp_path / "cut", device="cuda", resume=True, **given)
    assert np.array_equal(numbers(whole), numbers(again))


def test_for_each_user_and_by_baking_there(rows: Path, options: Options, tmp_path: Path, elsewhere: None) -> None:
    from whit.verbs.bake import bake

    given = {**options("xs"), **LITTLE}
    tiny = {**given, "kind": "tiny", "numbers": 4, "learn_basis": True, "per": "user"}
    assert len(whit.train(by_user(rows, tmp_path), out=tmp_path / "each", device="cuda", **tiny).about["users"]) == 2
    (tmp_path / "guide.md").write_text("Is it card or cash? Answer with one word.")
    own = {name: value for name, value in given.items() if name not in ("instruction", "shots", "baselines")}
    settings = BakeSettings(guide=tmp_path / "guide.md", inputs=rows, out=tmp_path / "baked", device="cuda", **own)
    assert bake(settings).folder.is_dir()


def test_answers_there_are_those_from_here(
    trained: Callable[[str], Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folders = [str(trained(kind).folder) for kind in ("xs", "lora")]
    later = write_rows(tmp_path / "later.jsonl", 20, seed=1)
    drawn = {"max_tokens": 5, "temperature": 1.0, "seed": 3}
    here = [whit.run(folder, "how do i pay?", **drawn).answers for folder in folders]
    scored = [whit.evaluate(folder, later).to_json() for folder in folders]
    request.getfixturevalue("elsewhere")
    assert here == [whit.run(folder, "how do i pay?", device="cuda", **drawn).answers for folder in folders]
    assert scored == [whit.evaluate(folder, later, device="cuda").to_json() for folder in folders]


def test_it_is_handed_to_whoever_loads_the_base(
    rows: Path, options: Options, trained: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whit.verbs.bake import bake
    from whit.verbs.run import speaker
    from whit.verbs.serve import service
    from whit.verbs.trial import try_variant

    asked: list[str] = []

    def load(name: str, *, dtype: str, device: str) -> Any:
        asked.append(device)
        raise FarEnough

    folder, later = str(trained("xs").folder), write_rows(tmp_path / "later.jsonl", 20, seed=1)
    monkeypatch.setattr("whit.bases.load_base", load)
    monkeypatch.setattr("whit.bases.dtypes.require_device", lambda device: device)
    (tmp_path / "guide.md").write_text("Answer with one word.")
    base = options("xs")["base"]
    given = {**options("xs"), "out": tmp_path / "out", "device": "cuda:1"}
    calls: list[Callable[[], Any]] = [
        lambda: whit.train(rows, **given),
        lambda: whit.train(rows, **{**given, "kind": "auto"}),
        lambda: whit.train(rows, reward=("label",), **given),
        lambda: whit.train(by_user(rows, tmp_path), per="user", **given),
        lambda: bake(
            BakeSettings(guide=tmp_path / "guide.md", inputs=rows, base=base, out=tmp_path / "b", device="cuda:1")
        ),
        lambda: try_variant("one", TrainSettings(data=rows, **given), 1.0, Talk(quiet=True)),
        lambda: whit.evaluate(folder, later, device="cuda:1"),
        lambda: whit.run(folder, "hello", device="cuda:1"),
        lambda: whit.run(base, "hello", device="cuda:1"),
        lambda: speaker(ChatSettings(adapter=base, device="cuda:1"), Talk(quiet=True)).__enter__(),
        lambda: service(ServeSettings(base=base, device="cuda:1"), None, Talk(quiet=True)).__enter__(),
    ]
    for call in calls:
        with pytest.raises(FarEnough):
            call()
    assert asked == ["cuda:1"] * len(calls)


def test_one_that_is_not_there_is_one_clear_error(whit: Commands, rows: Path, base: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    for words in (["train", rows, "--base", "smollm2", "--out", tmp_path / "out"], ["run", base, "hello"]):
        done = whit(*words, "--device", "cuda", cwd=tmp_path)
        assert done.code == 2 and "there is no CUDA device here" in done.error, done.stderr
        assert "fetching" not in done.stderr and "Loading" not in done.stderr
    done = whit("run", base, "hello", "--device", "mps", cwd=tmp_path)
    assert done.code == 2 and "'mps' is not known; use cpu" in done.error, done.stderr


def test_what_computes_on_a_cpu_alone_says_so(rows: Path, options: Options, tmp_path: Path) -> None:
    from whit.verbs.serve import serve

    base = options("xs")["base"]
    with pytest.raises(UsageError, match="--int8 is computed on CPUs; leave out --device cuda"):
        serve(ServeSettings(base=base, int8=True, device="cuda"))
    with pytest.raises(UsageError, match="replicas on a cluster compute on CPUs"):
        serve(ServeSettings(base=base, ray="auto", device="cuda"))
    with pytest.raises(UsageError, match="--engine wasm computes on the CPU"):
        whit.run(base, "hello", engine="wasm", device="cuda")
    given = {**options("xs"), "out": tmp_path / "out", "device": "cuda"}
    with pytest.raises(UsageError, match="several processes compute on CPUs alone"):
        whit.train(rows, processes=2, **given)
    with pytest.raises(UsageError, match="on a cluster whit computes on CPUs alone"):
        whit.train(rows, ray="127.0.0.1:1", **given)
