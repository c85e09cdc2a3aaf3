"""The page in a real browser: teach from rows, be cut short, go on, prove, take the adapter to Python."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Site, until, wait_ready

ANIMALS = ("cat", "dog", "cow", "duck", "frog", "horse")
THINGS = ("car", "house", "chair", "lamp", "spoon", "book")


def sorting_rows(count: int) -> str:
    """CSV of an easy task: is it an animal or a thing?"""
    drawn = random.Random(0)
    lines = ["prompt,completion"]
    for number in range(count):
        word = drawn.choice(ANIMALS + THINGS)
        lines.append(f'"I saw a {word}, number {number}.",{"animal" if word in ANIMALS else "thing"}')
    return "\n".join(lines) + "\n"


def give_rows(page: Any, text: str) -> None:
    page.click("#tab-teach")
    page.click("#teach-paste-box summary")
    page.fill("#teach-paste", text)
    page.click("#teach-read")


@pytest.mark.slow
def test_teach_cut_short_go_on_export_import(site: Site, visit: Callable[..., Any], eeny: Any, tmp_path: Path) -> None:
    from whit.adapters.adapter import Adapter
    from whit.adapters.tunable import bind
    from whit.data.rows import Turn
    from whit.evaluation.decoding import Decoder

    page = visit(site.address)
    site.stop()
    page.context.set_offline(True)
    give_rows(page, sorting_rows(120))
    page.wait_for_selector("#teach-found:not([hidden])")
    assert "120 rows" in page.text_content("#teach-count")
    page.fill("#teach-instruction", "Animal or thing?")
    page.fill("#teach-name", "sorter")
    page.click("#view-teach summary:has-text('Settings')")
    page.fill("#teach-epochs", "8")
    page.click("#teach-train")
    until(page, "/^Step (9|\\d\\d)/.test(document.querySelector('#teach-left').textContent)", seconds=120)
    page.reload()
    wait_ready(page)
    page.click("#tab-teach")
    page.wait_for_selector("#teach-running:not([hidden])")
    page.wait_for_selector("#teach-result:not([hidden])", timeout=280_000)
    sentence = page.text_content("#teach-sentence")
    assert "24 held-out rows" in sentence and "95 % interval" in sentence
    page.click("#teach-share")
    until(page, "document.querySelector('#share-adapter').value === 'sorter'")
    with page.expect_download() as loading:
        page.click("#share-download")
    loading.value.save_as(tmp_path / "sorter.zip")
    held = Adapter.load(tmp_path / "sorter.zip")
    assert held.kind == "lora" and held.base == eeny.fingerprint
    prompts = ["I saw a cat, number 500.", "I saw a lamp, number 501.", "I saw a horse, number 502."]
    inside = page.evaluate(
        """async (prompts) => {
            const { load } = await import('./whit.js');
            const whit = await load();
            await whit.setAdapter('sorter');
            const answers = [];
            for (const prompt of prompts) answers.push((await whit.generate(prompt, { most: 8 }).done).text);
            whit.close();
            return answers;
        }""",
        prompts,
    )
    bound = bind(eeny, held)
    try:
        ids = [
            eeny.encode(eeny.template.render([Turn("user", each)], instruction="Animal or thing?")) for each in prompts
        ]
        outside = [eeny.decode(answer) for answer in Decoder(eeny, bound).answers(ids, most=8)]
    finally:
        bound.detach()
    assert inside == outside


def test_rows_with_problems(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    give_rows(page, "prompt,completion\nonly one,row\n")
    page.wait_for_selector("#teach-problems li")
    assert "There is one usable row" in page.text_content("#teach-problems")
    assert page.is_disabled("#teach-train")
    page.fill("#teach-paste", "prompt,completion\na,b,c\n")
    page.click("#teach-read")
    page.wait_for_selector("#teach-read-status.error")
    assert "Line 2 has 3 columns" in page.text_content("#teach-read-status")


def test_two_tabs(site: Site, visit: Callable[..., Any]) -> None:
    first = visit(site.address)
    second = visit(site.address, context=first.context)
    for page in (first, second):
        give_rows(page, sorting_rows(60))
        page.wait_for_selector("#teach-train:enabled")
    first.click("#view-teach summary:has-text('Settings')")
    first.fill("#teach-epochs", "50")  # so that it still trains when it is to be paused
    first.click("#teach-train")
    until(first, "document.querySelector('#teach-left').textContent.startsWith('Step')")
    second.click("#teach-train")
    second.wait_for_selector("#teach-error.error")
    assert "Another tab" in second.text_content("#teach-error")
    first.click("#teach-pause")
    first.wait_for_selector("#teach-resume:not([hidden])")
    assert "can go on" in first.text_content("#teach-resume-text")
    first.click("#teach-discard")
    first.wait_for_selector("#teach-resume", state="hidden")


@pytest.mark.slow
def test_a_large_file_leaves_the_page_awake(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    found = page.evaluate(
        """async () => {
            const { load } = await import('./whit.js');
            const whit = await load();
            const line = 'a message of some length that goes on and on, number ';
            const lines = Array.from({ length: 800000 }, (_, at) => `"${line}${at}",${at % 2 ? 'yes' : 'no'}\\n`);
            const file = new Blob(['prompt,completion\\n', ...lines]);
            let ticks = 0;
            const clock = setInterval(() => ticks++, 20);
            const read = await whit.readRows(file);
            clearInterval(clock);
            whit.close();
            return { bytes: file.size, rows: read.rows.length, ticks, said: read.problems.map((each) => each.message) };
        }"""
    )
    assert found["bytes"] > 50_000_000 and found["rows"] == 2000 and found["ticks"] > 5
    assert any("The first 2,000 of 800,000" in said for said in found["said"])


def test_the_module_with_few_lines(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    found = page.evaluate(
        """async () => {
            const { load } = await import('./whit.js');
            const whit = await load();
            await whit.setAdapter('loud');
            let text = '';
            for await (const piece of whit.generate('The cat', { most: 12 })) text += piece;
            const whole = await whit.generate('The cat', { most: 12 }).done;
            const rows = Array.from({ length: 12 }, (_, at) => ({ prompt: `n ${at}`, completion: "ab"[at % 2] }));
            const trained = await whit.train(rows, { epochs: 1, name: 'parity' }).done;
            const names = (await whit.adapters()).map((info) => info.name);
            whit.close();
            const { result, test } = trained;
            return JSON.stringify({ same: text === whole.text, names, verdict: result.verdict, test });
        }"""
    )
    found = json.loads(found)
    assert found["same"] and found["names"] == ["loud", "quiet", "parity"]
    assert found["verdict"] == "not enough data" and found["test"] == 2
