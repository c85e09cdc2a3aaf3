"""Prompts: the text of transformers' own `apply_chat_template`, and tokens that training and decoding share."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.data.rows import Row, Turn
from whit.data.sandbox import TemplateError
from whit.data.templates import Template, encode_rows
from whit.errors import DataError

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML = (
    "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content"
    " + '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}"
    "{% for message in loop_messages %}{% if message['role'] == 'tool' %}{% continue %}{% endif %}"
    "{% set content = system_message + message['content'] if loop.index0 == 0 else message['content'] %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
ODD = (
    "{% set ns = namespace(count=0) %}{% for m in messages %}\n  {% set ns.count = ns.count + 1 %}\n"
    "{{ m | tojson }}{% if loop.last %}{{ [1, {'a': 'ü<'}] | tojson(indent=2) }}{% endif %}\n{% endfor %}"
    "{{ ns.count }} {{ strftime_now('%Y') }} {{ dict(a=1)['a'] }} {{ tools is none }} {{ eos_token }}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>")


def user(text: str) -> Turn:
    return Turn("user", text)


def row(text: str, answer: str = "yes", id: str = "r") -> Row:
    return Row(id, (user(text),), answer, source="rows.jsonl", line=4)


conversations = st.lists(st.text(max_size=40), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(said=conversations, system=st.none() | st.text(min_size=1, max_size=30))
@pytest.mark.parametrize("source", [SMOLLM2, CHATML, GEMMA, LLAMA2, ODD])
def test_same_text_as_transformers(tokenizer: Any, source: str, said: list[str], system: str | None) -> None:
    if source is GEMMA:
        system = None
    if len(said) % 2 == 0:
        said = said[:-1]
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(said)]
    if system:
        turns.insert(0, Turn("system", system))
    messages = [{"role": t.role, "content": t.content} for t in turns]
    template = Template(source, bos="<s>", eos="</s>")

    def expected(**options: Any) -> str:
        text: str = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
        return text

    assert template.render(turns) == expected(add_generation_prompt=True)
    messages.append({"role": "assistant", "content": "an answer"})
    assert template.render(turns, completion="an answer") == expected()
    messages[1 if system else 0]["content"] = f"do\n\n{said[0]}"
    assert template.render(turns, instruction="do", completion="an answer") == expected()


def test_smollm2_text() -> None:
    template = Template(SMOLLM2)
    text = template.render([Turn("system", "Be brief."), user("hi")], instruction="Answer.")
    said = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAnswer.\n\nhi<|im_end|>\n"
    assert text == f"{said}<|im_start|>assistant\n"
    assert "named SmolLM" in template.render([user("hi")], instruction="Answer.")


def test_prompt_and_answer_make_the_whole() -> None:
    template = Template(CHATML)
    prompt = template.render([user("hi")], instruction="Answer.", examples=[row("a", "b")])
    whole = template.render([user("hi")], instruction="Answer.", examples=[row("a", "b")], completion="ho")
    assert whole == prompt + "ho<|im_end|>\n"


def test_examples_come_between_instruction_and_question() -> None:
    text = Template(CHATML).render(
        [user("third")], instruction="do", examples=[row("first", "one"), row("second", "two")]
    )
    order = [text.index(part) for part in ("do", "first", "one", "second", "two", "third")]
    assert order == sorted(order) and text.count("<|im_start|>user") == 3


def test_without_a_system_role_the_instruction_stands_before_the_first_user_turn() -> None:
    template = Template(GEMMA, bos="<bos>")
    assert not template.takes_system
    text = template.render([Turn("system", "own"), user("hi")], instruction="do", examples=[row("a", "b")])
    assert text.startswith("<bos><start_of_turn>user\ndo\n\nown\n\na<end_of_turn>\n<start_of_turn>model\nb")


def test_a_template_that_drops_the_system_turn_is_noticed() -> None:
    source = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template = Template(source)
    assert not template.takes_system
    assert template.render([user("hi")], instruction="do") == "user: do\n\nhi\n"


def test_instruction_and_own_system_turn_are_both_kept() -> None:
    text = Template(CHATML).render([Turn("system", "own"), user("hi")], instruction="do")
    assert text.startswith("<|im_start|>system\nown<|im_end|>\n<|im_start|>user\ndo\n\nhi<|im_end|>")


def test_plain_form() -> None:
    template = Template(None, bos="<s>", eos="</s>")
    assert template.takes_system
    text = template.render([user("hi")], instruction="do", examples=[row("a", "b")])
    assert text == "<s>do\n\nInput: a\nAnswer:\nb\n\nInput: hi\nAnswer:\n"
    assert template.render([user("hi")], completion="ho") == "<s>Input: hi\nAnswer:\nho</s>"
    talk = [Turn("system", "s"), user("q"), Turn("assistant", "a"), user("r")]
    assert template.render(talk) == "<s>Context: s\nInput: q\nAnswer:\na\nInput: r\nAnswer:\n"


def test_text_of_a_row_is_never_a_template() -> None:
    text = Template(CHATML).render([user("{{ 7 * 6 }}{% raise %}")], instruction="{{ bos_token }}")
    assert "{{ 7 * 6 }}{% raise %}" in text and "{{ bos_token }}" in text


def test_encoding_is_prompt_alone_and_answer_alone() -> None:
    template = Template(CHATML)
    rows = [row("q", "answer", "a"), row("longer question", "no", "b")]
    encoded = encode_rows(rows, template, lambda text: [ord(c) for c in text], stop_id=9, instruction="do")
    for item in encoded:
        prompt = template.render(item.row.turns, instruction="do")
        assert "".join(map(chr, item.prompt_ids)) == prompt
        assert item.completion_ids == [*map(ord, item.row.completion), 9]
    assert [item.row for item in encoded] == rows


def test_rows_beyond_the_context_are_named() -> None:
    rows = [row("short", id="a"), row("long " * 100, id="b"), row("longer " * 100, id="c")]
    options: dict[str, Any] = {"stop_id": 0, "context": 400}
    with pytest.raises(DataError) as caught:
        encode_rows(rows, Template(CHATML), lambda text: list(text.encode()), **options)
    message = str(caught.value)
    assert "2 of 3 rows" in message and "b, c" in message and "400" in message and "id c" in message
    assert len(encode_rows(rows[:1], Template(CHATML), lambda text: list(text.encode()), **options)) == 1
    with pytest.raises(DataError):
        encode_rows(rows[:1], Template(CHATML), lambda text: list(text.encode()), reserve=390, **options)


def test_a_row_that_the_template_refuses_is_named() -> None:
    bad = Row("bad", (user("a"), user("b")), "c", source="rows.jsonl", line=7)
    with pytest.raises(TemplateError, match=r"rows.jsonl, line 7 \(id bad\).*must alternate"):
        encode_rows([row("a"), bad], Template(GEMMA), lambda text: [], stop_id=0)
