"""The proof: whatever the policies, the request and the faults, what must stay inside never reaches a remote tier.

The remote tiers record every byte, sockets are blocked, and the canary is a card number in one of many disguises.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upstreams import FakeModel, Upstream, call, config, gateway

from whit.routing.app import App

CARD = "4532015112830366"
DISGUISES = (
    CARD,
    "4532 0151 1283 0366",
    "4532-0151-1283-0366",
    base64.b64encode(f"card {CARD}".encode()).decode(),
    CARD.encode().hex(),
    "".join(chr(0xFF10 + int(digit)) for digit in CARD),
    "\u200b".join(CARD),
    "".join(f"%3{digit}" for digit in CARD),
    "".join(f"&#{ord(digit)};" for digit in CARD),
)
TIER_NAMES = ["local", "cheap", "strong"]
FAULTS = ["", "connect", "reset", "500", "429", "302", "html", "broken", "cut", "401"]


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def blocked(*args: Any, **more: Any) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setattr("whit.routing.gateway.pause", lambda attempt, after, left: 0.0)
    yield


def policy(name: str, tiers: frozenset[str], mask: bool) -> str:
    remote = sorted(tiers & {"cheap", "strong"})
    masked = f'mask = ["card"]\nmasked_tiers = {remote}\n' if mask and remote else ""
    return f"[policy.{name}]\ntiers = {sorted(tiers)}\n{masked}"


@st.composite
def worlds(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, str], list[str], str, bool]:
    sets = st.frozensets(st.sampled_from(TIER_NAMES), min_size=1)
    text = "".join(policy(name, draw(sets), draw(st.booleans())) for name in ("default", "other", "third"))
    hidden = draw(st.sampled_from(DISGUISES))
    place = draw(st.sampled_from(["user", "system", "name", "part", "tool", "call", "stop", "format"]))
    said = f"this is public {hidden} thanks"
    messages: list[dict[str, Any]] = [{"role": "user", "content": said if place == "user" else "hello"}]
    body: dict[str, Any] = {"model": draw(st.sampled_from(["auto", "legal", *TIER_NAMES])), "messages": messages}
    if place in ("system", "name"):
        messages.insert(0, {"role": "system", "content": said if place == "system" else "x", "name": said})
    elif place == "part":
        messages[0]["content"] = [{"type": "text", "text": "hi"}, {"type": "text", "text": said}]
    elif place == "tool":
        body["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {"enum": [said]}}}]
    elif place == "call":
        function = {"name": "f", "arguments": said}
        messages.append({"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]})
    elif place == "stop":
        body["stop"] = [hidden]
    elif place == "format":
        body["response_format"] = {"type": "json_schema", "json_schema": {"title": said}}
    body["stream"] = draw(st.booleans())
    headers = {"x-whit-label": "more"} if draw(st.booleans()) else {}
    faults = draw(st.lists(st.sampled_from(FAULTS), max_size=6))
    return text, body, headers, faults, hidden, draw(st.booleans())


@given(worlds())
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_canary_never_arrives(world: tuple[str, dict[str, Any], dict[str, str], list[str], str, bool]) -> None:
    policies, body, headers, faults, hidden, down = world
    upstream = Upstream(faults=list(faults))
    with tempfile.TemporaryDirectory() as folder:
        tiers = (
            '[[tier]]\nname = "local"\nkind = "whit"\nbase = "fake"\n'
            '[[tier]]\nname = "cheap"\nkind = "openai"\nurl = "https://cheap.example"\nmodel = "s"\nretries = 1\n'
            '[[tier]]\nname = "strong"\nkind = "anthropic"\nurl = "https://strong.example"\nmodel = "b"\nretries = 1\n'
            f'{policies}[label.more]\npolicy = "other"\n[route.legal]\npolicy = "third"\n'
            '[gateway]\nledger = ""\nmin_confidence = 0.8\n'
        )
        made = gateway(config(Path(folder), text=tiers), upstream, FakeModel(confidence=0.5, fails=down))
        reply = asyncio.run(call(App(made), body, headers=headers))
    received = b"".join(upstream.received)
    for form in (CARD, hidden):
        for written in (form, form.replace("\u200b", ""), form.encode("unicode_escape").decode()):
            assert written.encode() not in received
    assert reply.status in (200, 400, 403, 503, 429, 502, 504) and made.state.users == 0


NETWORK = """
import asyncio, json, subprocess, sys, threading, tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
sys.path[:0] = {paths!r}
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
received = []
class Recorder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        received.append(str(self.headers).encode() + body)
        status = (200, 500, 302, 200)[len(received) % 4]
        answer = json.dumps({{"choices": [{{"message": {{"content": "yes"}}, "finish_reason": "stop"}}]}}).encode()
        self.send_response(status)
        self.send_header("location", "http://127.0.0.1:1/")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *args): pass
servers = [ThreadingHTTPServer(("127.0.0.1", 0), Recorder) for _ in range(2)]
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()
from upstreams import FakeModel, call, config, say
from whit.routing.app import App
from whit.routing.gateway import Gateway
text = '[[tier]]\\nname = "local"\\nkind = "whit"\\nbase = "fake"\\n'
for at, server in enumerate(servers):
    text += f'[[tier]]\\nname = "t{{at}}"\\nkind = "openai"\\nurl = "http://127.0.0.1:'
    text += f'{{server.server_port}}"\\nmodel = "m"\\n'
text += '[gateway]\\nledger = ""\\n'
async def main(folder):
    canary, count = "4532015112830366", 0
    for start in range(3):  # restarts
        made = Gateway(config(Path(folder), text=text), load_local=lambda tier: FakeModel(fails=start == 1))
        app = App(made)
        bodies = [say(f"{{at}}: {{canary if at % 2 else 'hello'}}", model=f"t{{at % 2}}") for at in range(40)]
        bodies += [say(f"{{at}}: {{canary}} canary", model="t1", stream=True) for at in range(20)]
        replies = await asyncio.gather(*(call(app, body) for body in bodies))
        count += sum(reply.status == 200 for reply in replies)
        await made.close()
    assert received and count, (len(received), count)
    assert not any(canary.encode() in each or b"canary" in each for each in received)
    print("received", len(received), "answered", count)
with tempfile.TemporaryDirectory() as folder:
    asyncio.run(main(folder))
"""


@pytest.fixture
def namespace() -> list[str]:
    """The beginning of a command that runs in a network of its own; the test is skipped where that is not allowed."""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("unshare and ip are not both here")
    if subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("unprivileged network namespaces are not allowed here")
    return ["unshare", "-rn"]


@pytest.mark.slow
def test_in_a_network_of_its_own_random_requests_and_faults_leave_no_canary(namespace: list[str]) -> None:
    """The benchmark, with fewer requests: real servers that record every byte, eleven faults, restarts, reloads."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "gateway.py"
    command = (
        f"ip link set lo up && exec {shlex.quote(sys.executable)} {shlex.quote(str(script))} canary --requests 2500"
    )
    done = subprocess.run([*namespace, "sh", "-c", command], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["bytes of canary at a remote tier"] == 0 == found["connections where redirects point"]
    assert found["sensitive"] == 2250 and found["requests at remote tiers"] > 100 and len(found["their faults"]) > 8
    assert found["gateways made anew"] >= 2 and found["ledger lost"] == 0
    assert found["statuses"].get("200", 0) > 1000 and "500" not in found["statuses"]


@pytest.mark.slow
def test_in_a_network_of_its_own_real_servers_receive_no_canary(tmp_path: Path, namespace: list[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    script = tmp_path / "inside.py"
    script.write_text(NETWORK.format(paths=[str(root / "src"), str(root / "tests" / "routing")]))
    done = subprocess.run([*namespace, sys.executable, str(script)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "received" in done.stdout
