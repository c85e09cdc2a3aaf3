"""Counts and times for Prometheus, in its text format. Labels are names of tiers.toml and fixed words only."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_HELP = {
    "whit_requests_total": "Requests by tier and outcome.",
    "whit_kept_inside_total": "Requests kept from a tier outside, by cause: what was found, or what declared it.",
    "whit_failures_total": "Failed attempts by tier and code.",
    "whit_tokens_total": "Tokens by tier and direction.",
    "whit_cost_total": "Money by tier.",
    "whit_seconds": "Seconds from request to the end of the answer, by tier.",
    "whit_ledger_lost": "Records that the ledger could not take.",
}


class Metrics:
    """Counters by name and labels."""

    def __init__(self) -> None:
        self._answers: dict[str, list[float]] = defaultdict(lambda: [0.0] * 3)
        self._counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self._times: dict[str, list[float]] = defaultdict(lambda: [0.0] * (len(_BOUNDS) + 2))

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count."""
        self._counts[name, tuple(labels.items())] += amount

    def answered(self, tier: str, seconds: float, tokens_in: int, tokens_out: int, cost: float) -> None:
        """Note how long an answer took, and what it took."""
        sums = self._answers[tier]
        sums[0] += tokens_in
        sums[1] += tokens_out
        sums[2] += cost
        self.time(tier, seconds)

    def time(self, tier: str, seconds: float) -> None:
        """Note how long an answer took."""
        slots = self._times[tier]
        slots[bisect_left(_BOUNDS, seconds)] += 1
        slots[-1] += seconds

    def text(self, lost: int = 0) -> str:
        """Everything, as Prometheus reads it."""
        lines: list[str] = []
        counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        for (name, labels), value in self._counts.items():
            counts[name, tuple(sorted(labels))] += value
        for tier, (tokens_in, tokens_out, cost) in self._answers.items():
            counts["whit_tokens_total", (("direction", "in"), ("tier", tier))] += tokens_in
            counts["whit_tokens_total", (("direction", "out"), ("tier", tier))] += tokens_out
            counts["whit_cost_total", (("tier", tier),)] += cost
        names = sorted({name for name, _ in counts})
        for name in names:
            lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} counter"]
            for (each, labels), value in sorted(counts.items()):
                if each == name:
                    lines.append(f"{name}{_labels(labels)} {_number(value)}")
        lines += [f"# HELP whit_seconds {_HELP['whit_seconds']}", "# TYPE whit_seconds histogram"]
        for tier, slots in sorted(self._times.items()):
            total = 0.0
            for bound, count in zip((*map(str, _BOUNDS), "+Inf"), slots[:-1], strict=True):
                total += count
                lines.append(f"whit_seconds_bucket{_labels((('tier', tier), ('le', bound)))} {_number(total)}")
            lines.append(f"whit_seconds_sum{_labels((('tier', tier),))} {_number(slots[-1])}")
            lines.append(f"whit_seconds_count{_labels((('tier', tier),))} {_number(total)}")
        lines += [f"# HELP whit_ledger_lost {_HELP['whit_ledger_lost']}", "# TYPE whit_ledger_lost gauge",
                  f"whit_ledger_lost {lost}"]  # fmt: skip
        return "\n".join(lines) + "\n"


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    inner = ",".join(f'{key}="{_quoted(value)}"' for key, value in labels)
    return f"{{{inner}}}" if inner else ""


def _number(value: float) -> str:
    # Every digit: of a counter beyond a million, six would hide what is added.
    return str(int(value)) if value == int(value) else repr(value)


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
