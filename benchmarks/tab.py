"""A tab under measurement: Chromium without a window, a server of files, a bundle in it, and wllama as the peer.

Every tab has a browser of its own, so that processor time and memory of its renderer are its alone. Processor time is
reported beside the clock's: on a busy machine the clock says little. Knows no figures.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from common import tell

WLLAMA = "3.8.1"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_CALL = "async ([name, given]) => (await import('/tab.js'))[name](...given)"
_LONGEST = 3_600_000  # milliseconds that one call may take


class _Files(SimpleHTTPRequestHandler):
    isolated = False

    def end_headers(self) -> None:
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stderr is for progress."""


class _Isolated(_Files):
    isolated = True


class Tab:
    """One page in a browser of its own."""

    def __init__(self, driver: Any, address: str) -> None:
        named = os.environ.get("WHIT_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
        if not named:
            sys.exit("there is no Chromium here; set WHIT_BROWSER to one")
        self.browser = driver.chromium.launch(
            executable_path=named, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"], timeout=_LONGEST
        )
        self.address = address
        self.context = self.browser.new_context()
        self.page = self.context.new_page()
        self.page.set_default_timeout(_LONGEST)
        self.page.goto(f"{address}/blank.html")
        self._system = self.browser.new_browser_cdp_session()

    def call(self, name: str, *given: Any) -> Any:
        """What a function of tab.js answers."""
        return self.page.evaluate(_CALL, [name, list(given)])

    def timed(self, name: str, *given: Any) -> tuple[Any, float, float]:
        """The same, with the seconds it took and the processor seconds that the tab used meanwhile."""
        began, spent = time.monotonic(), self._spent()
        found = self.call(name, *given)
        return found, time.monotonic() - began, self._spent() - spent

    def memory(self) -> int:
        """Bytes that the tab's process holds by itself (its proportional share of what is shared included)."""
        return max(_resident(process["id"]) for process in self._renderers())

    def _renderers(self) -> list[dict[str, Any]]:
        about = self._system.send("SystemInfo.getProcessInfo")["processInfo"]
        return [process for process in about if process["type"] == "renderer"]

    def _spent(self) -> float:
        return sum(float(process["cpuTime"]) for process in self._renderers())


def _resident(process: int) -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class Bench:
    """A temporary folder that is served, and the tabs open on it."""

    def __init__(self, folder: Path, driver: Any, kept: Path | None, peer: Path | None) -> None:
        self.folder, self.driver, self.kept = folder, driver, kept
        self._peer = peer
        self._addresses: dict[bool, str] = {}
        self._close = contextlib.ExitStack()
        (folder / "blank.html").write_text("<!doctype html><title>benchmark</title>\n", "utf-8")
        shutil.copyfile(Path(__file__).with_name("tab.js"), folder / "tab.js")

    def bundle(self, base: str) -> Path:
        """Serve a bundle of the bare base as /page/; a kept one is taken if base, page and engine are the same."""
        from whit.settings import BundleSettings
        from whit.verbs.bundle import bundle

        made = (self.kept or self.folder / "bundles") / f"{base}-{_state(base)}"
        if not (made / "bundle.json").is_file():
            tell(f"bundle of {base}")
            made.parent.mkdir(parents=True, exist_ok=True)
            bundle(BundleSettings(adapters=(), out=made, base=base))
        link = self.folder / "page"
        link.unlink(missing_ok=True)
        link.symlink_to(made.resolve())
        return made

    def peer(self) -> Path:
        """Serve wllama as /peer/: a package fetched by npm into the temporary folder, or one named."""
        if self._peer is None:
            if not shutil.which("npm"):
                sys.exit("there is no npm here to fetch wllama with; name an unpacked package with --peer")
            tell(f"wllama {WLLAMA} from npm")
            place = self.folder / "npm"
            place.mkdir()
            npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"@wllama/wllama@{WLLAMA}"]
            subprocess.run(npm, cwd=place, check=True, stdout=subprocess.DEVNULL)
            self._peer = place / "node_modules" / "@wllama" / "wllama"
        link = self.folder / "peer"
        if not link.is_symlink():
            link.symlink_to((self._peer / "esm").resolve())
        return self._peer

    def tab(self, *, isolated: bool = False) -> Tab:
        """A fresh tab; `isolated` with the headers that threads need."""
        if isolated not in self._addresses:
            handler = partial(_Isolated if isolated else _Files, directory=str(self.folder))
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self._close.callback(server.shutdown)
            self._addresses[isolated] = f"http://127.0.0.1:{server.server_address[1]}"
        tab = Tab(self.driver, self._addresses[isolated])
        self._close.callback(tab.browser.close)
        return tab

    def close(self) -> None:
        self._close.close()


@contextlib.contextmanager
def bench(kept: Path | None, peer: Path | None) -> Iterator[Bench]:
    """A place to measure in, cleared away afterwards (but for what `kept` holds)."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        made = Bench(Path(name), driver, kept, peer)
        try:
            yield made
        finally:
            made.close()


def _state(base: str) -> str:
    """What a bundle is made of: the base's file, the page and the engine, as a short hash."""
    import whit
    from whit.bases.names import resolve

    package = Path(whit.__file__).parent
    parts = [*sorted((package / "bundle" / "page").rglob("*")), *sorted((package / "engine" / "wasm").glob("*"))]
    found = hashlib.sha256()
    for path in (resolve(base).path, *parts):
        if path.is_file():
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:12]


if __name__ == "__main__":
    print(__doc__)
