"""`whit train` on a quantised base, with layers computed twice, and in two processes: the same results and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whit
from whit.errors import Interrupted, UsageError
from whit.settings import TrainSettings, as_plain
from whit.talk import Talk
from whit.verbs.worker import settings_from

LITTLE: dict[str, Any] = {"shots": (), "baselines": False, "threads": 2}


def test_a_quantised_base_is_named_so_from_training_to_use(
    rows: Path, options: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = tmp_path / "out"
    result = whit.train(rows, out=folder, quantize="nf4", checkpointing=True, **LITTLE, **options("xs"))
    assert result.card.base.endswith(":nf4") and result.card.settings["quantize"] is None
    dense = whit.load_base(result.card.base.removesuffix(":nf4"))
    assert result.card.base_fingerprint != dense.fingerprint
    answers = whit.run(str(folder), "how do i pay?", max_tokens=3).answers
    assert len(answers) == 1
    with pytest.raises(UsageError, match="quantised as nf4 by its name"):
        whit.train(rows, out=tmp_path / "no", quantize="int8", **LITTLE, **{**options("xs"), "base": result.card.base})


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    rows: Path, options: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    given = {**options("xs"), **LITTLE, "number_type": "float32"}
    one = whit.train(rows, out=tmp_path / "one", **given)
    two = whit.train(rows, out=tmp_path / "two", processes=2, **given)
    v, w = one.adapter.vector, two.adapter.vector
    assert v is not None and w is not None and np.abs(v).max() > 0
    assert np.allclose(v, w, atol=5e-3 * np.abs(v).max())
    assert two.card.cost is not None and one.card.cost is not None and two.card.cost.steps == one.card.cost.steps
    assert not (tmp_path / "two" / "state").exists()


def test_memory_is_counted_for_all_processes_by_the_first(
    rows: Path, options: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whit.bases.memory import weight_bytes
    from whit.data.rows import read
    from whit.data.templates import Encoded
    from whit.training import memory
    from whit.verbs.train import plan_of, require_memory

    settings = TrainSettings(data=rows, out=tmp_path / "out", processes=3, **options("xs"))
    base = whit.load_base(settings.base, dtype="float32")
    plan = plan_of(settings, "xs", base, 32, "run", tmp_path)
    encoded = [Encoded(row, list(range(20)), [1, 2]) for row in read(rows).rows[:32]]
    others = weight_bytes(base.source, 4, None)
    each = memory.SPARE + memory.step_bytes(
        base, encoded, batch=-(-plan.batch // 3), accumulate=1, numbers=10, checkpointing=False
    )

    def counted(**more: Any) -> int:
        """The least free memory that is enough."""
        asked: list[int] = []
        real = memory.require_memory
        with monkeypatch.context() as patch:
            patch.setattr(memory, "require_memory", lambda *given, **named: asked.append(real(*given, **named)) or 0)
            patch.setattr(memory, "available_bytes", lambda device: None)
            require_memory(replace(settings, **more), base, encoded, plan, 10, Talk(quiet=True))
        return sum(asked)

    assert counted() == 3 * each + 2 * others
    assert counted(fsdp=True) == 3 * each
    monkeypatch.setattr(memory, "available_bytes", lambda device: 3 * each)
    with pytest.raises(UsageError, match=r"in each of 3 processes .* fewer --processes"):
        require_memory(settings, base, encoded, plan, 10, Talk(quiet=True))
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    assert counted(processes=1) == 0, "the first process counted for this one"
    for name, value in (("RANK", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert counted(processes=1) == counted(processes=3) == 2 * each, "torchrun's, of whom two are on this machine"


@pytest.mark.parametrize(
    ("other", "more"),
    [
        ("--reward", {"reward": ("label",)}), ("--kind auto", {"kind": "auto"}),
        ("--optimizer natural", {"optimizer": "natural"}), ("--per", {"per": "user"}),
    ],
)  # fmt: skip
def test_what_goes_only_one_way_is_refused_by_its_name(
    rows: Path, options: Callable[[str], dict[str, Any]], tmp_path: Path, other: str, more: dict[str, Any]
) -> None:
    for ways, given in (
        ({"processes": 2}, "--processes"), ({"checkpointing": True}, "--checkpointing"), ({"fsdp": True}, "--fsdp"),
        ({"processes": 2, "checkpointing": True}, "--processes and --checkpointing"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"^{given} cannot be with {other}: "):
            whit.train(rows, out=tmp_path / "out", **{**options("xs"), **more, **ways})


@pytest.mark.parametrize("more", [{"reward": ("label",)}, {"kind": "auto"}])
def test_python_quantises_as_the_command_does(
    rows: Path, options: Callable[[str], dict[str, Any]], tmp_path: Path, more: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[str] = []

    def load(name: str, **about: Any) -> Any:
        asked.append(name)
        raise UsageError("far enough")

    monkeypatch.setattr("whit.verbs.common.open_base", load)
    given = {**options("xs"), **more}
    with pytest.raises(UsageError, match="far enough"):
        whit.train(rows, out=tmp_path / "out", quantize="nf4", **given)
    assert asked == [f"{given['base']}:nf4"]


def test_python_trains_for_each_user_as_the_command_does(
    rows: Path, options: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    import json

    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({**line, "user": f"u{at % 2}"}) for at, line in enumerate(lines)))
    result = whit.train(path, out=tmp_path / "out", per="user", numbers=4, **{**options("xs"), "kind": "tiny"})
    assert {each["user"] for each in result.about["users"]} == {"u0", "u1"}
    with pytest.raises(UsageError, match="--ray and --stop"):
        whit.train(rows, stop=True, ray="127.0.0.1:1")


@pytest.mark.parametrize(
    "more",
    [
        {"reward": ("label",)},
        {"reward": ("label",), "optimizer": "es"},
        {"reward": ("label",), "kind": "auto"},
        {"kind": "auto"},
        {"per": "user"},
    ],
)
def test_what_cannot_fit_is_refused_in_every_way_of_training(
    rows: Path,
    options: Callable[[str], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
) -> None:
    from whit.training import memory
    from whit.verbs.personal import command

    lines = [json.loads(line) | {"user": f"u{place % 2}"} for place, line in enumerate(rows.read_text().splitlines())]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given: dict[str, Any] = {**options("xs"), **more, "data": data, "out": tmp_path / "out"}
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    with pytest.raises(UsageError, match=r"would take about .* of memory.*--quantize nf4") as told:
        command(TrainSettings(**given))
    assert "--checkpointing" not in str(told.value), "which is refused here"
    if more != {"kind": "auto"}:
        with pytest.raises(UsageError, match="--accumulate"):
            command(TrainSettings(**given, accumulate=2))


def test_a_worker_gets_the_settings_whole() -> None:
    settings = TrainSettings(
        data=Path("a/b.jsonl"), out=Path("c"), test_data=Path("d"), shots=(), reward=("exact",), alpha=2.0, rank=None
    )
    assert settings_from(json.dumps(as_plain(settings))) == settings


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xs", "lora"])
def test_a_shared_base_trains_what_a_whole_one_does(
    rows: Path, options: Callable[[str], dict[str, Any]], tmp_path: Path, kind: str, interrupting: Talk
) -> None:
    given = {**options("xs"), **LITTLE, "number_type": "float32", "kind": kind, "learning_rate": 0.02}
    one = whit.train(rows, out=tmp_path / "one", **given)
    shared = {"out": tmp_path / "two", "processes": 2, "fsdp": True, **given}
    if kind == "xs":
        with pytest.raises(Interrupted, match="--resume"):
            whit.train(rows, talk=interrupting, **shared)
        shared["resume"] = True
    two = whit.train(rows, **shared)
    if kind == "xs":
        v, w = one.adapter.vector, two.adapter.vector
        assert v is not None and w is not None and np.abs(v).max() > 0
        assert np.allclose(v, w, atol=5e-3 * np.abs(v).max())
    else:
        a, b = one.adapter.lora, two.adapter.lora
        assert a is not None and b is not None and max(float(part.abs().max()) for part in a.B.values()) > 0
        for name, part in a.B.items():  # stored in bfloat16
            assert np.allclose(part.float(), b.B[name].float(), atol=2e-2 * float(part.abs().max())), name
    assert two.card.result is not None and two.card.result.rows == one.card.result.rows  # type: ignore[union-attr]
    assert not (tmp_path / "two" / "state").exists()


def test_what_a_shared_base_does_not_go_with_is_refused(
    rows: Path, options: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    for more, said in (
        ({}, "add --processes N"), ({"processes": 2, "accumulate": 2}, "without --checkpointing and --accumulate"),
        ({"processes": 2, "checkpointing": True}, "without --checkpointing"),
        ({"processes": 2, "quantize": "nf4"}, "not quantised"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            whit.train(rows, out=tmp_path / "out", fsdp=True, **LITTLE, **options("xs"), **more)
