"""`whit route report`: what was served for nothing, what the rest cost and saved, what stayed inside and why.

From the ledger alone; the page is one file without scripts and without anything from elsewhere. `saved` compares
with the dearest tier for the same tokens, which is an estimate: another model would have said other words.
"""

from __future__ import annotations

import html
import math
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from whit.routing.ledger import Record


@dataclass(frozen=True)
class Summary:
    """Figures of a span of time; shares are from 0 to 1, costs in the currency of tiers.toml."""

    requests: int
    answered: int
    free_share: float
    cost: float
    cost_always_strong: float
    saved: float
    tiers: dict[str, dict[str, float]]
    tenants: dict[str, float]
    kept_inside: dict[str, int]
    failures: dict[str, int]
    days: dict[str, dict[str, float]]
    sampled: int = 0
    agreement: float | None = None
    agreement_interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"contract": 1, **asdict(self)}

    def to_text(self) -> str:
        """A few lines."""
        lines = [
            f"{self.requests:,} requests, {self.answered:,} answered, {self.free_share:.1%} of them for nothing",
            f"cost {money(self.cost)}; always the dearest tier: {money(self.cost_always_strong)}; "
            f"saved {money(self.saved)}",
        ]
        lines += [
            f"  {name}: {each['requests']:,.0f} requests, cost {money(each['cost'])}, "
            f"median {each['median_seconds']:.3f} s, 99th percentile {each['p99_seconds']:.3f} s"
            for name, each in self.tiers.items()
        ]
        if self.agreement is not None and self.agreement_interval is not None:
            low, high = self.agreement_interval
            lines.append(f"on {self.sampled:,} sampled rows local answers agree with the dearest tier's to "
                         f"{self.agreement:.1%} (95 % interval {low:.1%} to {high:.1%})")  # fmt: skip
        if self.kept_inside:
            lines.append("kept inside: " + ", ".join(f"{kind} {count:,}" for kind, count in self.kept_inside.items()))
        if self.failures:
            lines.append("not answered: " + ", ".join(f"{code} {count:,}" for code, count in self.failures.items()))
        return "\n".join(lines)


def summarise(records: Iterable[Record]) -> Summary:
    """Figures of the records."""
    count = answered = free = 0
    cost = strong = 0.0
    seconds: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, float] = defaultdict(float)
    tenants: dict[str, float] = defaultdict(float)
    causes: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    days: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    agreements: list[float] = []
    for record in records:
        if record.outcome in ("sampled", "sample_failed"):  # asked to compare: its cost counts, it is no request
            cost += record.cost
            tenants[record.tenant] += record.cost
            days[time.strftime("%F", time.gmtime(record.at))]["cost"] += record.cost
            if record.agreement is not None:
                agreements.append(record.agreement)
            continue
        count += 1
        cost += record.cost
        tenants[record.tenant] += record.cost
        causes.update(record.causes.split(", ") if record.causes else ())
        day = time.strftime("%F", time.gmtime(record.at))
        days[day]["cost"] += record.cost
        if record.outcome != "ok":
            failures[record.outcome] += 1
            continue
        answered += 1
        free += record.cost == 0
        strong += record.cost_strong
        seconds[record.tier].append(record.seconds)
        costs[record.tier] += record.cost
        days[day][record.tier] += 1
    tiers = {
        name: {
            "requests": len(times),
            "cost": costs[name],
            "median_seconds": statistics.median(times),
            "p99_seconds": sorted(times)[min(len(times) - 1, int(0.99 * len(times)))],
        }
        for name, times in sorted(seconds.items())
    }
    return Summary(
        count, answered, free / answered if answered else 0.0, cost, strong, strong - cost, tiers, dict(tenants),
        dict(causes.most_common()), dict(failures.most_common()), {day: dict(each) for day, each in days.items()},
        len(agreements), statistics.fmean(agreements) if agreements else None, _interval(agreements),
    )  # fmt: skip


def _interval(values: list[float]) -> tuple[float, float] | None:
    """A 95 % bootstrap interval of the mean."""
    if not values:
        return None
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(400))
    return means[10], means[-11]


_COLOURS = ("#2a7f62", "#3b6ea5", "#b5652b", "#7a4b94", "#5b6770")


def page(summary: Summary, title: str) -> str:
    """The summary as one HTML page with its plots, for a desk and for a phone."""
    names = list(summary.tiers)
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}
    facts = (
        ("served for nothing", f"{summary.free_share:.1%}"), ("spent", money(summary.cost)),
        ("saved against always the dearest", money(summary.saved)), ("requests", f"{summary.requests:,}"),
        (f"agreement with the dearest tier on {summary.sampled:,} sampled rows",
         "not sampled" if summary.agreement is None else f"{summary.agreement:.1%}"),
    )  # fmt: skip
    figures = "".join(f"<div><b>{html.escape(value)}</b>{html.escape(name)}</div>" for name, value in facts)
    shares = [(name, summary.tiers[name]["requests"], colours[name]) for name in names]
    spent = [("spent", summary.cost, _COLOURS[0]), ("always the dearest", summary.cost_always_strong, _COLOURS[2])]
    inside = [(kind, float(count), _COLOURS[3]) for kind, count in summary.kept_inside.items()]
    failed = [(code, float(count), _COLOURS[4]) for code, count in summary.failures.items()]
    parts = [
        f"<h2>Answers by tier</h2>{_bars(shares)}",
        f"<h2>Answers by day</h2>{_days(summary, colours)}",
        f"<h2>Money</h2>{_bars(spent, money)}",
        f"<h2>Kept inside, and why</h2>{_bars(inside)}",
        f"<h2>Not answered</h2>{_bars(failed)}",
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:46rem;"
        "margin:2rem auto;padding:0 1rem;color:#222}.facts{display:flex;flex-wrap:wrap;gap:1rem}.facts div{flex:1 1 "
        "9rem;background:#f3f4f2;padding:.8rem;border-radius:.4rem}.facts b{display:block;font-size:1.5rem}"
        "table{width:100%;border-collapse:collapse}th{font-weight:400;text-align:left;width:30%;overflow-wrap:anywhere}"
        "td{padding:.15rem 0 .15rem .6rem}td:last-child{width:6rem;font-variant-numeric:tabular-nums}"
        "i{display:block;height:1rem}svg{width:100%;height:9rem}.ends{display:flex;justify-content:space-between}</style>"
        f"<h1>{html.escape(title)}</h1><div class='facts'>{figures}</div>{''.join(parts)}</html>"
    )


def money(amount: float) -> str:
    """An amount with two decimals, or as many as show two of its digits."""
    size = abs(amount)
    if size == 0 or size >= 0.1:
        return f"{amount:,.2f}"
    return f"{amount:.{min(12, 1 - math.floor(math.log10(size)))}f}"


def _bars(rows: list[tuple[str, float, str]], form: Callable[[float], str] = "{:,.0f}".format) -> str:
    if not rows:
        return "<p>None.</p>"
    most = max((value for _, value, _ in rows), default=0) or 1
    lines = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>'
        f'<i style="width:{100 * value / most:.1f}%;background:{colour}"></i></td><td>{form(value)}</td></tr>'
        for name, value, colour in rows
    )
    return f"<table>{lines}</table>"


def _days(summary: Summary, colours: dict[str, str]) -> str:
    days = sorted(summary.days)[-60:]
    most = max((sum(summary.days[day].get(name, 0) for name in colours) for day in days), default=0)
    if not most:
        return "<p>None.</p>"
    width = 640 / len(days)
    marks = []
    for at, day in enumerate(days):
        top = 150.0
        for name, colour in colours.items():
            height = 140 * summary.days[day].get(name, 0) / most
            top -= height
            marks.append(
                f'<rect x="{at * width:.1f}" y="{top:.1f}" width="{max(1.0, width - 2):.1f}" height="{height:.1f}" '
                f'fill="{colour}"><title>{day} {html.escape(name)}</title></rect>'
            )
    said = f"Answers by tier on each day from {days[0]} to {days[-1]}; at most {most:,.0f} on a day"
    return (
        f'<svg viewBox="0 0 640 150" preserveAspectRatio="none" role="img" aria-label="{said}">{"".join(marks)}</svg>'
        f'<div class="ends"><span>{days[0]}</span><span>{days[-1]}</span></div>'
    )
