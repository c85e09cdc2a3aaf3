"""The bundle's server: only listed files, ranges, and no other name for this machine."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path

from whit.bundle.server import make_server


def test_it_serves_listed_files_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    (folder / "base").mkdir(parents=True)
    (folder / "bundle.json").write_text(json.dumps({"base": {"file": "base/m.gguf"}, "files": {"index.html": {}}}))
    (folder / "index.html").write_text("<p>hello")
    (folder / "base" / "m.gguf").write_bytes(bytes(range(100)))
    (folder / "unlisted.txt").write_text("no")
    (tmp_path / "secret").write_text("no")
    server = make_server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def get(path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        line = http.client.HTTPConnection("127.0.0.1", server.server_address[1])
        line.request("GET", path, headers=headers)
        answer = line.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())

    try:
        assert server.server_address[0] == "127.0.0.1"
        status, content, said = get("/")
        assert status == 200 and content == b"<p>hello" and "connect-src 'self'" in said["Content-Security-Policy"]
        assert get("/base/m.gguf", Range="bytes=90-")[:2] == (206, bytes(range(90, 100)))
        assert get("/base/m.gguf", Range="bytes=10-19")[:2] == (206, bytes(range(10, 20)))
        assert get("/base/m.gguf", Range="bytes=100-")[0] == 416
        for path in ("/unlisted.txt", "/../secret", "/%2e%2e/secret", "/base/", "//secret", "/base/../unlisted.txt"):
            assert get(path)[0] == 404, path
        assert get("/", Host="evil.example:80")[0] == 403
    finally:
        server.shutdown()
        server.server_close()
