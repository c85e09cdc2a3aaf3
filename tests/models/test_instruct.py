"""Chats have the tokens that whit trains on, only answers are learned, and the kept-back sets are never opened."""

from __future__ import annotations

import numpy as np
import pytest

from models import rows
from models.config import CHAT_TEMPLATE, END_OF_TEXT, TURN_END
from models.instruct import IGNORED, ChatWindows, encode_chat
from whit.data.rows import Turn
from whit.data.templates import Template
from whit.errors import DataError

CHAT = [("user", "Say it.\n\na cat ran\nhome"), ("assistant", "home again")]


def test_tokens_are_those_of_the_template(tokenizer):
    ids, labels = encode_chat(tokenizer, CHAT)
    template = Template(CHAT_TEMPLATE, bos="<|endoftext|>", eos="<|im_end|>")
    prompt = template.render([Turn("user", "a cat ran\nhome")], instruction="Say it.")
    expected = tokenizer.encode(prompt, add_special_tokens=False).ids
    assert ids[: len(expected)] == expected
    answer = [*tokenizer.encode("home again", add_special_tokens=False).ids, TURN_END]
    assert ids[len(expected) : len(expected) + len(answer)] == answer
    assert [label for label in labels if label != IGNORED] == answer


def test_every_answer_of_a_dialogue_is_learned(tokenizer):
    chat = [("user", "a"), ("assistant", "cat"), ("user", "b"), ("assistant", "dog")]
    learned = [label for label in encode_chat(tokenizer, chat)[1] if label != IGNORED]
    assert tokenizer.decode(learned) == "catdog" and learned.count(TURN_END) == 2


def test_no_chat_is_cut_and_every_third_window_is_plain(tokenizer, windows):
    chats = [encode_chat(tokenizer, [("user", f"a {n}"), ("assistant", "the cat sat " * (n % 3))]) for n in range(30)]
    packed = ChatWindows(chats, windows.resized(64), sequence=64)
    ends = sum(labels.count(TURN_END) for _, labels in chats)
    assert 0 < (packed.labels == TURN_END).sum() <= ends
    for row, learned in zip(packed.ids, packed.labels, strict=True):
        assert row[0] == END_OF_TEXT
        inside = [chat for chat in chats if _contains(row.tolist(), chat[0])]
        assert sum(labels.count(TURN_END) for _, labels in inside) >= (learned == TURN_END).sum()
    inputs, labels = packed.batch(0, 3)
    assert np.array_equal(inputs[2], windows.resized(64).window(0)[:-1]) and (labels[2] != IGNORED).all()
    assert (labels[0] == IGNORED).any()
    other = ChatWindows(chats, windows.resized(64), sequence=64, every=2)
    inputs, labels = other.batch(0, 4)
    for place, window in ((1, 0), (3, 1)):
        assert np.array_equal(inputs[place], windows.resized(64).window(window)[:-1])
        assert (labels[place] != IGNORED).all()
    assert np.array_equal(inputs[[0, 2]], packed.ids[:2, :-1]) and other.fingerprint != packed.fingerprint


def _contains(row, chat):
    return any(row[i : i + len(chat)] == chat for i in range(len(row) - len(chat) + 1))


@pytest.mark.parametrize("name", ["sst2", "banking77", "clinc150", "sms_spam"])
def test_the_sets_kept_back_cannot_be_opened(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError):
        rows._task(tmp_path, name)


@pytest.mark.slow
def test_rows_of_the_shared_data_repeat_and_are_well_formed(shared_data):
    first = rows.instruction_rows(shared_data / "corpus", shared_data / "tasks", 20)
    assert first == rows.instruction_rows(shared_data / "corpus", shared_data / "tasks", 20)
    assert len(first) > 25_000
    for turns in first:
        assert turns[-1][0] == "assistant" and all(text.strip() for _, text in turns)
        assert not any("<|" in text for _, text in turns)
