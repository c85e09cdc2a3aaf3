"""The one command, from a folder of text to a GGUF file that whit loads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from models import make
from models.config import RECIPES
from models.tokens import save_tokenizer
from whit.bases import load_base


@pytest.fixture
def folder(recipe, texts, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "toy", replace(recipe, batch=2))
    many = [f"{text} {number}" for number in range(8) for text in texts]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "toy.train.txt").write_text("\n<|endoftext|>\n".join(many))
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    return tmp_path


def command(folder, *more):
    common = ["toy", "--cache", str(folder / "cache"), "--tokenizer", str(folder / "tokenizer.json"), "--device", "cpu"]
    return make.main([*common, "--threads", "1", *more])


def test_from_text_to_a_file_that_loads(folder):
    stages = ("--stages", "pretrain", "package", "score")
    assert command(folder, "--corpus", str(folder / "corpus"), "--tokens", "320", *stages) == 0
    base = load_base(folder / "cache" / "toy" / "toy.gguf", dtype="float32")
    assert base.context == 64 and base.encode("the cat") and set(base.stop_ids) == {0, 2}
    found = json.loads((folder / "cache" / "toy" / "figures.json").read_text())
    assert 0 < found["toy"]["bits_per_byte"] < 8
    assert torch.isfinite(base.model(torch.tensor([[3, 4]])).logits).all()


def test_a_checkpoint_is_where_a_run_of_other_rates_goes_on(folder, capsys):
    text = ("--corpus", str(folder / "corpus"), "--stages", "package")
    assert command(folder, *text, "--tokens", "320") == 0
    (first,) = (folder / "cache" / "toy").glob("checkpoint-*.pt")
    other = ("--cache", str(folder / "other"), "--tokens", "64", "--start")
    # At a rate of nothing the weights stay where the checkpoint left them, to the byte of the file.
    assert command(folder, *text, *other, str(first), "--rate-share", "0", "--decay-share", "0.9") == 0
    files = [folder / cache / "toy" / "toy.gguf" for cache in ("cache", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    curve = (folder / "other" / "toy" / "curve.csv").read_text().splitlines()
    assert len(curve) >= 2
    first.write_bytes(first.read_bytes()[:1000])
    assert command(folder, *text, *other, str(first)) == 3
    assert "damaged" in capsys.readouterr().err


def test_a_hub_data_set_goes_the_same_way(folder, texts):
    pytest.importorskip("datasets")
    (folder / "set").mkdir()
    (folder / "set" / "train.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{t} {n}"}) for n in range(8) for t in texts)
    )
    assert command(folder, "--hub", str(folder / "set"), "--tokens", "128", "--stages", "package") == 0
    assert (folder / "cache" / "toy" / "toy.gguf").stat().st_size > 1000


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--stages", "pretrain"], 2, "--corpus FOLDER"),
        (["--corpus", "nowhere", "--stages", "pretrain"], 3, "nowhere"),
        (["--corpus", "corpus", "--tokens", "64"], 2, "--tasks"),
        (["--corpus", "corpus", "--stages", "pretrain", "--tokens", "1e9"], 3, "at most --tokens"),
        (["--corpus", "corpus", "--tasks", "tasks", "--plain-every", "1"], 2, "no window would be a chat"),
    ],
)
def test_what_cannot_be_is_told(folder, monkeypatch, capsys, more, code, told):
    monkeypatch.chdir(folder)
    assert command(folder, *more) == code
    assert told in capsys.readouterr().err
