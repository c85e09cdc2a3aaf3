"""The report's figures: small pieces of inline SVG that keep their text size on any width.

Bars use percentages of their width; curves are stretched, with strokes that are not, and their axis
texts are HTML. Colours are classes, so that the page's light and dark styles decide. Every figure says
in words what it shows. Everything given is escaped here or by the template.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from whit.evaluation.verdict import points

if TYPE_CHECKING:
    from whit.evaluation.report import System

# Written with escapes: in the source they would be unreadable, or worse.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_HEIGHT = 30
_MOST_POINTS = 400  # of a curve; more would only make the page heavy


def clean(text: str) -> str:
    """Without control characters, changes of direction and lone surrogates; line breaks stay."""
    return _UNFIT.sub("\ufffd", text)


def shorten(text: str, most: int) -> str:
    """At most so many characters, with an ellipsis where more were."""
    text = clean(text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def number(value: float) -> str:
    """A number for reading: 1,234, 0.0123, 12.3."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def bar(system: System, *, reference: float) -> dict[str, Any]:
    """A bar from 0 to 100 with its interval as a whisker, and a thin line at the base's score."""
    from markupsafe import Markup

    low, high = system.interval
    middle = _HEIGHT / 2
    grid = "".join(f'<line class="grid" x1="{at}%" x2="{at}%" y1="0" y2="{_HEIGHT}"/>' for at in (0, 25, 50, 75, 100))
    whisker = "".join(
        f'<g class="{kind}"><line x1="{_percent(low)}" x2="{_percent(high)}" y1="{middle}" y2="{middle}"/>'
        + "".join(
            f'<line x1="{_percent(at)}" x2="{_percent(at)}" y1="{middle - 5}" y2="{middle + 5}"/>' for at in (low, high)
        )
        + "</g>"
        for kind in ("halo", "whisker")
    )
    svg = (
        f'<svg class="bar" width="100%" height="{_HEIGHT}" aria-hidden="true">{grid}'
        f'<rect class="fill {system.role}" x="0" y="6" width="{_percent(system.score)}" height="18" rx="3"/>'
        f'<line class="reference" x1="{_percent(reference)}" x2="{_percent(reference)}" y1="0" y2="{_HEIGHT}"/>'
        f"{whisker}</svg>"
    )
    return {"system": system, "svg": Markup(svg), "low": low, "high": high}


def outcome(wins: int, both_right: int, both_wrong: int, losses: int) -> dict[str, Any]:
    """One bar of all rows: won, right in both, wrong in both, lost."""
    from markupsafe import Markup

    total = max(1, wins + both_right + both_wrong + losses)
    parts = [("win", wins), ("right", both_right), ("wrong", both_wrong), ("loss", losses)]
    at, rects = 0.0, []
    for kind, many in parts:
        share = many / total
        rects.append(f'<rect class="{kind}" x="{_percent(at)}" y="0" width="{_percent(share)}" height="22"/>')
        at += share
    said = f"{wins} rows won, {both_right} right in both, {both_wrong} wrong in both, {losses} lost"
    svg = f'<svg class="outcome" width="100%" height="22" role="img" aria-label="{said}">{"".join(rects)}</svg>'
    return {"svg": Markup(svg), "parts": dict(parts)}


def curve(
    found: Sequence[tuple[int, float]], *, best: int | None, percent: bool, name: str | None = None
) -> dict[str, Any] | None:
    """A line over steps, with the kept step marked; None where nothing finite is there to draw."""
    from markupsafe import Markup

    found = [(step, value) for step, value in found if math.isfinite(value)]
    if len(found) < 2:
        return None
    stride = -(-len(found) // _MOST_POINTS)
    drawn = list(found[::stride]) + ([found[-1]] if (len(found) - 1) % stride else [])
    first, last = drawn[0][0], max(drawn[-1][0], drawn[0][0] + 1)
    ticks = _ticks([value for _, value in found], percent=percent)
    low, high = ticks[0], ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        return 100 * (step - first) / (last - first), 100 - 100 * (value - low) / (high - low)

    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in (place(*point) for point in drawn))
    grid = "".join(
        f'<line class="grid" x1="0" x2="100" y1="{y:.2f}" y2="{y:.2f}"/>'
        for _, y in (place(first, tick) for tick in ticks)
    )
    kept = next((value for step, value in found if step == best), None)
    mark = ""
    if best is not None and kept is not None:
        x, y = place(best, kept)
        # A line of no length with a round cap is a dot that stretching cannot flatten.
        mark = "".join(f'<line class="{kind}" x1="{x:.2f}" x2="{x:.2f}" y1="{y:.2f}" y2="{y:.2f}"/>'
                       for kind in ("dot-halo", "dot"))  # fmt: skip

    def show(value: float) -> str:
        return points(value) if percent else f"{value:.3g}"

    name = name or ("Validation score" if percent else "Training loss")
    said = f"{name} from {show(found[0][1])} at step {found[0][0]} to {show(found[-1][1])} at step {found[-1][0]}"
    if kept is not None:
        said += f"; kept: {show(kept)} at step {best}"
    svg = (
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f'{grid}<polyline class="line" points="{path}"/>{mark}</svg>'
    )
    labels = [(f"{100 * tick:.0f}" if percent else f"{tick:.3g}", place(first, tick)[1]) for tick in ticks]
    steps = [(f"{round(first + share * (last - first)):,}", 100 * share) for share in (0, 0.5, 1)]
    table = [(step, show(value)) for step, value in _thin(found, 12)]
    return {"svg": Markup(svg), "ys": labels, "xs": steps, "said": said, "table": table}


def sizes(found: Sequence[tuple[int, float, float, float]], *, kept: int, line: bool = True) -> dict[str, Any] | None:
    """Scores with their intervals, (bytes, score, low, high), over a logarithm of bytes; `kept` bytes is marked."""
    from markupsafe import Markup

    found = sorted(found)
    if len(found) < 2:
        return None
    first, last = math.log10(found[0][0]), max(math.log10(found[-1][0]), math.log10(found[0][0]) + 0.1)
    ticks = _ticks([value for _, *values in found for value in values], percent=True)
    low, high = ticks[0], ticks[-1]

    def across(size: int) -> float:
        return 4 + 92 * (math.log10(size) - first) / (last - first)

    def up(value: float) -> float:
        return 100 - 100 * (value - low) / (high - low)

    grid = "".join(f'<line class="grid" x1="0" x2="100" y1="{up(tick):.2f}" y2="{up(tick):.2f}"/>' for tick in ticks)
    parts = []
    for size, value, below, above in found:
        x = f'x1="{across(size):.2f}" x2="{across(size):.2f}"'
        parts.append(f'<line class="grid" {x} y1="{up(below):.2f}" y2="{up(above):.2f}"/>')
        parts += [
            f'<line class="{kind}" {x} y1="{up(value):.2f}" y2="{up(value):.2f}"/>'
            for kind in (("dot-halo", "dot") if size == kept else ("dot",))
        ]
    path = " ".join(f"{across(size):.2f},{up(value):.2f}" for size, value, _, _ in found)
    along = f'<polyline class="line" points="{path}"/>' if line else ""
    said = "Score against bytes: " + "; ".join(
        f"{size:,} bytes {points(value)} ({points(below)} to {points(above)})" for size, value, below, above in found
    )
    svg = (
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{said}; kept: {kept:,} bytes">'
        f"{grid}{along}{''.join(parts)}</svg>"
    )
    labels = [(f"{100 * tick:.0f}", up(tick)) for tick in ticks]
    ends = [(f"{size:,}", across(size)) for size in (found[0][0], found[-1][0])]
    table = [(size, f"{points(value)} ({points(below)} to {points(above)})") for size, value, below, above in found]
    return {"svg": Markup(svg), "ys": labels, "xs": ends, "said": said, "table": table, "head": "bytes"}


def _thin(found: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    if len(found) <= most:
        return list(found)
    return [found[round(n * (len(found) - 1) / (most - 1))] for n in range(most)]


def _ticks(values: Sequence[float], *, percent: bool) -> list[float]:
    """Three to six round numbers that hold all values."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * 0.999)
    if percent:
        step = max(step, 0.01)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 10) for n in range(start, max(stop, start + 1) + 1)]
