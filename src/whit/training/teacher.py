"""A teacher's answers: kept in a file as they come, and asked for once each.

`Answers` is a file of JSON lines that grows; its first line says whose answers they are, and a file of another teacher
is refused. `Endpoint` asks an OpenAI-compatible address: bounded in time and size, no redirect followed, no proxy or
key taken from the environment but the key's named variable, and no error holds the key. What was answered before a
failure is kept, so nothing is paid twice. Knows nothing of training.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from whit.data.rows import Row
from whit.errors import StorageError, TrainingError, UsageError
from whit.files import atomic_write

_LARGEST = 4_000_000  # bytes of one answer's JSON
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_TRIES = 4
_LONGEST_WAIT = 30.0  # seconds between two tries
KEY = "OPENAI_API_KEY"  # the variable that holds the key, where none is named
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Answers:
    """Answers by row, in a file at `path`. `whose` says which teacher gives them, with what instruction and limits.

    Where its limit `most` was raised since, the answers that the old one did not cut off are kept.
    """

    def __init__(self, path: Path, whose: dict[str, Any]) -> None:
        """Reads what is there. Raises `TrainingError` for a file of another teacher."""
        self.path = path
        self._head = json.dumps(whose, sort_keys=True)
        self._found: dict[str, str] = {}
        self._cut: set[str] = set()
        self._size = 0
        if path.is_file():
            self._read()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, row: Row) -> str | None:
        """The row's answer, if it was given."""
        return self._found.get(_key(row))

    def cut(self, row: Row) -> bool:
        """Whether the limit of tokens cut the row's answer off."""
        return _key(row) in self._cut

    def add(self, row: Row, answer: str, *, cut: bool = False) -> None:
        """Keep an answer, on the disk before this returns. Raises `StorageError`."""
        lines = "" if self._size else self._head + "\n"
        # The prompt is kept as a hash: the file may lie beside the adapter, which is shared.
        item = {"row": _key(row), "answer": answer, **({"cut": True} if cut else {})}
        lines += json.dumps(item, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self._size else "wb") as handle:
                handle.seek(self._size)  # over a line that a kill cut short
                handle.write(lines.encode("utf-8", "surrogatepass"))
                handle.truncate()
                handle.flush()
                os.fsync(handle.fileno())
                self._size = handle.tell()
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}; answers so far are kept in it") from error
        self._found[_key(row)] = answer
        if cut:
            self._cut.add(_key(row))

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole, raised = [self._head.encode() + b"\n"], False
        for number, line in enumerate(content.splitlines(keepends=True)):
            if not line.endswith(b"\n"):
                break  # cut short: the process was killed while it wrote
            if number == 0 and line.decode("utf-8", "replace").strip() != self._head:
                raised = self._is_raised(line)
                if not raised:
                    raise TrainingError(
                        f"{self.path}: these answers are of another teacher, instruction or limit; remove the file to "
                        "ask again, or choose another --out"
                    )
            if number:
                try:
                    item = json.loads(line.decode("utf-8", "surrogatepass"))
                    cut = bool(item.get("cut"))
                    if cut and raised:
                        continue
                    self._found[str(item["row"])] = str(item["answer"])
                    whole.append(line)
                    if cut:
                        self._cut.add(str(item["row"]))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise TrainingError(
                        f"{self.path}, line {number + 1}: damaged ({error}); remove that line"
                    ) from error
            self._size += len(line)
        if raised:
            atomic_write(self.path, b"".join(whole))
            self._size = sum(map(len, whole))

    def _is_raised(self, line: bytes) -> bool:
        """Whether a file's first line is this one's but for a lower limit."""
        mine = json.loads(self._head)
        try:
            other = json.loads(line)
            return bool({**other, "most": mine["most"]} == mine and other["most"] < mine["most"])
        except (ValueError, KeyError, TypeError):
            return False


def _key(row: Row) -> str:
    said = json.dumps([[turn.role, turn.content] for turn in row.turns])
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: a redirect is an error, for the key must not follow it."""
        return None


class Endpoint:
    """An OpenAI-compatible address (its `/v1`), asked for one answer at a time by `parallel` threads."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_name: str = KEY,
        timeout: float = 60.0,
        parallel: int = 4,
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Raises `UsageError` for an address that is none, a key that is not set, or one that would go unencrypted.

        `say` is told, in a line each, what did not work and is tried again.
        """
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError:
            host = None
        if host is None or parts.scheme not in ("http", "https"):
            raise UsageError(f"--teacher-url {url[:80]}: give an address such as https://api.example.org/v1")
        self._key, self._key_name = os.environ.get(key_name, ""), key_name
        if key_name != KEY and not self._key:
            raise UsageError(
                f"--teacher-key {key_name}: there is no such variable, or it is empty; export {key_name}=…"
            )
        if parts.scheme == "http" and host not in _LOCAL and self._key:
            raise UsageError(f"--teacher-url {host}: {key_name} would travel unencrypted; use https")
        self.host = host
        self._url = url.rstrip("/") + "/chat/completions"
        self._model, self._timeout, self._parallel = model, timeout, parallel
        self._sleep, self._say = sleep, say
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)

    def answer_all(
        self,
        rows: Sequence[Row],
        instruction: str,
        most: int,
        answers: Answers,
        *,
        examples: Sequence[Row] = (),
        on_done: Callable[[int], None] | None = None,
    ) -> None:
        """Ask for every row that has no answer yet, and keep each answer as it comes; `examples` are earlier turns.

        Raises `UsageError` where the endpoint refuses (key, model), `TrainingError` where it fails; both say how many
        answers are kept.
        """
        wanted = iter([row for row in rows if answers.get(row) is None])
        messages = [{"role": "system", "content": instruction}]
        for example in examples:
            messages += [{"role": turn.role, "content": turn.content} for turn in example.turns]
            messages.append({"role": "assistant", "content": example.completion})
        running: dict[Future[tuple[str, bool]], Row] = {}
        failure: Exception | None = None
        with ThreadPoolExecutor(self._parallel) as pool:
            while True:
                while failure is None and len(running) < self._parallel:
                    row = next(wanted, None)
                    if row is None:
                        break
                    running[pool.submit(self._ask, row, messages, most)] = row
                if not running:
                    break
                # What is under way is paid for: even after a failure it is waited for and kept.
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    row = running.pop(future)
                    try:
                        text, cut = future.result()
                        answers.add(row, text, cut=cut)
                    except (TrainingError, UsageError) as error:
                        failure = failure or error
                    if on_done:
                        on_done(sum(answers.get(one) is not None for one in rows))
        if failure is not None:
            kept = sum(answers.get(row) is not None for row in rows)
            here = f"{kept:,} of {len(rows):,} answers are kept in {answers.path}, and the same command asks only for"
            raise type(failure)(f"{failure}; {here} the others" if kept else str(failure)) from failure

    def _ask(self, row: Row, before: list[dict[str, str]], most: int) -> tuple[str, bool]:
        """The answer, and whether the limit of tokens cut it off."""
        turns = [{"role": turn.role, "content": turn.content} for turn in row.turns]
        body = {
            "model": self._model,
            "messages": [*before, *turns],
            "temperature": 0,
            "max_tokens": most,
        }
        headers = {"content-type": "application/json", "user-agent": "whit"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        content = json.dumps(body).encode()
        reason = ""
        for turn in range(_TRIES):
            if turn:
                pause = min(_LONGEST_WAIT, 0.5 * 4**turn)
                again = f"asking again in {pause:g} s (try {turn + 1} of {_TRIES})"
                self._say(f"the teacher at {self.host}, row {row.id}: {reason}; {again}")
                self._sleep(pause)
            request = urllib.request.Request(self._url, content, headers, method="POST")
            try:
                with self._opener.open(request, timeout=self._timeout) as response:
                    raw = response.read(_LARGEST + 1)
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}"
                if error.code not in _AGAIN:
                    raise UsageError(
                        f"the teacher at {self.host} {self._refusal(error.code, row)} ({reason})"
                    ) from None
                continue
            except TimeoutError:
                reason = f"no answer within {self._timeout:g} s"
                continue
            except (OSError, ValueError) as error:  # urllib's own errors are OSErrors; a broken answer is a ValueError
                cause = getattr(error, "reason", error)
                reason = f"no answer within {self._timeout:g} s" if isinstance(cause, TimeoutError) else "no connection"
                continue
            return self._text(raw, row, most)
        raise TrainingError(f"the teacher at {self.host} failed {_TRIES} times on row {row.id} ({reason})")

    def _refusal(self, status: int, row: Row) -> str:
        """What a status means that will not pass, and what to do."""
        if status in (401, 403):
            return "refuses the key" if self._key else f"wants a key, and none was sent: {self._key_name} is not set"
        if status == 404:
            return "knows no such address or model; look at --teacher-url (its /v1) and --teacher-model"
        if 300 <= status < 400:
            return "sends you elsewhere, which is not followed; give that address as --teacher-url"
        return f"refuses row {row.id}"

    def _text(self, raw: bytes, row: Row, most: int) -> tuple[str, bool]:
        try:
            if len(raw) > _LARGEST:
                raise ValueError
            choice = json.loads(raw)["choices"][0]
            text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise TrainingError(f"the teacher at {self.host} gave no chat completion to row {row.id}") from None
        if not isinstance(text, str) or not text.strip():
            why = f": it was cut off at {most} tokens; raise --max-tokens" if cut else ""
            raise TrainingError(f"the teacher at {self.host} gave an empty answer to row {row.id}{why}")
        return text.strip(), cut
