"""The page as people use it: any static host, by keyboard, on narrow screens, with files of all sorts, without room."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .conftest import Site, until, wait_ready
from .test_page_teach import give_rows, sorting_rows

VIEWS = ("try", "teach", "share", "prove")


def ask(page: Any, text: str) -> None:
    page.click("#tab-try")
    page.fill("#try-prompt", text)
    page.click("#try-ask")
    until(page, "document.querySelector('#try-tuned-figures').textContent.includes('tokens')")


class PlainHost:
    """A static host without ranges or policies, with the bundle two folders down; it lists what it is asked."""

    def __init__(self, root: Path) -> None:
        asked = self.asked = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    asked: list[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/some/place/"


@pytest.fixture
def host(bundle: Path, tmp_path: Path) -> Iterator[PlainHost]:
    shutil.copytree(bundle, tmp_path / "some" / "place")
    running = PlainHost(tmp_path)
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_any_static_host_is_asked_once(host: PlainHost, visit: Callable[..., Any]) -> None:
    page = visit(host.address)
    ask(page, "Hello")
    page.wait_for_timeout(1500)
    first = len(host.asked)
    assert all(path.startswith("/some/place/") for path in host.asked)
    page.select_option("#try-adapter", "quiet")
    ask(page, "Hello")
    give_rows(page, sorting_rows(30))
    page.wait_for_selector("#teach-found:not([hidden])")
    page.click("#tab-share")
    page.wait_for_selector("#share-qr canvas")
    page.reload()
    wait_ready(page)
    ask(page, "Hello")
    page.wait_for_timeout(1500)
    # A browser looks by itself whether the service worker was renewed; nothing else is asked for, and nothing is said.
    assert set(host.asked[first:]) <= {"/some/place/sw.js"}


def test_by_keyboard(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    page.focus("#tab-try")
    for key, view in (
        ("ArrowRight", "teach"),
        ("End", "prove"),
        ("ArrowRight", "try"),
        ("ArrowLeft", "prove"),
        ("Home", "try"),
    ):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == f"tab-{view}" and page.is_visible(f"#view-{view}")
    for wanted in ("try-adapter", "try-both", "try-prompt"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == wanted
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#try-tuned-figures').textContent.includes('tokens')")
    assert page.text_content("#announce").startswith("Answer: ")


def test_what_a_screen_reader_is_told(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    found = page.evaluate(
        """() => {
            const asked = 'input, select, textarea, button, progress, [tabindex], [role]';
            const nameless = [...document.querySelectorAll(asked)]
                .filter((each) => !['status', 'alert'].includes(each.getAttribute('role')) && each.id !== 'main')
                .filter((each) => !(each.labels?.length || each.getAttribute('aria-label') || each.textContent.trim()
                    || document.getElementById(each.getAttribute('aria-labelledby'))?.textContent))
                .map((each) => each.outerHTML.slice(0, 80));
            const ids = [...document.querySelectorAll('[id]')].map((each) => each.id);
            const dangling = [...document.querySelectorAll('label[for], [aria-controls], [aria-labelledby]')]
                .flatMap((each) => ['for', 'aria-controls', 'aria-labelledby'].map((name) => each.getAttribute(name)))
                .filter((id) => id && !document.getElementById(id));
            return [nameless, ids.length - new Set(ids).size, dangling, document.documentElement.lang];
        }"""
    )
    assert found == [[], 0, [], "en"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(site: Site, visit: Callable[..., Any], scheme: str) -> None:
    page = visit(site.address, color_scheme=scheme)
    ask(page, "word" * 60)
    give_rows(page, sorting_rows(30).replace("number 7.", "number " + "7" * 200))
    page.wait_for_selector("#teach-found:not([hidden])")
    page.click("#view-teach summary:has-text('Or type them')")
    for width in (320, 390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        for view in VIEWS:
            page.click(f"#tab-{view}")
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, view)
    # WCAG 2.2, 1.4.3: text against what is behind it.
    poor = page.evaluate(
        """() => {
            const root = getComputedStyle(document.documentElement);
            const light = (name) => {
                const hex = root.getPropertyValue(name).trim();
                const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
                    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const pairs = ['--ink', '--faint', '--good', '--bad'].flatMap((ink) => [[ink, '--paper'], [ink, '--card']]);
            pairs.push(['--main-ink', '--main'], ['--ink', '--warn-paper']);
            return pairs.map((pair) => [pair, pair.map(light).sort((a, b) => b - a)])
                .map(([pair, [above, below]]) => [...pair, (above + 0.05) / (below + 0.05)])
                .filter(([, , ratio]) => !(ratio >= 4.5));
        }"""
    )
    assert poor == []


def test_rows_typed_dropped_and_chosen(site: Site, visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit(site.address)
    page.click("#tab-teach")
    page.click("#view-teach summary:has-text('Or type them')")
    # A row's fields stay in sight: no heading lies over them while the page is scrolled.
    page.evaluate("document.querySelector('#teach-typed tr').scrollIntoView()")
    assert page.evaluate(
        """() => {
            const { x, y, width, height } = document.querySelector('#teach-typed input').getBoundingClientRect();
            return document.elementFromPoint(x + width / 2, y + height / 2).matches('#teach-typed input');
        }"""
    )
    for _ in range(9):
        page.click("#teach-more")
    for at, field in enumerate(page.query_selector_all("#teach-typed input")[:22]):
        field.fill(f"input {at}" if at % 2 == 0 else "ab"[at // 2 % 2])
    page.click("#teach-use-typed")
    until(page, "document.querySelector('#teach-count').textContent.startsWith('11 rows')")
    assert page.is_enabled("#teach-train")

    page.evaluate(
        """(text) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([text], 'rows.csv'));
            const event = new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true });
            document.querySelector('#teach-drop').dispatchEvent(event);
        }""",
        sorting_rows(25),
    )
    until(page, "document.querySelector('#teach-count').textContent.startsWith('25 rows')")

    def choose(content: bytes) -> str:
        """What the page says of a file: how many rows, or why not."""
        (tmp_path / "rows.csv").write_bytes(content)
        page.evaluate("document.querySelector('#teach-count').textContent = ''")
        page.set_input_files("#teach-file", [])
        page.set_input_files("#teach-file", str(tmp_path / "rows.csv"))
        until(
            page,
            """document.querySelector('#teach-count').textContent !== ''
            || document.querySelector('#teach-read-status').className.includes('error')""",
        )
        return str(page.text_content("#teach-count") or page.text_content("#teach-read-status"))

    text = sorting_rows(20).replace("a cat", "a café")
    line = next(at for at, each in enumerate(text.splitlines(), 1) if "café" in each)
    for content, said in (
        (text.encode("utf-16"), "20 rows"),
        (text.encode("latin-1"), f"not UTF-8; the first letter that is none stands in line {line}."),
        (text.encode("utf-8-sig"), "20 rows"),
        (b"PK\x03\x04" + bytes(50), "save it as CSV first"),
        (text.encode("utf-8"), "20 rows"),
        (b"prompt,completion\na\0b,c\n", "no text"),
    ):
        assert said in choose(content)


def test_an_instruction_that_leaves_no_room_is_told(site: Site, visit: Callable[..., Any]) -> None:
    page = visit(site.address)
    give_rows(page, sorting_rows(20))
    page.wait_for_selector("#teach-train:enabled")
    page.fill("#teach-instruction", "Sort it well. " * 400)
    page.click("#teach-train")
    page.wait_for_selector("#teach-error.error")
    assert "With the instruction, 20 rows are longer" in page.text_content("#teach-error")


def test_a_browser_that_gives_no_room(site: Site, visit: Callable[..., Any]) -> None:
    """Not a stand-in for the quota, but the browser's own: everything works, what is not kept is said."""
    context = visit(site.address + "bundle.json", ready=False).context
    tools = context.new_cdp_session(context.pages[0])
    tools.send("Storage.overrideQuotaForOrigin", {"origin": site.address.rstrip("/"), "quotaSize": 1000})
    page = visit(site.address, ready=False, context=context)
    wait_ready(page, offline=False)
    assert "no room left" in page.text_content("#note")
    until(page, "document.querySelector('#offline').textContent.startsWith('needs the network')")
    ask(page, "Hello")
    found = page.evaluate(
        """async () => {
            const { load } = await import('./whit.js');
            const whit = await load();
            const rows = Array.from({ length: 12 }, (_, at) => ({ prompt: `n ${at}`, completion: "ab"[at % 2] }));
            const { adapter } = await whit.train(rows, { epochs: 1, name: 'brief' }).done;
            const listed = (await whit.adapters()).map((each) => each.name);
            const file = await whit.export('brief');
            whit.close();
            return [adapter.kept, listed.includes('brief'), file.content.length > 1000];
        }"""
    )
    assert found == [False, True, True]


def test_two_tabs_take_no_name_twice(site: Site, visit: Callable[..., Any], adapters: dict[str, Path]) -> None:
    from whit.adapters.adapter import Adapter

    text = Adapter.load(adapters["quiet"]).to_text()
    first = visit(site.address)
    second = visit(site.address, context=first.context)
    for page in (first, second):
        page.evaluate("async () => { window.whit = await (await import('./whit.js')).load(); }")
    names = [page.evaluate("async (text) => (await whit.add('gift', text)).name", text) for page in (first, second)]
    assert names == ["gift", "gift-2"]
    assert first.evaluate("async () => (await whit.adapters()).map((each) => each.name)") == ["loud", "quiet", *names]


def test_adapters_that_lie_are_errors_that_say_so(
    site: Site, visit: Callable[..., Any], adapters: dict[str, Path], tmp_path: Path
) -> None:
    """A zip, its LoRA, and a compact file, changed at random: each is read or refused by whit's own error."""
    import base64

    shutil.make_archive(str(tmp_path / "lora"), "zip", adapters["loud"].parent, "loud")
    plain = tmp_path / "plain.zip"
    import zipfile

    with zipfile.ZipFile(plain, "w") as packed:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            packed.write(adapters["loud"] / name, name)
    dice = random.Random(3)
    wholes = [
        (tmp_path / "lora.zip").read_bytes(),
        plain.read_bytes(),
        (adapters["quiet"] / "adapter.whit").read_bytes(),
    ]
    damaged = []
    for turn in range(240):
        content = bytearray(wholes[turn % 3])
        for _ in range(dice.randint(1, 4)):
            # Heads, lengths and lists stand at the ends.
            at = dice.choice(
                [
                    dice.randrange(len(content)),
                    dice.randrange(min(3000, len(content))),
                    len(content) - 1 - dice.randrange(min(300, len(content))),
                ]
            )
            content[at : at + 4] = dice.choice([b"\xff" * 4, b"\0" * 4, dice.randbytes(4)])
        if dice.random() < 0.2:
            del content[dice.randrange(len(content)) :]
        damaged.append(base64.b64encode(content).decode())
    page = visit(site.address)
    found = page.evaluate(
        """async (damaged) => {
            const { load } = await import('./whit.js');
            const whit = await load();
            const before = (await whit.generate('The cat', { adapter: null, most: 12 }).done).text;
            const strange = [];
            let [fine, refused] = [0, 0];
            for (const text of damaged) {
                try {
                    const info = await whit.add('odd', Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
                    await whit.remove(info.name);
                    fine++;
                } catch (error) {
                    if (['adapter', 'base', 'basis'].includes(error.kind)) refused++;
                    else strange.push(`${error.kind}: ${error.message}`);
                }
            }
            const same = before === (await whit.generate('The cat', { adapter: null, most: 12 }).done).text;
            whit.close();
            return { strange, fine, refused, same };
        }""",
        damaged,
    )
    assert found["strange"] == [] and found["same"] and found["refused"] > 100
