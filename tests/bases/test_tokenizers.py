"""Tokenizers and templates, from a folder and from GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from whit.bases.tokenizers import MAX_TEMPLATE, folder_words, gguf_words, stop_ids
from whit.errors import BaseError
from whit.testing import CHATML

TEXTS = [
    "Hello, world! it's 12 o'clock",
    "  two  spaces\n\n\ttab",
    "Ünïcode 日本語 🎉",
    "<|im_start|>user\nhi<|im_end|>",
    "",
]
WHERE = Path("x.gguf")


def byte_level(**changed: Any) -> dict[str, Any]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_end|>", "</s>", *alphabet, "he", "ll", "12"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["h e", "l l", "1 2"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    } | {f"tokenizer.{key}": value for key, value in changed.items()}


def pieces(**changed: Any) -> dict[str, Any]:
    """A sentencepiece vocabulary in which `hello` can be merged."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "h", "e", "l", "o", "w", "r", "d", "he", "ll", "hell", "hello", "▁hello", "▁w"]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(-index) for index in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.{key}": value for key, value in changed.items()}


def tokens_of(words: Any, text: str) -> list[str]:
    return list(words.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).tokens)


@pytest.mark.parametrize("text", TEXTS)
def test_a_folder_s_tokenizer_is_transformers_own(tiny_folder: Path, text: str) -> None:
    words, expected = folder_words(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)
    found = words.tokenizer.encode(text, add_special_tokens=False)
    assert found == expected.encode(text, add_special_tokens=False)
    assert words.tokenizer.decode(found) == text
    assert (words.template, words.bos, words.eos) == (CHATML, "<|im_start|>", "<|im_end|>")


def test_digits_are_single_where_the_file_says_so() -> None:
    assert tokens_of(gguf_words(byte_level(), WHERE), "12") == ["12"]
    assert tokens_of(gguf_words(byte_level(**{"ggml.pre": "smollm"}), WHERE), "12") == ["1", "2"]
    assert tokens_of(gguf_words(byte_level(**{"ggml.pre": "qwen2"}), WHERE), "12") == ["1", "2"]
    assert tokens_of(gguf_words(byte_level(**{"ggml.pre": "llama-bpe"}), WHERE), "12") == ["12"]


def test_an_unknown_split_is_refused_rather_than_guessed() -> None:
    with pytest.raises(BaseError, match="splits text by 'new-thing'"):
        gguf_words(byte_level(**{"ggml.pre": "new-thing"}), WHERE)


@pytest.mark.parametrize("text", ["hello", "hello hello", "w hello", "日本"])
def test_sentencepiece_is_transformers_own(text: str) -> None:
    words = gguf_words(pieces(), WHERE)
    from transformers.integrations.gguf import convert_gguf_tokenizer

    described = {key.removeprefix("tokenizer.ggml."): value for key, value in pieces().items()}
    described["tokenizer_type"] = "llama"
    expected, _ = convert_gguf_tokenizer("llama", described)
    assert tokens_of(words, text) == expected.encode(text, add_special_tokens=False).tokens
    ids = words.tokenizer.encode(text, add_special_tokens=False)
    assert words.tokenizer.backend_tokenizer.decode(ids) == text


def test_sentencepiece_puts_its_space_before_spaces_too() -> None:
    # as sentencepiece and llama.cpp do
    assert tokens_of(gguf_words(pieces(), WHERE), " h") == ["▁", "▁", "h"]


def test_only_special_tokens_stop_an_answer() -> None:
    words = gguf_words(byte_level(), WHERE)
    assert stop_ids(words) == (0, 1)  # "</s>" is in the vocabulary, but as plain text
    assert stop_ids(words, [7, 8], 9, None, "x", True) == (0, 1, 7, 8, 9)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"ggml.tokens": None}, "no tokenizer"),
        ({"ggml.tokens": [1, 2]}, "no tokenizer"),
        ({"ggml.model": "bert"}, "kind 'bert' is not supported"),
        ({"ggml.model": []}, "is not supported"),
        ({"ggml.merges": ["absent absent"]}, "cannot be built"),
        ({"ggml.merges": 7}, "cannot be built"),
        ({"ggml.merges": [1]}, "cannot be built"),
        ({"ggml.pre": ["x"]}, "cannot be built"),
    ],
)
def test_damaged_metadata_is_refused(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(BaseError, match=reason):
        gguf_words(byte_level(**changed), WHERE)


@pytest.mark.parametrize("scores", [None, [], [0.0], "x"])
def test_sentencepiece_without_scores_is_refused(scores: Any) -> None:
    with pytest.raises(BaseError, match="no scores"):
        gguf_words(pieces(**{"ggml.scores": scores}), WHERE)


def test_ids_outside_the_vocabulary_are_left_out() -> None:
    words = gguf_words(byte_level(**{"ggml.bos_token_id": 10**9, "ggml.eos_token_id": -1}), WHERE)
    assert words.bos == words.eos == ""


def rewrite(folder: Path, **values: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_templates_of_a_folder(tiny_copy: Path) -> None:
    rewrite(tiny_copy, chat_template=[{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}])
    assert folder_words(tiny_copy).template == "D"
    rewrite(tiny_copy, chat_template=None)
    assert folder_words(tiny_copy).template is None
    (tiny_copy / "chat_template.jinja").write_text("J")
    assert folder_words(tiny_copy).template == "J"


def test_tokens_may_be_described_by_objects(tiny_copy: Path) -> None:
    rewrite(tiny_copy, eos_token={"content": "<|endoftext|>", "lstrip": False}, bos_token=None)
    words = folder_words(tiny_copy)
    assert (words.bos, words.eos) == ("", "<|endoftext|>")


def test_huge_templates_are_refused(tiny_copy: Path) -> None:
    rewrite(tiny_copy, chat_template="x" * (MAX_TEMPLATE + 1))
    with pytest.raises(BaseError, match="chat template"):
        folder_words(tiny_copy)
    (tiny_copy / "chat_template.jinja").write_text("x" * (MAX_TEMPLATE + 1))
    with pytest.raises(BaseError, match="chat template"):
        folder_words(tiny_copy)


def test_a_folder_without_tokenizer_json_says_what_to_do(tiny_copy: Path) -> None:
    (tiny_copy / "tokenizer.json").unlink()
    (tiny_copy / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(BaseError, match="save_pretrained"):
        folder_words(tiny_copy)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "Evil"}}', "\0"])
def test_a_damaged_tokenizer_is_refused(tiny_copy: Path, content: str) -> None:
    (tiny_copy / "tokenizer.json").write_text(content)
    with pytest.raises(BaseError, match=r"tokenizer\.json"):
        folder_words(tiny_copy)
