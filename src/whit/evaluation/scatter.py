"""A figure that stands alone: score against bytes, with intervals, as one SVG file that needs nothing else.

Colours follow the reader's light or dark theme. Everything given is escaped. Knows nothing of sweeps.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from whit.evaluation.figures import clean

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 420, 56, 24, 56, 56
_STYLE = (
    "svg{background:#fff;font:13px system-ui,sans-serif}text{fill:#333}.grid{stroke:#ddd}.bar{stroke:#7a8699}"
    ".dot{fill:#7a8699}.kept{fill:#c2410c}.barkept{stroke:#c2410c;stroke-width:2}"
    "@media(prefers-color-scheme:dark){svg{background:#14161a}text{fill:#d6d9de}.grid{stroke:#31353c}"
    ".bar{stroke:#93a0b5}.dot{fill:#93a0b5}.kept{fill:#fb923c}.barkept{stroke:#fb923c}}"
)


@dataclass(frozen=True)
class Dot:
    """A system: its name, bytes, score with interval (all 0 to 1), and whether it was kept."""

    name: str
    size: int
    score: float
    low: float
    high: float
    kept: bool = False


def scatter(dots: Sequence[Dot], *, title: str, scored: str) -> str:
    """The SVG. `scored` says what the score is, for the axis. Raises `ValueError` where there is nothing to draw."""
    if not dots:
        raise ValueError("nothing to draw")
    sizes = [math.log10(max(1, dot.size)) for dot in dots]
    first, last = min(sizes), max(sizes)
    first, last = (first - 0.3, last + 0.3) if last - first < 0.5 else (first - 0.1, last + 0.1)
    low = math.floor(10 * min(dot.low for dot in dots)) / 10
    high = max(math.ceil(10 * max(dot.high for dot in dots)) / 10, low + 0.1)

    def across(size: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log10(max(1, size)) - first) / (last - first)

    def up(score: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (score - low) / (high - low)

    parts = []
    steps = round((high - low) * 10)
    for step in range(0, steps + 1, max(1, steps // 5)):
        y = up(low + step / 10)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * low + 10 * step:.0f}</text>')
    for power in range(math.ceil(first), math.floor(last) + 1):
        x = across(10**power)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{10**power:,}</text>')
    # Those of one size would hide each other: they stand side by side.
    beside: dict[int, int] = {}
    for dot in sorted(dots, key=lambda dot: dot.kept):
        x = across(dot.size) + 7 * beside.setdefault(dot.size, 0)
        beside[dot.size] += 1
        said = html.escape(
            f"{clean(dot.name)}: {100 * dot.score:.1f} ({100 * dot.low:.1f} to {100 * dot.high:.1f}), "
            f"{dot.size:,} bytes{', kept' if dot.kept else ''}"
        )
        parts.append(
            f'<g><title>{said}</title><line class="bar{"kept" if dot.kept else ""}" x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{up(dot.low):.1f}" y2="{up(dot.high):.1f}"/><circle class="{"kept" if dot.kept else "dot"}" '
            f'cx="{x:.1f}" cy="{up(dot.score):.1f}" r="{6 if dot.kept else 4}"/></g>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(clean(title))}"><style>{_STYLE}</style>'
        f'<text x="{_LEFT}" y="26" style="font-size:16px">{html.escape(clean(title))}</text>'
        f'<text x="{middle:.0f}" y="{_HEIGHT - 14}" text-anchor="middle">bytes of payload</text>'
        f'<text x="{_LEFT}" y="46">{html.escape(clean(scored))}</text>{"".join(parts)}</svg>\n'
    )
