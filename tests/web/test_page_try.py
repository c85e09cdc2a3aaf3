"""The page in a real browser: load, ask, switch, go on with the network off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Site, until, wait_ready


def ask(page: Any, text: str) -> str:
    page.fill("#try-prompt", text)
    page.click("#try-ask")
    until(page, "document.querySelector('#try-tuned-figures').textContent.includes('tokens')")
    return str(page.text_content("#try-tuned"))


def test_it_answers_as_python_does(site: Site, visit: Callable[..., Any], eeny: Any, adapters: dict[str, Path]) -> None:
    from whit.adapters.adapter import Adapter
    from whit.adapters.tunable import bind
    from whit.data.rows import Turn
    from whit.evaluation.decoding import Decoder

    page = visit(site.address)
    page.click("#try-form summary")
    page.fill("#try-instruction", "Be short.")
    page.fill("#try-most", "24")
    found = ask(page, "The cat sat on")
    bare = page.text_content("#try-base")
    prompt = eeny.encode(eeny.template.render([Turn("user", "The cat sat on")], instruction="Be short."))
    wanted = Decoder(eeny).answers([prompt], most=24)[0]
    assert bare == eeny.decode(wanted)
    bound = bind(eeny, Adapter.load(adapters["loud"]))
    try:
        tuned = Decoder(eeny, bound).answers([prompt], most=24)[0]
    finally:
        bound.detach()
    assert found == eeny.decode(tuned) != bare


def test_network_off_and_server_gone(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    before = ask(page, "One day")
    site.stop()
    page.context.set_offline(True)
    page.reload()
    wait_ready(page)
    assert "this device" in page.text_content("#about")
    assert ask(page, "One day") == before


def test_switching_is_quick(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    page.evaluate("""async () => {
        const { load } = await import('./whit.js');
        const whit = window.whit = await load();
        for (const name of ['loud', 'quiet']) await whit.setAdapter(name);
    }""")
    took = page.evaluate("""async () => {
        const began = performance.now();
        for (const name of ['loud', 'quiet', 'loud', 'quiet']) await whit.setAdapter(name);
        return (performance.now() - began) / 4;
    }""")
    assert took < 50


@pytest.mark.parametrize("name", ["loud", "quiet"])
def test_each_adapter_changes_the_answer(site: Site, visit: Callable[..., Any], name: str) -> None:
    page = visit(site.address)
    page.select_option("#try-adapter", name)
    until(page, f"document.querySelector('#try-name-tuned').textContent === '{name}'")
    assert ask(page, "Tell me a story.") != page.text_content("#try-base")
