"""Running the gateway: uvicorn on the address of tiers.toml, and tiers.toml read anew when it changes.

A tiers.toml that became wrong is told and not taken: the one before goes on. The address and the ledger are those of
the start. Knows nothing of what requests hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whit.errors import UsageError
from whit.routing.app import App
from whit.routing.config import read_config
from whit.routing.errors import ConfigError
from whit.routing.gateway import Gateway

_GARBAGE = 10_000  # more objects made than gone, before cycles among them are looked for


def needs() -> None:
    """Raise `UsageError` where a package that the gateway needs is not installed."""
    import importlib.util

    needed = ("httptools", "phonenumbers", "uvicorn")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"the gateway needs {', '.join(missing)}: pip install 'whit[route]'")


async def run(gateway: Gateway, *, say: Callable[[str], None], host: str, port: int, watch: float = 1.0) -> None:
    """Serve until interrupted; SIGHUP, or a change of the file, reads tiers.toml anew."""
    import uvicorn

    from whit.routing.protocol import Protocol

    config = uvicorn.Config(
        App(gateway), host=host, port=port, log_level="warning", access_log=False, server_header=False, http=Protocol,
        ws="none", proxy_headers=False, timeout_graceful_shutdown=10,
    )  # fmt: skip
    server = uvicorn.Server(config)
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError, RuntimeError, AttributeError):
        loop.add_signal_handler(signal.SIGHUP, asked.set)
    # What was loaded lives as long as the server: it need not be looked through while a request waits.
    gc.collect()
    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(_GARBAGE, *thresholds[1:])
    watching = asyncio.create_task(_watch(gateway, asked, say, watch))
    try:
        await server.serve()
    finally:
        watching.cancel()
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _watch(gateway: Gateway, asked: asyncio.Event, say: Callable[[str], None], every: float) -> None:
    path = gateway.state.config.path
    seen = _stamp(path)
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), every)
        now = _stamp(path)
        if not asked.is_set() and (now is None or now == seen):
            continue
        asked.clear()
        seen = now
        reload(gateway, say)


def reload(gateway: Gateway, say: Callable[[str], None]) -> bool:
    """Read tiers.toml anew; whether it was taken."""
    before = gateway.state.config
    try:
        config = read_config(before.path)
        if not config.guarded and before.guarded:
            raise ConfigError(config.path, 0, "every tenant had a token at the start; that is not taken back")
        gateway.reload(config)
    except Exception as error:
        say(f"{error}; going on with the tiers.toml before")
        return False
    say(f"{config.path} read anew: {', '.join(tier.name for tier in config.tiers)}")
    return True


def _stamp(path: Path) -> Any:
    try:
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    except OSError:
        return None
