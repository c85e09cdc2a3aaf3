"""Counters, gauges and histograms in Prometheus' text form (exposition format 0.0.4), thread-safe.

Labels are never taken from requests, save for values from a closed set, so that a client cannot make the page grow.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What is counted; names are `whit_…`."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}
        self._counts: dict[str, dict[str, float]] = {}
        self._spans: dict[str, tuple[list[int], list[float]]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}

    def counter(self, name: str, about: str) -> None:
        """Declare a counter."""
        self._help[name], self._counts[name] = ("counter", about), {}

    def histogram(self, name: str, about: str) -> None:
        """Declare a histogram of seconds."""
        self._help[name], self._spans[name] = ("histogram", about), ([0] * (len(SECONDS) + 1), [0.0])

    def gauge(self, name: str, about: str, read: Callable[[], float], *, kind: str = "gauge") -> None:
        """Declare something that is asked for when the page is read."""
        self._help[name], self._gauges[name] = (kind, about), read

    def count(self, name: str, by: float = 1, labels: Mapping[str, str] | None = None) -> None:
        """Add to a counter."""
        key = ",".join(f'{label}="{value}"' for label, value in (labels or {}).items())
        with self._guard:
            values = self._counts[name]
            values[key] = values.get(key, 0) + by

    def observe(self, name: str, seconds: float) -> None:
        """Add to a histogram."""
        with self._guard:
            buckets, total = self._spans[name]
            buckets[bisect_left(SECONDS, seconds)] += 1
            total[0] += seconds

    def text(self) -> str:
        """The page."""
        lines: list[str] = []
        with self._guard:
            for name, (kind, about) in self._help.items():
                lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
                if name in self._gauges:
                    lines.append(f"{name} {self._gauges[name]():g}")
                elif name in self._spans:
                    buckets, total = self._spans[name]
                    so_far = 0
                    for edge, count in zip((*SECONDS, None), buckets, strict=True):
                        so_far += count
                        lines.append(f'{name}_bucket{{le="{"+Inf" if edge is None else edge}"}} {so_far}')
                    lines += [f"{name}_sum {total[0]:g}", f"{name}_count {so_far}"]
                else:
                    values = self._counts[name] or {"": 0.0}
                    lines += [
                        f"{name}{{{key}}} {value:g}" if key else f"{name} {value:g}" for key, value in values.items()
                    ]
        return "\n".join(lines) + "\n"
