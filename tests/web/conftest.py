"""What the tests of the page share: a bundle of eeny with two small adapters, a server of it, a real browser."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def make_lora(folder: Path, base: Any, *, scale: float, seed: int) -> Path:
    """A LoRA of rank 2 with random numbers."""
    import torch

    from whit.adapters.lora import LoraWeights
    from whit.adapters.targets import all_targets

    drawn = torch.Generator().manual_seed(seed)
    A, B = {}, {}
    for target in all_targets(name for name, _ in base.model.named_modules()):
        out, wide = base.weight(target.name).shape
        A[target.name] = torch.randn(2, wide, generator=drawn) / wide**0.5
        B[target.name] = torch.randn(out, 2, generator=drawn) * scale
    LoraWeights(2, 4.0, A, B, base=base.fingerprint, base_name=base.name).save(folder)
    return folder


@pytest.fixture(scope="session")
def eeny() -> Any:
    from whit.bases import load_base

    return load_base("eeny", dtype="float32")


@pytest.fixture(scope="session")
def adapters(eeny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`loud`, a LoRA, and `quiet`, an xs adapter of few numbers."""
    import numpy as np

    from whit.adapters.adapter import Adapter
    from whit.adapters.basis import basis_of
    from whit.adapters.vector import VectorSpec

    place = tmp_path_factory.mktemp("adapters")
    basis = basis_of(eeny, 2)
    spec = VectorSpec("tiny", 2, 13, 1, tuple(target.index for target in basis.targets), 0)
    vector = np.random.default_rng(0).normal(0, 0.3, spec.numbers).astype(np.float32)
    Adapter.from_vector(spec, vector, basis).save(place / "quiet")
    return {"loud": make_lora(place / "loud", eeny, scale=0.2, seed=0), "quiet": place / "quiet"}


@pytest.fixture(scope="session")
def bundle(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of eeny with both adapters; not to be changed."""
    from whit.settings import BundleSettings
    from whit.verbs.bundle import bundle as verb

    out = tmp_path_factory.mktemp("bundle") / "page"
    verb(BundleSettings(adapters=tuple(str(path) for path in adapters.values()), out=out, base="eeny"))
    return out


class Site:
    """A bundle on loopback that can be stopped and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.server: ThreadingHTTPServer | None = None
        self.start()

    def start(self) -> None:
        from whit.bundle.server import make_server

        self.server = make_server(self.folder, self.port)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@pytest.fixture
def site(bundle: Path) -> Iterator[Site]:
    running = Site(bundle)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium without a window; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    named = os.environ.get("WHIT_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not named:
        pytest.skip("no Chromium here; set WHIT_BROWSER to one")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=named, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page of its own context; fails at the end where any request went beyond its origin, or a script failed."""
    contexts, wrong = [], []

    def open_page(address: str, *, ready: bool = True, context: Any = None, **settings: Any) -> Any:
        if context is None:
            context = browser.new_context(**settings)
            contexts.append(context)
            origin = address.split("/", 3)
            home = "/".join(origin[:3])
            allowed = (home + "/", f"blob:{home}/", "data:")
            context.on("request", lambda asked: None if asked.url.startswith(allowed) else wrong.append(asked.url))
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        if ready:
            wait_ready(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong, wrong


def wait_ready(page: Any, *, offline: bool = True) -> None:
    page.wait_for_selector("html[data-state=ready]", state="attached", timeout=60_000)
    if offline:
        page.wait_for_selector("html[data-offline=ready]", state="attached", timeout=60_000)


def until(page: Any, condition: str, *, seconds: float = 60) -> None:
    """Wait until an expression is true in the page. (Playwright's own way needs `eval`, which the page forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not true after {seconds} s: {condition}"
        page.wait_for_timeout(50)
