from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.errors import AdapterError, DamagedAdapter
from whit.evaluation.card import Card, Cost, Data, Forgetting, load_card, model_card, save_card
from whit.evaluation.scoring import Score
from whit.evaluation.verdict import compare

RESULT = compare([Score(0.0, False)] * 60 + [Score(1.0)] * 40, [Score(1.0)] * 90 + [Score(0.0)] * 10)
CARD = Card(
    name="tickets",
    kind="xs",
    numbers=840,
    base="smollm2",
    base_fingerprint="ab" * 32,
    basis="cd" * 32,
    base_hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    base_licence="Apache-2.0",
    base_parameters=134_515_008,
    payload_bytes=1_680,
    file_bytes=1_712,
    instruction="Answer with ``` or not.",
    scorer={"kind": "label", "labels": ["spam", "ok"]},
    data=Data("tickets.jsonl", "ef" * 32, 500, 350, 50, 100),
    settings={"rank": 2, "learning_rate": 0.003},
    seeds=(0, 1),
    result=RESULT,
    baselines={"TF-IDF + linear": RESULT},
    forgetting=Forgetting("built-in text", 2_000, 3.1, 3.2),
    cost=Cost(61.5, 400),
    versions={"whit": "0.1.0"},
    command="whit train tickets.jsonl",
    created="2026-01-01",
)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    save_card(CARD, tmp_path / "card.json")
    assert load_card(tmp_path / "card.json") == CARD
    bare = Card("a", "lora", 5, "b", "f", Data("d", "h", 1, 1, 0, 0))
    save_card(bare, tmp_path / "card.json")
    assert load_card(tmp_path / "card.json") == bare and bare.verdict == ""
    save_card(dataclasses.replace(bare, name="caf\udce9"), tmp_path / "card.json")
    assert load_card(tmp_path / "card.json").name == "caf?"
    plain = json.loads(json.dumps(CARD.to_json()))
    assert plain["verdict"] == "helped" and plain["result"]["verdict"] == "helped"
    assert plain["baselines"]["TF-IDF + linear"]["base"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"card": 99}, "newer"),
        ({"card": None}, "no version"),
        ({"numbers": "many"}, "numbers"),
        ({"numbers": True}, "numbers"),
        ({"name": None}, "name"),
        ({"surprise": 1}, "surprise"),
        ({"data": {"name": "x"}}, "lacks"),
        ({"data": 3}, "damaged"),
        ({"result": {}}, "comparison"),
        ({"baselines": []}, "damaged"),
        ({"seeds": ["x"]}, "damaged"),
        ({"settings": [1]}, "settings"),
        ({"scorer": "label"}, "scorer"),
    ],
)
def test_a_damaged_card_is_told(tmp_path: Path, change: dict[str, object], told: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps({**CARD.to_json(), **change}))
    with pytest.raises(AdapterError, match=told) as caught:
        load_card(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[" * 10_000, b"3", b" " * 4_000_001])
def test_what_is_no_card_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(DamagedAdapter):
        load_card(tmp_path / "card.json")
    with pytest.raises(AdapterError, match="cannot be read"):
        load_card(tmp_path / "absent.json")


def test_the_model_card_is_one_for_the_hub() -> None:
    hub = pytest.importorskip("huggingface_hub")
    text = model_card(CARD)
    data = hub.ModelCard(text).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (data.library_name, data.license, data.model_name) == ("whit", "apache-2.0", "tickets")
    assert set(data.tags) >= {"whit", "xs"}
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", pytest.approx(0.9))
    assert (result.task_type, result.dataset_name) == ("text-classification", "tickets.jsonl")
    for said in (RESULT.sentence()[:40], "840 numbers", "TF-IDF", "ef" * 32, "whit train tickets.jsonl"):
        assert said in text
    assert "````" in text  # the instruction's own fence does not end its block
    assert "(1,712 bytes)" in text and "://" not in text


@pytest.mark.parametrize("name", ["my out", "out", "-x", "$(id)", "it's", "q_proj*"])
def test_the_model_cards_commands_can_be_pasted(name: str) -> None:
    command = shlex.join(["whit", "train", "a b.jsonl", "--targets", "q_proj", "--out", name])
    text = model_card(dataclasses.replace(CARD, name=name, command=command, file_bytes=0))
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)).splitlines()
    run, evaluate, train = (shlex.split(line) for line in blocks)
    assert shlex.split(command) == train
    assert run[:2] == ["whit", "run"] and evaluate[:2] == ["whit", "eval"]
    assert run[2] == evaluate[2] == (f"./{name}" if name.startswith("-") else name)
    assert "(1,680 bytes)" in text  # of an earlier card: the payload's, not 0


def test_a_base_that_is_no_hub_id_is_not_given_as_one() -> None:
    assert "base_model" not in model_card(dataclasses.replace(CARD, base_hub_id="", base="tiny.gguf"))
    assert "model-index" not in model_card(dataclasses.replace(CARD, result=None))


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_text_breaks_out_of_the_front_matter(text: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    hostile = f"x\n---\nlicense: mit\n{text}"
    card = dataclasses.replace(
        CARD, name=hostile, data=dataclasses.replace(CARD.data, name=hostile), base_licence=hostile
    )
    data = hub.ModelCard(model_card(card)).data
    assert data.license is None
    assert data.base_model == CARD.base_hub_id
    assert data.model_name.startswith("x --- license: mit")
