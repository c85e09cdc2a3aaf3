from __future__ import annotations

import dataclasses
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whit.data.rows import Row, Turn
from whit.errors import DataError
from whit.evaluation import figures, findings
from whit.evaluation.card import Card, Cost, Data, Forgetting
from whit.evaluation.report import Point, Report, System, render, save_report
from whit.evaluation.scoring import make_scorer
from whit.evaluation.verdict import compare

VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = {"script", "link", "img", "iframe", "object", "embed", "video", "audio", "source", "image", "use", "base"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def rows_of(golds: list[str], prompts: list[str] | None = None) -> list[Row]:
    prompts = prompts or [f"question {n}" for n in range(len(golds))]
    return [
        Row(f"id-{n}", (Turn("user", prompt),), gold)
        for n, (gold, prompt) in enumerate(zip(golds, prompts, strict=True))
    ]


def report_of(
    golds: list[str],
    base: list[str],
    tuned: list[str],
    *,
    kind: str = "auto",
    prompts: list[str] | None = None,
    others: dict[str, tuple[str, list[str]]] | None = None,
    name: str = "tickets",
    **more: object,
) -> Report:
    rows = rows_of(golds, prompts)
    scorer = make_scorer(kind, rows)

    def system(name: str, role: str, answers: list[str]) -> System:
        scores = [scorer.score(answer, row) for answer, row in zip(answers, rows, strict=True)]
        return System(name, role, scores, answers, [scorer.read(answer) for answer in answers])

    first, last = system("base", "base", base), system("adapter", "adapter", tuned)
    card = Card(
        name, "xs", 840, "smollm2", "ab" * 32, Data("tickets.jsonl", "cd" * 32, 500, 400, 50, len(rows)),
        scorer=scorer.state, result=compare(first.scores, last.scores), seeds=(0,), file_bytes=1_716,
        command="whit train tickets.jsonl", versions={"whit": "0.1.0"}, cost=Cost(61.0, 400),
    )  # fmt: skip
    rest = [system(name, role, answers) for name, (role, answers) in (others or {}).items()]
    return Report(card, rows, first, last, rest, **more)  # type: ignore[arg-type]


GOLDS = ["spam", "ok"] * 50
WRONG = ["ok", "spam"] * 50
HALF = GOLDS[:50] + WRONG[50:]


def test_the_page_says_what_was_found() -> None:
    report = report_of(
        GOLDS, HALF, GOLDS[:95] + WRONG[95:],
        others={"TF-IDF + linear": ("small", GOLDS), "null adapter": ("null", HALF)},
        curve=[Point(n, 2.0 / (n + 1), 0.5 + n / 100) for n in range(20)], best_step=19,
        remarks=["The cat walked over the keyboard."],
    )  # fmt: skip
    report = dataclasses.replace(
        report, card=dataclasses.replace(report.card, forgetting=Forgetting("a tale", 500, 3.0, 3.1))
    )
    page = Page(render(report))
    for said in (
        "It helped: 95.0 % right instead of 50.0.",
        "Of 100 rows that training never saw, the adapter got 95 and the base 50",
        "840", "1.7 kB", "61 s", "45 won", "50 right in both", "5 wrong in both", "0 lost",
        "TF-IDF + linear", "null adapter", "question 50", "id-50",
        "perplexity is 10.5 % higher", "What could not be concluded", "one seed", "The cat walked",
        "The state at step 19 was kept", "cd" * 32, "ab" * 32, "whit train tickets.jsonl", "exact McNemar",
    ):  # fmt: skip
        assert said in page.text.replace("\u00a0", " "), said
    # TF-IDF had 5 rows more, so the page says that the smallest tool may do.
    assert "It is smaller and faster than any language model" in page.text


def test_an_adapter_that_always_says_the_same_is_told() -> None:
    """Two of three answers are Yes; the adapter says Yes to all, and is no better than that."""
    golds, always, never = ["Yes", "Yes", "No"] * 40, ["Yes"] * 120, ["what?"] * 120
    report = report_of(golds, never, always, others={"always the commonest answer": ("constant", always)})
    assert report.result.verdict == "helped"
    text = Page(render(report)).text.replace("\u00a0", " ")
    assert "Always the commonest answer scores 66.7, and the adapter is not shown to be better" in text
    better = report_of(golds, never, golds, others={"always the commonest answer": ("constant", always)})
    assert "is not shown to be better" not in Page(render(better)).text


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = render(report_of(GOLDS, HALF, GOLDS, curve=[Point(0, 2.0), Point(9, 1.0)]))
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & LOADING
    for _, attributes in page.elements:
        assert not {"src", "href", "srcset", "xlink:href", "data", "action"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")


HOSTILE = '</style><script>alert(1)</script><img src=x onerror="a">"\'{{ 7*7 }}{% include "x" %}&lt;\u202e\x00'


@pytest.mark.parametrize("kind", ["label", "json", "exact"])
def test_what_comes_from_rows_and_models_is_escaped(kind: str) -> None:
    gold = [json.dumps({HOSTILE: HOSTILE}) if kind == "json" else HOSTILE, "{}" if kind == "json" else "ok"] * 8
    bad = [HOSTILE + "x"] * 16
    report = report_of(
        gold, bad, gold[:8] + bad[8:], kind=kind, prompts=[HOSTILE] * 16, name=HOSTILE,
        others={HOSTILE: ("small", bad)}, remarks=[HOSTILE],
    )  # fmt: skip
    card = dataclasses.replace(
        report.card, base=HOSTILE, instruction=HOSTILE, command=HOSTILE, settings={HOSTILE: HOSTILE},
        versions={"whit": HOSTILE}, forgetting=Forgetting(HOSTILE, 1, 1.0, 1.0),
        data=dataclasses.replace(report.card.data, name=HOSTILE),
    )  # fmt: skip
    others = [dataclasses.replace(report.others[0], note=HOSTILE)]
    text = render(dataclasses.replace(report, card=card, others=others))
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & LOADING
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "<script" not in text and "{{ 7*7 }}" in page.text
    assert "\x00" not in text and "\u202e" not in text


@given(st.lists(st.tuples(*[st.text(max_size=20)] * 3), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_any_texts_make_a_whole_page(texts: list[tuple[str, str, str]]) -> None:
    golds, base, tuned = ([text[n] for text in texts] for n in range(3))
    Page(render(report_of(golds, base, tuned, kind="exact", prompts=base)))


def test_confusions_of_few_labels_are_a_matrix() -> None:
    page = Page(render(report_of(GOLDS, WRONG, ["spam", "eh?"] * 50)))
    cells = [attributes.get("class") for tag, attributes in page.elements if tag == "td"]
    assert cells.count("hit") == 2 and cells.count("miss") == 1
    assert "no label" in page.text


def test_two_spellings_of_a_label_are_one() -> None:
    golds = ["Spam", "ok", "spam", "Ok", "spam", "ok"] * 4
    page = Page(render(report_of(golds, ["?"] * 24, ["spam", "ok"] * 12)))
    assert [a.get("class") for t, a in page.elements if t == "td"].count("hit") == 2


def test_confusions_of_many_labels_are_listed() -> None:
    golds = [f"intent {n % 20}" for n in range(100)]
    tuned = ["intent 3" if gold == "intent 7" else gold for gold in golds]
    page = Page(render(report_of(golds, ["?"] * 100, tuned)))
    assert "Its commonest confusions" in page.text and "intent 7 intent 3 5" in page.text
    assert not any("matrix" in (attributes.get("class") or "") for _, attributes in page.elements)


def test_fields_of_json_are_a_table() -> None:
    golds = [json.dumps({"topic": "a", "n": n % 3}) for n in range(30)]
    base = [json.dumps({"topic": "a", "n": 9}) for _ in range(30)]
    page = Page(render(report_of(golds, base, golds)))
    assert re.search(r"topic 30 100\.0 100\.0 0\.0", page.text)
    assert re.search(r"\bn 30 0\.0 100\.0 \+100\.0", page.text)


@pytest.mark.parametrize(
    ("base", "tuned", "said"),
    [
        (GOLDS, HALF, "It harmed: 50.0"),
        (HALF, HALF, "Not enough data to tell."),
        ([f"It is {gold}." for gold in GOLDS], GOLDS, "It helped, but only in form"),
        (GOLDS[:94] + WRONG[94:], GOLDS[:97] + WRONG[97:], "No worse than the base"),
    ],
)
def test_each_verdict_has_its_sentence(base: list[str], tuned: list[str], said: str) -> None:
    report = report_of(GOLDS, base, tuned)
    page = Page(render(report))
    assert said in page.text.replace("\u00a0", " ")
    shown = next(a["class"] for t, a in page.elements if t == "span" and "verdict" in (a.get("class") or ""))
    assert shown == f"verdict {str(report.result.verdict).replace(' ', '-')}"


def test_a_better_smaller_tool_and_a_working_null_are_called_out() -> None:
    most = GOLDS[:80] + WRONG[80:]
    report = report_of(GOLDS, HALF, most, others={"TF-IDF": ("small", GOLDS), "null adapter": ("null", most)})
    text = Page(render(report)).text
    assert "TF-IDF is better than the adapter, by 20.0 points" in text
    assert "A random adapter of the same shape does as well" in text


def test_long_texts_are_shortened_and_examples_few() -> None:
    golds = ["a", "b"] * 300
    report = report_of(golds, ["z" * 5_000] * 600, golds, prompts=["word " * 2_000] * 600)
    start = time.perf_counter()
    text = render(report)
    assert time.perf_counter() - start < 3
    assert len(text) < 60_000
    assert text.count('class="example"') == 6 and "…" in text


def test_graded_scores_and_no_curve() -> None:
    golds = [json.dumps({"a": n, "b": n}) for n in range(40)]
    half = [json.dumps({"a": n, "b": -1}) for n in range(40)]
    text = Page(render(report_of(golds, half, golds, kind="json-fields"))).text
    assert "100.0 of 100 points" in text.replace("\u00a0", " ") and "Mean score" in text
    assert "50.0 → 100.0" in text and "How it learnt" not in text


def test_every_figure_says_what_it_shows() -> None:
    page = Page(render(report_of(GOLDS, HALF, GOLDS, curve=[Point(0, 2.0, 0.1), Point(9, 1.0, 0.9)])))
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    items = [a["aria-label"] for _, a in page.elements if a.get("role") == "listitem"]
    assert items[0] is not None and items[0].startswith("base: 50.0, interval 40.4 to 59.6")
    assert [a["lang"] for t, a in page.elements if t == "html"] == ["en"]


def test_a_report_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    report = report_of(GOLDS, HALF, GOLDS)
    with pytest.raises(DataError, match="not scored on"):
        dataclasses.replace(report, rows=report.rows[:5])
    with pytest.raises(DataError, match="held-out result"):
        dataclasses.replace(report, card=dataclasses.replace(report.card, result=None))
    with pytest.raises(DataError, match="role"):
        dataclasses.replace(report, others=[dataclasses.replace(report.base, role="friend")])
    save_report(report, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(report)


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-9, 2e-9], [0.2, 0.9], [2.7, 31.0], [1e6, 2e6], [-1.0, 3.0]])
def test_ticks_are_few_and_hold_everything(values: list[float]) -> None:
    ticks = figures._ticks(values, percent=False)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= min(values) + 1e-8 and ticks[-1] >= max(values) - 1e-8


def test_a_curve_survives_what_is_not_finite() -> None:
    assert figures.curve([(0, float("nan")), (1, 2.0)], best=None, percent=False) is None
    drawn = figures.curve([(0, 3.0), (5, float("inf")), (9, 2.0)], best=9, percent=False)
    assert drawn is not None and "nan" not in str(drawn["svg"]) and "inf" not in str(drawn["svg"])
    many = figures.curve([(n, 1 / (n + 1)) for n in range(50_000)], best=None, percent=False)
    assert many is not None and len(many["svg"]) < 20_000


def test_perplexity() -> None:
    assert findings.perplexity_change(3.0, 3.1) == pytest.approx(0.10517, abs=1e-4)
    assert findings.perplexity_change(0.0, 1e9) > 0
