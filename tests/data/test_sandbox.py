"""Hostile templates: each ends with one error, soon, and leaves the next one unharmed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import pytest

from whit.data import sandbox
from whit.data.rows import Turn
from whit.data.sandbox import TemplateError
from whit.data.templates import Template
from whit.errors import DataError

SOUND = "{% for m in messages %}{{ m.content }}{% endfor %}"


def render(source: str, text: str = "hi") -> str:
    return Template(source).render([Turn("user", text)])


def failure(source: str) -> TemplateError:
    started = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        render(source)
    assert time.monotonic() - started < sandbox.WALL_SECONDS + 15
    assert isinstance(caught.value, DataError)
    assert render(SOUND) == "hi"
    return caught.value


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% for i in range(99) %}{{ f(n - 1) if n }}{% endfor %}{% endmacro %}{{ f(9) }}",
        "{{ 99999999 ** 99999999 }}",
        "{{ (range(99999) | list * 999) | sort | sum }}{{ ('x' * 99999999) | upper | lower | reverse | length }}"
        "{% for i in range(99999) %}{{ ('x' * 9999999) | length }}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ 'x' | center(9999999999) }}",
        "{{ [1] | tojson(indent=9999999999) }}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% set ns = namespace(t='xxxxxxxx') %}{% for i in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{{ '{:>9999999999}'.format('x') }}",
    ],
)
def test_a_template_costs_no_more_than_its_limits(source: str) -> None:
    assert failure(source).kind in ("time", "memory", "size", "failed")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception.__globals__.x }}",
        "{{ (messages | map(attribute='__class__') | list)[0].mro() }}",
        "{{ '{0.__class__.__mro__}'.format('') ~ undefined_thing.x }}",
        "{{ lipsum(n=999999) }}",
        "{{ dict.__class__ }}{{ strftime_now.__globals__.x.y }}",
    ],
)
def test_nothing_leads_out_of_the_sandbox(source: str) -> None:
    assert failure(source).kind == "failed"


@pytest.mark.parametrize(
    "source", ["{% if", "{{ }}", "{% for %}", "{{ 1 | nofilter }}", "{{ " + "(" * 20_000, "{% endfor %}"]
)
def test_a_template_that_is_none(source: str) -> None:
    error = failure(source)
    assert "cannot be rendered" in str(error) and len(str(error)) < 700


def test_what_the_template_says_itself_is_passed_on() -> None:
    error = failure("{{ raise_exception('roles must alternate') }}")
    assert error.kind == "raised" and "roles must alternate" in str(error)


def test_half_characters_and_very_long_messages() -> None:
    assert failure("{{ '\\ud800' }}").kind == "failed"
    assert len(str(failure("{{ raise_exception('x' * 99999) }}"))) < 700


def test_source_is_bounded_before_anything_runs() -> None:
    with pytest.raises(TemplateError, match="100,000"):
        Template("x" * (sandbox.MAX_SOURCE + 1))
    with pytest.raises(TemplateError):
        sandbox.render("x" * (sandbox.MAX_SOURCE + 1), [])
    assert render("x" * sandbox.MAX_SOURCE) == "x" * sandbox.MAX_SOURCE


def test_a_template_that_waits_for_one_text_is_ended_too() -> None:
    template = Template(
        "{% for m in messages %}{% if m.content == 'now' %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}{{ m.content }}{% endfor %}"
    )
    assert template.render([Turn("user", "later")]) == "later"
    with pytest.raises(TemplateError):
        template.render([Turn("user", "now")])
    assert template.render([Turn("user", "later")]) == "later"


def test_batches_keep_order_and_failures_their_place() -> None:
    template = Template(
        "{% if 'bad' in messages[0].content %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    )
    many = [[Turn("user", f"bad {i}" if i % 100 == 3 else f"row {i}")] for i in range(1000)]
    for i, answer in enumerate(template.render_many(many)):
        assert isinstance(answer, TemplateError) if i % 100 == 3 else answer == f"row {i}"
    large = [[Turn("user", str(i) * 300_000)] for i in range(10)]
    assert [str(answer)[0] for answer in Template(SOUND).render_many(large)] == [str(i) for i in range(10)]


def test_the_child_sees_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox._stop()
    monkeypatch.setenv("HF_TOKEN", "hush")
    assert render(SOUND) == "hi"
    child = sandbox._child
    assert child is not None
    environment = os.path.join("/proc", str(child.process.pid), "environ")  # noqa: PTH118
    if os.path.exists(environment):  # noqa: PTH110
        with open(environment, "rb") as handle:  # noqa: PTH123
            assert b"hush" not in handle.read()


def test_threads_share_the_child() -> None:
    answers: dict[int, str] = {}

    def work(number: int) -> None:
        for _ in range(20):
            answers[number] = render(SOUND, f"thread {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: f"thread {number}" for number in range(8)}


def test_a_child_that_was_killed_is_replaced() -> None:
    render(SOUND)
    child: Any = sandbox._child
    child.process.kill()
    child.process.wait()
    assert render(SOUND) == "hi"


def test_an_interrupt_of_the_terminal_leaves_the_child_at_work() -> None:
    render(SOUND)
    child: Any = sandbox._child
    child.process.send_signal(signal.SIGINT)
    assert render(SOUND) == "hi" and sandbox._child is child


def test_a_child_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox._stop()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TemplateError, match="started"):
        render(SOUND)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_starts_its_own_child() -> None:
    assert render(SOUND) == "hi"
    pid = os.fork()
    if pid == 0:
        os._exit(0 if render(SOUND, "forked") == "forked" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert render(SOUND) == "hi"
