"""The engine against transformers on every number type, and its errors."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from tests.engine.models import Shape, cosine, logits_of, tokenizer_of, write_model
from whit.engine import Engine
from whit.engine.runtime import VARIANTS, engine_bytes
from whit.errors import BaseError, UsageError, WhitError
from whit.testing import write_tiny_base

IDS = [1, 40, 300, 7, 7, 262, 91, 12, 200, 33, 5]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1])
def test_logits_are_those_of_transformers(kind: Type, variant: str, tmp_path: Path, tokenizer_json: Any) -> None:
    model = write_model(tmp_path / "m.gguf", tokenizer_json, kind)
    found = Engine.open(tmp_path / "m.gguf", variant=variant).logits(IDS)
    expected = logits_of(model, IDS)
    assert cosine(found, expected) > 0.9999999
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", [Type.Q6_K, Type.TQ1_0, Type.TQ2_0])
def test_blocks_of_256_too(kind: Type, variant: str, tmp_path: Path, tokenizer_json: Any) -> None:
    shape = Shape(dim=256, ffn=512, heads=4, kv_heads=1, layers=1)
    model = write_model(tmp_path / "m.gguf", tokenizer_json, kind, shape)
    found = Engine.open(tmp_path / "m.gguf", variant=variant).logits(IDS)
    expected = logits_of(model, IDS)
    assert cosine(found, expected) > 0.9999999
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()


def test_untied_head_odd_rows_and_multi_head_attention(tmp_path: Path) -> None:
    # A vocabulary of 383 rows cannot be woven in fours and is read plainly.
    shape = Shape(dim=96, ffn=160, heads=3, kv_heads=3, tied=False)
    words = tokenizer_of(write_tiny_base(tmp_path / "words", vocab=383))
    model = write_model(tmp_path / "m.gguf", words, Type.Q8_0, shape)
    engine = Engine.open(tmp_path / "m.gguf")
    assert cosine(engine.logits(IDS), logits_of(model, IDS)) > 0.9999999
    assert (engine.sizes.dim, engine.sizes.heads, engine.sizes.context) == (96, 3, 256)
    assert engine.sizes.vocab == 383


def test_a_batch_is_what_its_rows_are_alone(engine: Any) -> None:
    rows = [IDS, IDS[3:9], [9, 8, 7]]
    alone = [engine.logits(row) for row in rows]
    handles = [engine.sequence(16) for _ in rows]
    together = engine.read([(h, token, True) for h, row in zip(handles, rows, strict=True) for token in row])
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-5)
    # One token at a time, the rows in turns, after each was cut back to nothing.
    for handle in handles:
        engine.call("whit_sequence_cut", handle, 0)
    for at in range(3):
        step = engine.read([(h, row[at], True) for h, row in zip(handles, rows, strict=True)])
        np.testing.assert_allclose(step, [one[at] for one in alone], rtol=0, atol=1e-5)


def test_the_bytes_are_the_recorded_ones_and_need_nothing_of_their_host() -> None:
    import wasmtime

    for variant in VARIANTS:
        content = engine_bytes(variant)
        module = wasmtime.Module(wasmtime.Engine(), content)
        assert module.imports == []
        assert len(hashlib.sha256(content).hexdigest()) == 64
    with pytest.raises(UsageError, match="no engine variant"):
        engine_bytes("avx")


def test_calls_that_cannot_be_are_errors_and_break_nothing(engine: Any) -> None:
    before = engine.logits(IDS)
    for name, arguments, message in [
        ("whit_sequence_new", (0, -1), "room for 0"),
        ("whit_sequence_new", (257, -1), "reads up to 256"),
        ("whit_sequence_new", (8, 99), "no adapter 99"),
        ("whit_sequence_free", (99,), "no sequence 99"),
        ("whit_encode", (0x7FFF0000, 64, 0), "outside of memory"),
        ("whit_encode", (-8, 4, 0), "outside of memory"),
        ("whit_read", (0x10, 0x7FFFFFFF), "."),
        ("whit_size", (77,), "no size 77"),
        ("whit_adapter_free", (0,), "no adapter 0"),
        ("whit_answer_text", (3,), "no answer 3"),
        ("whit_step", (0, 0.1), "no trainer 0"),
        ("whit_adapter_vector", (1, 2, 0, 0, 13, 1, 0), "no basis of rank 2"),
    ]:
        with pytest.raises(WhitError, match=message):
            engine.call(name, *arguments)
    sequence = engine.sequence(2)
    with pytest.raises(UsageError, match="is full"):
        engine.read([(sequence, 1, False)] * 3)
    with pytest.raises(UsageError, match="no token 50000"):
        engine.read([(sequence, 50000, False)])
    np.testing.assert_array_equal(engine.logits(IDS), before)


def test_files_that_are_no_model_are_told(tmp_path: Path, tiny_file: tuple[Path, Any]) -> None:
    whole = tiny_file[0].read_bytes()
    for content, message in [
        (b"GG", "not a GGUF"),
        (b"PK\3\4" + whole[4:], "not a GGUF"),
        (whole[:-1], "cut short"),
        (whole[: len(whole) // 3], "ends early|cut short"),
        (whole.replace(b"llama", b"mamba", 1), "architecture|missing"),
        (whole.replace(b"blk.1.attn_k.weight", b"blk.1.attn_K.weight"), "does not know"),
        (whole.replace(b"smollm", b"sm0llm"), "cuts text"),
    ]:
        with pytest.raises(BaseError, match=message):
            Engine(content)
    with pytest.raises(BaseError, match="cannot be read"):
        Engine.open(tmp_path / "none.gguf")


def test_notes_are_the_file_s_own_texts(engine: Any) -> None:
    assert engine.note("tokenizer.chat_template") == "{{ messages }}"
    assert engine.note("general.nothing") is None


def test_a_damaged_file_is_an_error_and_no_trap(tiny_file: tuple[Path, Any]) -> None:
    whole = tiny_file[0].read_bytes()
    dice = random.Random(5)
    kept = Engine(whole)
    before, told = kept.logits(IDS), 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(3):
            at = dice.randrange(8, 12_000)
            content[at : at + 8] = dice.choice([b"\xff" * 8, b"\0" * 8, bytes(7) + b"\x80", dice.randbytes(8)])
        # The same instance, again and again: an error leaves it ready for the next file.
        try:
            kept.call("whit_load", kept._lend(bytes(content)), len(content))
        except BaseError:
            told += 1
    kept.call("whit_load", kept._lend(whole), len(whole))
    np.testing.assert_array_equal(kept.logits(IDS), before)
    assert told >= 20
