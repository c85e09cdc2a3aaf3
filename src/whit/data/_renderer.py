"""The child process that renders chat templates: a script that `whit.data.sandbox` runs.

A chat template is a program that came with a model, so it runs here: in Jinja's immutable sandbox, in a
process without the parent's environment, with a bound on memory and, for each request, on processor time.
A template that goes beyond is ended by the system, also in the middle of one long C call. Its filters and
globals are those of transformers' `apply_chat_template`. Knows nothing of whit: only the standard library
and jinja2 are imported.

A message is four bytes of length and that much JSON. A request is
`{"key", "source" or null, "jobs": [variables…], "most", "seconds"}`, its answer
`[{"text"} or {"error", "kind"}…]`, one for each job.
"""

from __future__ import annotations

import contextlib
import json
import signal
import struct
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO

MEMORY = 1 << 30  # bytes of address space; jinja2 itself needs about 50 MB


def bound() -> None:
    """Take away what a template has no use for: memory, files, processes."""
    try:
        import resource
    except ImportError:  # not on Windows; there only the parent's clock ends a rendering
        return
    for name, most in (("RLIMIT_AS", MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0), ("RLIMIT_NPROC", 0)):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (most, most))


@contextlib.contextmanager
def clock(seconds: float) -> Iterator[None]:
    """End this process once the block has used `seconds` of processor time."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    # No handler: Python would run it only between two bytecodes, which a hostile power or sum never reaches.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def environment() -> Any:
    """A sandbox with transformers' globals, filters and tags."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        # `{% generation %}` marks what transformers may train on; the text between is kept as it is.
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: Any) -> None:
        raise jinja2.exceptions.TemplateError(str(message)[:500])

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    class Dict:
        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

    class Namespace(jinja2.utils.Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:
            self, args = args[0], args[1:]
            values = dict(*args, **kwargs)
            for name in values:
                Namespace._public(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace._public(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

        @staticmethod
        def _public(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, dict=Dict(), namespace=Namespace)
    made.globals.pop("lipsum", None)
    return made


class Renderer:
    """Compiled templates by key, and the rendering of one job."""

    def __init__(self) -> None:
        self._environment = environment()
        self._compiled: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> list[dict[str, str]]:
        """One answer for each job of the request."""
        key, source = request["key"], request["source"]
        jobs, most, seconds = request["jobs"], request["most"], request["seconds"]
        if source is not None:
            try:
                with clock(seconds):
                    self._compiled[key] = self._environment.from_string(source)
            except (Exception, RecursionError) as error:
                return [_error(error)] * len(jobs)
        template = self._compiled.get(key)
        if template is None:
            return [{"kind": "unknown", "error": "the template was never sent"}] * len(jobs)
        answers = []
        with clock(seconds):
            for job in jobs:
                answers.append(self._render(template, job, most))
                most -= len(answers[-1].get("text", ""))
        return answers

    def _render(self, template: Any, variables: dict[str, Any], most: int) -> dict[str, str]:
        try:
            pieces, length = [], 0
            for piece in template.generate(**variables):
                length += len(piece)
                if length > most:
                    return {"kind": "size", "error": "its text is too long"}
                pieces.append(piece)
            text = "".join(pieces)
            text.encode()  # a text that is no text is refused here, not in the tokenizer
            return {"text": text}
        except MemoryError:
            return {"kind": "memory", "error": f"it needs more than {MEMORY >> 20} MiB of memory"}
        except (Exception, RecursionError) as error:
            return _error(error)


def _error(error: BaseException) -> dict[str, str]:
    if isinstance(error, MemoryError):
        return {"kind": "memory", "error": f"it needs more than {MEMORY >> 20} MiB of memory"}
    kind = "raised" if type(error).__name__ == "TemplateError" else "failed"
    line = getattr(error, "lineno", None)
    where = f" (its line {line})" if isinstance(line, int) else ""
    message = str(error)[:500].encode("utf-8", "replace").decode() or type(error).__name__
    return {"kind": kind, "error": message + where}


def read(stream: BinaryIO) -> Any:
    """The next message, None at the end."""
    size = stream.read(4)
    if len(size) < 4:
        return None
    return json.loads(stream.read(struct.unpack("<I", size)[0]))


def write(stream: BinaryIO, message: Any) -> None:
    """Send a message."""
    body = json.dumps(message).encode()
    stream.write(struct.pack("<I", len(body)) + body)
    stream.flush()


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    # Ctrl-C reaches every process of the terminal; what to do about it is for the parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    renderer = Renderer()
    bound()
    # Nothing that a template makes Python print can then be taken for an answer.
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while (request := read(source)) is not None:
        write(sink, renderer.answer(request))


if __name__ == "__main__":
    main()
