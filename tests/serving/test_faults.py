"""Faults under load: the store restarted, clients that leave; nobody gets another's answer."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from whit.adapters import learned
from whit.serving.payload import basis_name, to_payload
from whit.serving.store import open_store

from .test_serve import SAY, Server, chat, expected, text, until

__all__ = ["expected"]  # a fixture


def test_postgres_restarted_under_load(base: Any, make: Any, expected: Callable[..., str], own_postgres: Any) -> None:
    address = own_postgres.address()
    with open_store(address) as store:
        for seed in range(4):
            store.add(f"user/{seed}", to_payload(make("tiny", seed)), by="test")
    right = {f"tiny:user/{seed}": expected("tiny", seed, most=8) for seed in range(4)}
    right["tiny"] = expected(most=8)
    running = Server(base, address)  # type: ignore[arg-type]
    done, seen, wrong = threading.Event(), Counter[tuple[str, int]](), list[str]()

    def load(model: str) -> None:
        while not done.is_set():
            answer = running.post(json=chat(model=model, max_tokens=8, temperature=0))
            seen[model, answer.status_code] += 1
            if answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] != right[model]:
                wrong.append(model)
            elif answer.status_code not in (200, 503):
                wrong.append(answer.text)

    threads = [threading.Thread(target=load, args=(model,)) for model in right]
    try:
        for thread in threads:
            thread.start()
        until(lambda: all(seen[model, 200] for model in right))
        own_postgres.stop()
        until(lambda: seen["tiny:user/0", 503] > 1)
        base_so_far = seen["tiny", 200]
        until(lambda: seen["tiny", 200] > base_so_far + 1)  # the base alone goes on
        own_postgres.start()
        users = [model for model in right if model != "tiny"]
        before = {model: seen[model, 200] for model in users}
        until(lambda: all(seen[model, 200] > before[model] + 1 for model in users))
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
        running.close()
    assert not wrong


@pytest.mark.parametrize("int8", [False, True])
def test_clients_that_leave_disturb_nobody(
    base: Any, make: Any, expected: Callable[..., str], tmp_path: Path, int8: bool
) -> None:
    path = tmp_path / "whit.db"
    with open_store(path) as store:
        for seed in range(6):
            kind = ("tiny", "xs", "lora")[seed % 3]
            store.add(f"user/{seed}", to_payload(make(kind, seed, rank=2)), by="test")
    running = Server(base, path, int8=int8)
    try:
        client = running.client()
        models = [f"tiny:user/{seed}" for seed in range(6)]

        def ask(model: str) -> str:
            return text(client.chat.completions.create(model=model, messages=SAY, max_tokens=24, temperature=0))

        right = {model: ask(model) for model in models}  # each by itself
        if not int8:
            assert right["tiny:user/0"] == expected("tiny", 0, most=24)

        def leave(at: int) -> None:
            body = json.dumps(chat(model=models[at % 6], max_tokens=100, stream=True, temperature=1.0)).encode()
            with socket.create_connection(("127.0.0.1", running.port)) as raw:
                head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                raw.recv(600 * (at % 3) + 1)

        with ThreadPoolExecutor(12) as pool:
            leaving = [pool.submit(leave, at) for at in range(24)]
            answers = list(pool.map(ask, models * 4))
            for each in leaving:
                each.result()
        assert answers == [right[model] for model in models * 4]
        until(lambda: running.service.backend.load().running == 0)
    finally:
        running.close()


def test_adapters_along_a_learned_basis_are_served(base: Any, make: Any, tmp_path: Path) -> None:
    """From the store that holds the basis; refused, and told why, from one that does not."""
    from adapters.test_learned import along, some_basis

    basis = some_basis(base, seed=3)
    adapter = along(base, basis, seed=1)
    payload = to_payload(adapter)
    with open_store(tmp_path / "whit.db") as store:
        store.add("alice", payload, by="test")
    learned._known.clear()
    running = Server(base, tmp_path / "whit.db")
    try:
        refused = running.post(json=chat(model="tiny:alice"))
        assert refused.status_code == 400 and "basis" in refused.json()["error"]["message"]
        assert running.store is not None
        running.store.add(basis_name(basis.fingerprint), basis.to_bytes(), by="test")
        for model in ("tiny:alice", adapter.to_text()):
            answer = running.post(json=chat(model=model, max_tokens=8, temperature=0))
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == _alone(base, adapter)
        listed = [each.id for each in running.client().models.list()]
        assert listed == ["tiny", "tiny:alice"]  # a basis is no model
        assert running.post(json=chat(model=f"tiny:{basis_name(basis.fingerprint)}")).status_code == 400
    finally:
        running.close()


def _alone(base: Any, adapter: Any) -> str:
    from whit.adapters.tunable import bind
    from whit.bases import load_base
    from whit.data.rows import Turn
    from whit.evaluation.decoding import Decoder

    alone = load_base(base.path, dtype="float32")
    prompt = alone.encode(alone.template.render([Turn("user", SAY[0]["content"])]))
    return str(alone.decode(Decoder(alone, bind(alone, adapter)).answers([prompt], most=8)[0]))
