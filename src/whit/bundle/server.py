"""A bundle on loopback, for trying it out: `whit bundle --open`.

Only the files that the bundle lists are served, looked up by name and never joined to a path. Parts of files can be
asked for (one range), so that a download goes on where it stopped. Bound to 127.0.0.1; knows nothing of training.
"""

from __future__ import annotations

import contextlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from whit.bundle.pack import MANIFEST, WORKER

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
#: The page says the same of itself; a host that can should send it as a header too.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_PIECE = 1 << 20


def make_server(folder: str | Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the bundle in `folder` on 127.0.0.1; `port` 0 takes a free one. Not yet running."""
    root = Path(folder)
    about = json.loads((root / MANIFEST).read_text("utf-8"))
    names = [MANIFEST, WORKER, about["base"]["file"], *about["files"]]
    known = {f"/{name}": root / name for name in names}
    known["/"] = root / "index.html"

    class Handler(_Handler):
        paths = known

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    paths: dict[str, Path]
    protocol_version = "HTTP/1.1"
    server_version = "whit"
    sys_version = ""

    def do_GET(self) -> None:
        """A file, or a part of it."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """What GET would say first."""
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the page lists its own requests."""

    def _answer(self, *, body: bool) -> None:
        path = self.paths.get(unquote(urlsplit(self.path).path))
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
        if host not in ("127.0.0.1", "localhost"):
            # Another name that leads here would be another origin's script.
            return self._refuse(403)
        if path is None or not path.is_file():
            return self._refuse(404)
        size = path.stat().st_size
        start, end, code = 0, size, 200
        found = _RANGE.fullmatch(self.headers.get("Range") or "")
        if found:
            start, code = int(found[1]), 206
            end = min(int(found[2]) + 1, size) if found[2] else size
            if start >= end:
                return self._refuse(416)
        self.send_response(code)
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", _TYPES.get(path.suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        if body:
            with contextlib.suppress(ConnectionError), path.open("rb") as file:
                file.seek(start)
                while start < end and (piece := file.read(min(_PIECE, end - start))):
                    self.wfile.write(piece)
                    start += len(piece)
        return None

    def _refuse(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()
