"""Figures as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Rows = list[list[str]]


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median (minimum-maximum)."""
    middle, least, most = statistics.median(values), min(values), max(values)
    if len(values) == 1:
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} ({least:,.{digits}f}-{most:,.{digits}f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median of the ratios, pair by pair."""
    return f"{statistics.median(a / b for a, b in zip(ours, theirs, strict=False)):.2f}"


def rounded(value: float) -> str:
    """Three digits that mean something: 74,812 is 74,800, and 2.6312 is 2.63."""
    if not value:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def rounded_spread(values: Sequence[float]) -> str:
    """Median (minimum-maximum), each with three digits; the median alone of a single value."""
    if not values:
        return ""
    middle = rounded(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({rounded(min(values))}-{rounded(max(values))})"


def at(values: list[float], percent: int) -> float:
    """A percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def table(title: str, head: list[str], rows: Rows) -> str:
    """A title and a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
