"""Token for token what `tokenizers` gives, for all scripts and for bytes that are no text."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from whit.engine import Engine

SENTENCES = [
    "I've got 42 apples, and they're $3.50 each; don't you'll see? It's WE'RE i'M he'd 'tis",
    "Die Straße über München kostet 1.234,56 €. Ça va bien, l'été à Noël. Añoranza, coração, Łódź.",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Ελληνικά και σύμβολα.",
    "我能吞下玻璃而不伤身体。日本語の文章、カタカナとひらがな。한국어 문장입니다. ๑๒๓ ภาษาไทย",
    "يمكنني أكل الزجاج ١٢٣ ولا يؤلمني. עברית עם נִקּוּד. हिन्दी में लिखा हुआ १२३. বাংলা தமிழ் ქართული አማርኛ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 n\u0303 ﬁ Ⅷ ½ ² ① 𝔘𝔫𝔦 𝟘𝟙 \u200b\u200d\ufeff\u00ad",
    "def f(x):\n\treturn  x**2   # tabs\r\n\r\n\n   \n\u3000全角\u00a0nbsp\u2028line\u0085nel\x0b\x0c\x1c\x00",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|><|im_start|> <|im_end <|endoftext|>",
]


def strings(count: int, seed: int) -> Iterator[str]:
    """Sentences cut up and mixed with characters of every kind that Unicode has."""
    dice = random.Random(seed)
    kinds: dict[str, list[str]] = {}
    for point in range(0x110000):
        if not 0xD800 <= point < 0xE000 and (point < 0x30000 or point > 0xE0000):
            kinds.setdefault(unicodedata.category(chr(point)), []).append(chr(point))
    classes = list(kinds.values())
    yield from ["", " ", "  ", "\n", "'", "' s", "  's", "a  1", "1  a", *SENTENCES]
    for _ in range(count):
        parts = []
        for _ in range(dice.randint(1, 6)):
            match dice.randrange(5):
                case 0:
                    sentence = dice.choice(SENTENCES)
                    start = dice.randrange(len(sentence))
                    parts.append(sentence[start : start + dice.randint(1, 25)])
                case 1:
                    parts.append("".join(dice.choice(dice.choice(classes)) for _ in range(dice.randint(1, 6))))
                case 2:
                    parts.append("".join(dice.choice(dice.choice(classes)) * dice.randint(1, 3)))
                case 3:
                    parts.append(dice.choice([" ", "  ", "\n", "\t ", "'", "'s", "'ll", "0", "1a", "<|im_end|>", "<|"]))
                case _:
                    parts.append("".join(dice.choices("abcdefghijklmnopqrstuvwxyzABC '.,", k=dice.randint(1, 12))))
        yield "".join(parts)


def broken(count: int, seed: int) -> Iterator[bytes]:
    """Bytes that are mostly no UTF-8."""
    dice = random.Random(seed)
    for _ in range(count):
        content = bytearray(dice.choice(SENTENCES).encode()[: dice.randint(1, 60)])
        for _ in range(dice.randint(1, 5)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        yield bytes(content)


def differences(engine: Any, reference: Tokenizer, count: int, seed: int) -> list[Any]:
    wrong: list[Any] = []
    for text in strings(count, seed):
        expected = reference.encode(text, add_special_tokens=False).ids
        if engine.encode(text) != expected:
            wrong.append((text, engine.encode(text), expected))
    for content in broken(count // 5, seed):
        expected = reference.encode(content.decode("utf-8", "replace"), add_special_tokens=False).ids
        if engine.encode(content) != expected:
            wrong.append((content, engine.encode(content), expected))
    return wrong


def test_the_tiny_vocabulary(engine: Any, tokenizer_json: Any) -> None:
    reference = Tokenizer.from_str(json.dumps(tokenizer_json))
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert differences(engine, reference, 3000, seed=1)[:3] == []


def test_text_comes_back(engine: Any) -> None:
    for text in SENTENCES:
        assert engine.decode(engine.encode(text), specials=True) == text
    marked = engine.encode("<|im_start|>hi")
    assert engine.decode(marked) == "hi" and engine.decode(marked, specials=True) == "<|im_start|>hi"
    plain = engine.encode("<|im_start|>hi", specials=False)
    assert marked[0] not in plain and engine.decode(plain) == "<|im_start|>hi"


def test_a_long_word_takes_no_quadratic_time(engine: Any) -> None:
    import time

    start = time.process_time()
    assert engine.decode(engine.encode("ab" * 200_000)) == "ab" * 200_000
    assert time.process_time() - start < 20


def test_our_own_vocabulary() -> None:
    from whit.bases import load_base

    base = load_base("eeny", dtype="float32")
    assert differences(Engine.open(base.path), base.tokenizer.backend_tokenizer, 3000, seed=3)[:3] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tens_of_thousands_of_strings_on_smollm2(smollm2: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(smollm2)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(line.split(" ")) for line in reader.fields["tokenizer.ggml.merges"].contents()]
    reference = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    reference.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    reference.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    assert differences(Engine.open(smollm2), reference, 40_000, seed=2)[:3] == []
