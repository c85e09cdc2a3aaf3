"""A teacher behind an address: asked once, kept at once, and what it may do wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from whit.data.rows import Row, Turn
from whit.errors import TrainingError, UsageError
from whit.training.teacher import Answers, Endpoint

WHOSE = {"guide": "g", "most": 8}


class Server:
    """An OpenAI-compatible server whose `answer(body, number)` gives status and body; it counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[dict[str, Any], int], tuple[int, Any]] = lambda body, number: (200, text("yes"))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append(body)
                outer.headers.append(dict(self.headers))
                status, found = outer.answer(body, len(outer.asked))
                raw = found if isinstance(found, bytes) else json.dumps(found).encode()
                try:
                    self.send_response(status)
                    if status == 302:
                        self.send_header("location", "http://127.0.0.1:9/")
                    self.send_header("content-length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:
                    pass  # the client gave up

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def text(content: Any, why: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": why}]}


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def rows(count: int) -> list[Row]:
    return [Row(f"r{at}", (Turn("user", f"input {at}"),), "") for at in range(count)]


def endpoint(server: Server, **more: Any) -> Endpoint:
    return Endpoint(server.url, "strong", parallel=1, sleep=lambda seconds: None, **more)


def test_every_row_is_asked_once_with_the_instruction(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-1")
    answers = Answers(tmp_path / "a.jsonl", WHOSE)
    server.answer = lambda body, number: (200, text(f" to {body['messages'][-1]['content']} "))
    endpoint(server, key_name="SOME_KEY").answer_all(rows(5), "the guide", 8, answers)
    assert [answers.get(row) for row in rows(5)] == [f"to input {at}" for at in range(5)]
    body = server.asked[0]
    assert body["model"] == "strong" and body["max_tokens"] == 8 and body["temperature"] == 0
    assert body["messages"][0] == {"role": "system", "content": "the guide"}
    headers = {name.lower(): value for name, value in server.headers[0].items()}
    assert headers["authorization"] == "Bearer secret-1"
    again = Answers(tmp_path / "a.jsonl", WHOSE)
    endpoint(server).answer_all(rows(7), "the guide", 8, again)
    assert len(server.asked) == 7 and len(again) == 7
    assert "input" not in (tmp_path / "a.jsonl").read_text("utf-8").replace("to input", "")


def test_a_failure_half_way_keeps_what_was_paid_for(server: Server, tmp_path: Path) -> None:
    server.answer = lambda body, number: (200, text("yes")) if number <= 3 else (500, {})
    answers = Answers(tmp_path / "a.jsonl", WHOSE)
    with pytest.raises(
        TrainingError, match=r"failed 4 times on row r3 \(HTTP 500\); 3 of 6 answers are kept in"
    ) as told:
        endpoint(server).answer_all(rows(6), "g", 8, answers)
    assert "asks only for the others" in str(told.value) and "secret" not in str(told.value)
    asked = len(server.asked)
    server.answer = lambda body, number: (200, text("yes"))
    endpoint(server).answer_all(rows(6), "g", 8, Answers(tmp_path / "a.jsonl", WHOSE))
    assert len(server.asked) == asked + 3


def test_passing_failures_are_tried_again(server: Server, tmp_path: Path) -> None:
    waits: list[float] = []
    said: list[str] = []
    server.answer = lambda body, number: (429, {}) if number < 3 else (200, text("yes"))
    answers = Answers(tmp_path / "a.jsonl", WHOSE)
    Endpoint(server.url, "m", parallel=1, sleep=waits.append, say=said.append).answer_all(rows(1), "g", 8, answers)
    assert len(answers) == 1 and waits == [2.0, 8.0]
    assert said == [
        "the teacher at 127.0.0.1, row r0: HTTP 429; asking again in 2 s (try 2 of 4)",
        "the teacher at 127.0.0.1, row r0: HTTP 429; asking again in 8 s (try 3 of 4)",
    ]


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (401, {}, UsageError, r"wants a key, and none was sent: OPENAI_API_KEY is not set \(HTTP 401\)"),
        (404, {}, UsageError, r"look at --teacher-url \(its /v1\) and --teacher-model \(HTTP 404\)"),
        (302, {}, UsageError, r"sends you elsewhere, which is not followed; .* \(HTTP 302\)"),
        (400, {}, UsageError, r"refuses row r0 \(HTTP 400\)"),
        (200, {"error": "no"}, TrainingError, "gave no chat completion to row r0"),
        (200, b"<html>", TrainingError, "gave no chat completion"),
        (200, text(None), TrainingError, "gave an empty answer"),
        (200, text("  "), TrainingError, "gave an empty answer"),
        (200, text("", "length"), TrainingError, "row r0: it was cut off at 8 tokens; raise --max-tokens"),
        (200, {"choices": ["no"]}, TrainingError, "gave no chat completion"),
        (200, b"[" * 100_000, TrainingError, "gave no chat completion"),
        (200, b'"' + b"x" * 5_000_000 + b'"', TrainingError, "gave no chat completion"),
    ],
)
def test_answers_that_are_none(
    server: Server, tmp_path: Path, status: int, body: Any, error: type[Exception], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.answer = lambda sent, number: (status, body)
    with pytest.raises(error, match=said) as told:
        endpoint(server).answer_all(rows(2), "g", 8, Answers(tmp_path / "a.jsonl", WHOSE))
    # No answer came, so that no file was written.
    assert "are kept" not in str(told.value) and not (tmp_path / "a.jsonl").exists()
    if status == 401:
        monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
        with pytest.raises(error, match="refuses the key") as told:
            endpoint(server).answer_all(rows(2), "g", 8, Answers(tmp_path / "a.jsonl", WHOSE))
        assert "secret-1" not in str(told.value)


def test_a_slow_teacher_and_one_that_is_not_there(server: Server, tmp_path: Path) -> None:
    def slow(body: dict[str, Any], number: int) -> tuple[int, Any]:
        time.sleep(0.5)
        return 200, text("late")

    server.answer = slow
    with pytest.raises(TrainingError, match=r"failed 4 times on row r0 \(no answer within 0.1 s\)"):
        endpoint(server, timeout=0.1).answer_all(rows(1), "g", 8, Answers(tmp_path / "a.jsonl", WHOSE))
    gone = Endpoint("http://127.0.0.1:9/v1", "m", sleep=lambda seconds: None)
    with pytest.raises(TrainingError, match="no connection"):
        gone.answer_all(rows(1), "g", 8, Answers(tmp_path / "a.jsonl", WHOSE))


@pytest.mark.parametrize("url", ["ftp://x/v1", "nothing", "", "http://[::1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="give an address such as https"):
        Endpoint(url, "m")


def test_a_key_is_never_sent_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-1")
    with pytest.raises(UsageError, match="SOME_KEY would travel unencrypted; use https") as told:
        Endpoint("http://example.org/v1", "m", key_name="SOME_KEY")
    assert "secret-1" not in str(told.value)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Endpoint("http://example.org/v1", "m")
    with pytest.raises(UsageError, match="--teacher-key NO_SUCH_KEY: there is no such variable, or it is empty"):
        Endpoint("https://example.org/v1", "m", key_name="NO_SUCH_KEY")


def test_answers_of_another_teacher_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Answers(path, WHOSE).add(rows(1)[0], "yes")
    with pytest.raises(TrainingError, match="of another teacher, instruction or limit"):
        Answers(path, {**WHOSE, "guide": "h"})


def test_answers_that_the_limit_cut_off_are_asked_for_again_under_a_higher_one(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    server.answer = lambda body, number: (200, text("so far", "length") if number == 2 else text("whole"))
    answers = Answers(path, WHOSE)
    endpoint(server).answer_all(rows(4), "g", 8, answers)
    assert [answers.cut(row) for row in rows(4)] == [Answers(path, WHOSE).cut(row) for row in rows(4)]
    assert [answers.cut(row) for row in rows(4)] == [False, True, False, False]
    higher = {**WHOSE, "most": 16}
    again = Answers(path, higher)
    assert len(again) == 3 and again.get(rows(4)[1]) is None
    endpoint(server).answer_all(rows(4), "g", 16, again)
    assert len(server.asked) == 5 and server.asked[-1]["max_tokens"] == 16
    kept = Answers(path, higher)
    assert [kept.get(row) for row in rows(4)] == ["whole"] * 4 and not any(kept.cut(row) for row in rows(4))
    with pytest.raises(TrainingError, match="of another teacher, instruction or limit"):
        Answers(path, WHOSE)


def test_a_line_that_a_kill_cut_short_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = Answers(path, WHOSE)
    for row in rows(3):
        first.add(row, "a long answer")
    whole = path.read_bytes()
    for cut in range(1, 60, 7):
        path.write_bytes(whole[:-cut])
        again = Answers(path, WHOSE)
        assert len(again) == 2
        again.add(rows(3)[2], "short")
        assert len(Answers(path, WHOSE)) == 3 and path.read_bytes().endswith(b"\n")
    path.write_bytes(whole.replace(b'{"row"', b'{"rov"', 1))
    with pytest.raises(TrainingError, match="line 2: damaged"):
        Answers(path, WHOSE)
