"""The page in a real browser: adapters as files, texts, links and pictures; what is refused; what is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Site, until, wait_ready


def text_of(folder: Path) -> str:
    from whit.adapters.adapter import Adapter

    return Adapter.load(folder).to_text()


def test_text_link_and_picture(
    site: Site, visit: Callable[..., Any], adapters: dict[str, Path], tmp_path: Path
) -> None:
    import segno

    text = text_of(adapters["quiet"])
    page = visit(f"{site.address}#adapter={text}&name=gift")
    until(page, "document.querySelector('#try-adapter').value === 'gift'")
    assert "#" not in page.url
    page.click("#tab-share")
    page.wait_for_selector("#share-qr canvas")
    assert page.input_value("#share-text") == text
    with page.expect_download() as loading:
        page.click("#share-qr-save")
    loading.value.save_as(tmp_path / "own.png")
    segno.make(text, error="h", micro=False).save(str(tmp_path / "other.png"), scale=5)
    for name in ("own", "other"):
        page.set_input_files("#share-file", str(tmp_path / f"{name}.png"))
        until(page, f"document.querySelector('#share-adapter').value === '{name}'")
        assert page.input_value("#share-text") == text


def test_what_cannot_be_used_is_refused(
    site: Site, visit: Callable[..., Any], adapters: dict[str, Path], tmp_path: Path
) -> None:
    from whit.adapters import compact

    held = compact.unpack((adapters["quiet"] / "adapter.whit").read_bytes())
    other = compact.pack(
        held.spec, held.vector, number_type="bfloat16", base="ab" * 32, basis=held.basis, layers=held.layers
    )
    page = visit(site.address)
    page.click("#tab-share")
    cases = {
        compact.to_text(other): "another base",
        compact.to_text(other)[:-6]: "",
        "hello": "not the text form",
        text_of(adapters["quiet"]).replace("whit1_d2hpd", "whit1_d2hpc"): "",
    }
    for text, said in cases.items():
        page.fill("#share-paste", text)
        page.click("#share-open")
        page.wait_for_selector("#share-open-status.error")
        assert said in page.text_content("#share-open-status")
        page.evaluate("document.querySelector('#share-open-status').className = ''")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    page.set_input_files("#share-file", str(tmp_path / "broken.zip"))
    page.wait_for_selector("#share-open-status.error")
    page.click("#tab-try")  # and the page lives on
    page.fill("#try-prompt", "Hello")
    page.click("#try-ask")
    until(page, "document.querySelector('#try-tuned-figures').textContent.includes('tokens')")


def test_a_lora_folder_zipped_by_others(
    site: Site, visit: Callable[..., Any], adapters: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    shutil.make_archive(str(tmp_path / "zipped"), "zip", adapters["loud"].parent, "loud")  # compressed
    page = visit(site.address)
    page.click("#tab-share")
    page.set_input_files("#share-file", str(tmp_path / "zipped.zip"))
    until(page, "document.querySelector('#share-adapter').value === 'zipped'")
    same = page.evaluate(
        """async () => {
            const { load } = await import('./whit.js');
            const whit = await load();
            const answers = [];
            for (const adapter of ['loud', 'zipped']) answers.push((await whit.generate('The cat', { adapter, most: 20 }).done).text);
            return answers[0] === answers[1];
        }"""  # noqa: E501
    )
    assert same


def test_the_policy_holds_and_requests_are_listed(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    page.click("#tab-prove")
    page.wait_for_selector("#prove-requests tr")
    listed = page.text_content("#prove-requests")
    for name in ("./worker.js", "./bundle.json", "./base/eeny.gguf", "./engine/"):
        assert name in listed
    assert "0 of them beyond" in page.text_content("#prove-sum")
    # The worker, which obeys only a policy of its own, is held by the page's.
    inside = page.evaluate(
        """() => new Promise((done) => {
            const source = "fetch('https://elsewhere.invalid/').then(() => postMessage('out'), () => 0); "
                + "addEventListener('securitypolicyviolation', (event) => postMessage(event.effectiveDirective))";
            const worker = new Worker(URL.createObjectURL(new Blob([source])));
            worker.onmessage = ({ data }) => done(data);
        })"""
    )
    assert inside == "connect-src"


def test_forget_everything(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    page.click("#tab-prove")
    page.click("#prove-forget")
    page.click("#prove-forget")
    page.wait_for_selector("html[data-state=forgotten]", state="attached")
    left = page.evaluate(
        "async () => [(await indexedDB.databases()).length, (await caches.keys()).length, "
        "(await navigator.serviceWorker.getRegistrations()).length]"
    )
    assert left == [0, 0, 0]


# -- what may be wrong with the model


def test_a_damaged_copy_is_fetched_again(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    page.evaluate(
        """() => new Promise((done, fail) => {
            const asked = indexedDB.open('whit /');
            asked.onsuccess = () => {
                const table = asked.result.transaction('parts', 'readwrite').objectStore('parts');
                table.openCursor().onsuccess = ({ target }) => {
                    const part = target.result.value;
                    part[1000] ^= 1;
                    target.result.update(part).onsuccess = () => { asked.result.close(); done(); };
                };
            };
            asked.onerror = fail;
        })"""
    )
    page.reload()
    wait_ready(page)
    assert "was damaged" in page.text_content("#note") and "from network" in page.text_content("#about")
    page.reload()
    wait_ready(page)
    assert page.is_hidden("#note") and "this device" in page.text_content("#about")


def test_a_device_without_room(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    found = page.evaluate(
        """async () => {
            const { obtain, digest } = await import('./download.js');
            const { Store } = await import('./store.js');
            const store = await Store.open(new URL('./elsewhere/', location));
            const whole = new Uint8Array(9 << 20).fill(7);
            window.fetch = async () => new Response(whole);
            const wanted = { url: new URL('./model', location), bytes: whole.length, sha256: await digest(whole) };
            const small = [];
            navigator.storage.estimate = async () => ({ quota: 5 << 20, usage: 0 });  // it is told beforehand …
            small.push(await obtain(store, wanted, () => {}));
            navigator.storage.estimate = async () => ({});
            const put = IDBObjectStore.prototype.put;  // … or found out on the way
            let count = 0;
            IDBObjectStore.prototype.put = function (...given) {
                if (++count === 2) throw new DOMException('full', 'QuotaExceededError');
                return put.apply(this, given);
            };
            small.push(await obtain(store, wanted, () => {}));
            const left = (await store.keys('parts')).length;
            store.close();
            return [left, ...small.flatMap((each) => [each.kept, each.note, each.content.length])];
        }"""
    )
    assert found[0] == 0 and found[1] is False and found[4] is False
    assert "too little room" in found[2] and "no room left" in found[5] and found[3] == found[6] == 9 << 20


@pytest.mark.parametrize("wrong", ["truncated", "absurd"])
def test_a_model_that_is_none(bundle: Path, visit: Callable[..., Any], tmp_path: Path, wrong: str) -> None:
    import hashlib
    import json
    import shutil

    folder = tmp_path / "page"
    shutil.copytree(bundle, folder)
    about = json.loads((folder / "bundle.json").read_text("utf-8"))
    model = folder / about["base"]["file"]
    content = model.read_bytes()
    content = content[:600_000] if wrong == "truncated" else content[:8] + b"\xff" * 6 + bytes(2) + content[16:]
    model.write_bytes(content)
    about["base"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "bundle.json").write_text(json.dumps(about), "utf-8")
    running = Site(folder)
    try:
        page = visit(running.address, ready=False)
        page.wait_for_selector("html[data-state=failed]", state="attached")
        said = page.text_content("#loading-text")
        assert said and "unreachable" not in said and "stopped in" not in said
    finally:
        running.stop()


def test_a_model_that_stops_on_its_way_goes_on(bundle: Path, visit: Callable[..., Any], site: Site) -> None:
    """The host breaks off after the first part: the rest alone is asked for."""
    page = visit(site.address)
    found = page.evaluate(
        """async () => {
            const { obtain, digest } = await import('./download.js');
            const { Store } = await import('./store.js');
            const store = await Store.open(new URL('./elsewhere/', location));
            const whole = new Uint8Array(9 << 20).map((_, at) => (at * 7) >> 3);
            const wanted = { url: new URL('./model', location), bytes: whole.length, sha256: await digest(whole) };
            await store.put('parts', `${'0'.repeat(64)} 000000`, new Uint8Array(9));  // of a base that the page had before
            const asked = [];
            let broken = true;
            window.fetch = async (url, { headers }) => {
                asked.push(headers.Range ?? 'all');
                const from = Number(/\\d+/.exec(headers.Range ?? '0'));
                let sent = false;
                const body = new ReadableStream({ pull(line) {
                    if (!sent) line.enqueue(whole.slice(from, broken ? 5 << 20 : undefined));
                    else if (broken) line.error(new TypeError('gone'));
                    else line.close();
                    sent = true;
                } });
                return new Response(body, { status: from ? 206 : 200 });
            };
            setTimeout(() => (broken = false), 100);
            const first = await obtain(store, wanted, () => {});
            const again = await obtain(store, wanted, () => {});
            const parts = await store.keys('parts');
            store.close();
            return { asked, old: parts.some((key) => key.startsWith('0')), parts: parts.length, first: first.from, again: again.from, same: again.content.every((byte, at) => byte === whole[at]) };
        }"""  # noqa: E501
    )
    assert found["asked"][:2] == ["all", f"bytes={5 << 20}-"]
    assert found["parts"] == 3 and not found["old"]
    assert found["first"] == "network" and found["again"] == "this device" and found["same"]
