"""What requests may hold: one table for checking them and for the OpenAPI description.

Everything is bounded. A parameter that would change the answer and is not supported is refused by name, never
ignored. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_N = 16
MAX_STOPS, MAX_STOP = 4, 256
MAX_MESSAGES = 1024
MAX_TEXT = 1 << 20
MAX_LOGPROBS = 20
MAX_SEED = (1 << 63) - 1
ROLES = ("system", "developer", "user", "assistant")
# Sent by clients and of no effect on an answer.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options")


class BadRequest(Exception):
    """A request that cannot be answered: its HTTP status, what is wrong, and with which parameter."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry_after: float | None = None


@dataclass(frozen=True)
class Ask:
    """A checked request. `messages` for a chat (role, content), or `prompts` as texts or token ids."""

    model: str
    messages: tuple[tuple[str, str], ...] = ()
    prompts: tuple[str | tuple[int, ...], ...] = ()
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    echo: bool = False


_NUMBERS: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0.0, 2.0),
    "top_p": (float, 0.0, 1.0),
    "n": (int, 1, MAX_N),
    "max_tokens": (int, 1, 1 << 20),
    "max_completion_tokens": (int, 1, 1 << 20),
    "seed": (int, -MAX_SEED - 1, MAX_SEED),
}
# Values that say nothing; any other is refused, for it would be asked for in vain.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": (None, {}),
    "best_of": (None, 1),
    "suffix": (None,),
    "echo": (None, False),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
_SHARED = ("model", *_NUMBERS, "stop", "stream", "logprobs", *_NEUTRAL, *IGNORED)
_CHAT, _COMPLETION = {*_SHARED, "messages", "top_logprobs"}, {*_SHARED, "prompt"}


def read_chat(body: Any) -> Ask:
    """A body of /v1/chat/completions. Raises `BadRequest`."""
    plain = _object(body, _CHAT)
    messages = plain.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise BadRequest(f"messages must be a list of 1 to {MAX_MESSAGES} messages", "messages")
    wanted = _flag(plain, "logprobs")
    top = plain.get("top_logprobs")
    if top is not None and (not _whole(top) or not 0 <= top <= MAX_LOGPROBS):
        raise BadRequest(f"top_logprobs must be a whole number from 0 to {MAX_LOGPROBS}", "top_logprobs")
    if top is not None and not wanted:
        raise BadRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    return Ask(
        messages=tuple(_message(each, at) for at, each in enumerate(messages)),
        logprobs=(top or 0) if wanted else None,
        **_common(plain),
    )


def read_completion(body: Any) -> Ask:
    """A body of /v1/completions. Raises `BadRequest`."""
    plain = _object(body, _COMPLETION)
    prompt, logprobs = plain.get("prompt"), plain.get("logprobs")
    if logprobs is not None and (not _whole(logprobs) or not 0 <= logprobs <= MAX_LOGPROBS):
        raise BadRequest(f"logprobs must be a whole number from 0 to {MAX_LOGPROBS}", "logprobs")
    if isinstance(prompt, str):
        prompts: tuple[Any, ...] = (prompt,)
    elif isinstance(prompt, list) and prompt and all(_whole(item) for item in prompt):
        prompts = (tuple(prompt),)
    elif isinstance(prompt, list) and 1 <= len(prompt) <= MAX_N:
        prompts = tuple(tuple(item) if isinstance(item, list) else item for item in prompt)
    else:
        raise BadRequest(f"prompt must be a text, or a list of 1 to {MAX_N} texts or of token numbers", "prompt")
    for item in prompts:
        ids = isinstance(item, tuple) and item and all(_whole(part) and 0 <= part < 1 << 31 for part in item)
        if not ids and not (isinstance(item, str) and item):
            raise BadRequest("each prompt must be a text or a list of token numbers, and not empty", "prompt")
    return Ask(prompts=prompts, logprobs=logprobs, **_common(plain))


def _object(body: Any, known: set[str]) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    strange = sorted(set(body) - known)
    if strange:
        raise BadRequest(f"{strange[0][:60]!r} is not supported here", strange[0][:60], code="unknown_parameter")
    for name, neutral in _NEUTRAL.items():
        if not any((body.get(name) == value and type(body.get(name)) is not bool) or body.get(name) is value
                   for value in neutral):  # fmt: skip
            raise BadRequest(f"{name} is not supported here", name, code="unsupported_parameter")
    return body


def _common(plain: Mapping[str, Any]) -> dict[str, Any]:
    model = plain.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("model must be the name of a model (GET /v1/models lists them)", "model")
    found: dict[str, Any] = {"model": model}
    for name, (kind, least, most) in _NUMBERS.items():
        value = plain.get(name)
        if value is None:
            continue
        good = _whole(value) if kind is int else isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or not least <= value <= most:
            what = "a whole number" if kind is int else "a number"
            raise BadRequest(f"{name} must be {what} from {least:g} to {most:g}", name)
        found["max_tokens" if name == "max_completion_tokens" else name] = value
    stop = plain.get("stop")
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(each, str) and 1 <= len(each) <= MAX_STOP for each in stops)
    ):
        raise BadRequest(f"stop must be at most {MAX_STOPS} texts of 1 to {MAX_STOP} characters", "stop")
    options = plain.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequest("stream_options must be an object", "stream_options")
    usage = bool((options or {}).get("include_usage"))
    return {**found, "stop": tuple(stops), "stream": _flag(plain, "stream"), "include_usage": usage}


def _message(message: Any, at: int) -> tuple[str, str]:
    where = f"messages[{at}]"
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise BadRequest(f"{where} must be an object with a role of {', '.join(ROLES)}", "messages")
    content = message.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = "".join(parts) if parts and all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
    if not isinstance(content, str) or len(content) > MAX_TEXT:
        raise BadRequest(f"{where}.content must be text", "messages")
    return ("system" if message["role"] == "developer" else message["role"]), content


def _flag(plain: Mapping[str, Any], name: str) -> bool:
    value = plain.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false", name)
    return bool(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
