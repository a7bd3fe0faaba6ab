"""Charts as inline SVG. They use classes, not style attributes: the pages allow no inline style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from markupsafe import Markup

from nimburion.core.metrics.statistics import Statistics
from nimburion.core.text.escaping import escape_controls


class TimelineSpan(NamedTuple):
    """A part of the life of a job."""

    state: str
    """`waiting`, or how the attempt ended."""
    start: float
    """Epoch seconds."""
    end: float


class Series(NamedTuple):
    """One line or one kind of bars of a chart."""

    label: str
    kind: str
    """A class of the style sheet: `done`, `failed`, `wait`, `run`, `in`, `past`."""
    values: Sequence[float]
    """NaN is a gap of a line."""


class Moment(NamedTuple):
    """A time that a chart marks with a vertical line."""

    share: float
    """Where it is, from 0 at the left end of the chart to 1 at its right end."""
    label: str


def draw_sparkline(values: Sequence[float], label: str, kind: str = "done") -> Markup:
    """Return a small chart of bars without axes. `label` says what it shows.

    >>> str(draw_sparkline([], "jobs a minute"))
    ''
    """
    if not values:
        return Markup()
    width, height, top = 3 * len(values), 24, max(values) or 1.0
    moves = [
        f"M{3 * index + 1} {height}V{min(height * (1 - value / top), height - 1):.0f}"
        for index, value in enumerate(values)
        if value > 0
    ]
    text = Markup("{}: latest {:g}, highest {:g}").format(label, values[-1], max(values))
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img">'
        '<title>{}</title><path class="{}" d="{}"/></svg>'
    ).format(width, height, text, f"thin {kind}", "".join(moves))


def draw_timeline(spans: Sequence[TimelineSpan]) -> Markup:
    """Return a bar of when a job waited and ran. A short attempt is widened to be visible."""
    if not spans:
        return Markup()
    begin, width = spans[0].start, 1000.0
    scale = width / max(spans[-1].end - begin, 0.001)
    parts = Markup().join(
        Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
            f"span {span.state}",
            min((span.start - begin) * scale, width - 3),
            6 if span.state == "waiting" else 0,
            max((span.end - span.start) * scale, 0 if span.state == "waiting" else 3),
            4 if span.state == "waiting" else 16,
        )
        for span in spans
    )
    ran = sum(span.end - span.start for span in spans if span.state != "waiting")
    return Markup(
        '<svg class="timeline" viewBox="0 0 1000 16" preserveAspectRatio="none" role="img">'
        "<title>Waited {:.1f} s, ran {:.1f} s</title>{}</svg>"
    ).format(spans[-1].end - begin - ran, ran, parts)


class Run(Protocol):
    """How a job ended, and how long its last attempt took."""

    @property
    def state(self) -> str: ...

    @property
    def seconds(self) -> float | None: ...


MIN_RUN_PLACES = 60
"""The places of a strip of runs. Fewer runs stand at its right end, so that one is no slab."""


def draw_runs(runs: Sequence[Run]) -> Markup:
    """Return a strip of runs, oldest first. The height of a bar is the time of its run."""
    if not runs:
        return Markup()
    longest = max(run.seconds or 0.0 for run in runs) or 1.0
    first = MIN_RUN_PLACES - len(runs) if len(runs) < MIN_RUN_PLACES else 0
    bars = Markup().join(
        Markup('<rect class="{}" x="{}" y="{:.1f}" width="8" height="{:.1f}"/>').format(
            f"span {run.state}", 10 * (first + index), 40 - height, height
        )
        for index, run in enumerate(runs)
        for height in (max(4.0, 40 * (run.seconds or 0.0) / longest),)
    )
    return Markup(
        '<svg class="runs" viewBox="0 0 {} 40" preserveAspectRatio="none" role="img">'
        "<title>{} runs, the latest on the right; height is the time of a run</title>{}</svg>"
    ).format(10 * (first + len(runs)), len(runs), bars)


class Mark(NamedTuple):
    """One place of a strip."""

    kind: str
    """A state of a job, or `nothing`."""
    label: str


def draw_marks(marks: Sequence[Mark], title: str) -> Markup:
    """Return a strip of marks of equal height, oldest first. Each says what it means."""
    if not marks:
        return Markup()
    shapes = Markup().join(
        Markup(
            '<rect class="{}" x="{}" width="6" y="{}" height="{}"><title>{}</title></rect>'
        ).format(
            f"span {mark.kind}",
            8 * index,
            *((9, 2) if mark.kind == "nothing" else (2, 16)),
            mark.label,
        )
        for index, mark in enumerate(marks)
    )
    return Markup(
        '<svg class="marks" viewBox="0 0 {} 20" width="{}" height="20" role="img">'
        "<title>{}</title>{}</svg>"
    ).format(8 * len(marks), 8 * len(marks), title, shapes)


def draw_chart(
    series: Sequence[Series],
    title: str,
    *,
    stacked: bool = False,
    lines: Sequence[Series] = (),
    moments: Sequence[Moment] = (),
) -> Markup:
    """Return a chart of bars or lines with a scale from 0 to the highest value.

    `lines` are drawn over the bars of a `stacked` chart.

    The values of all series must have the same times. The description for readers who do not see
    the chart is the latest and the highest value of each series.
    """
    count = max((len(one.values) for one in series), default=0)
    if not count:
        return Markup()
    height, step = 120, max(2, 720 // count)
    top = find_top(series, stacked=stacked, lines=lines)
    shapes = Markup()
    if stacked:
        kinds = [one.kind for one in series]
        shapes = _draw_bars([one.values for one in series], kinds, top, step, height)
    drawn = lines if stacked else [*series, *lines]
    shapes += Markup().join(_draw_line(one, top, step, height) for one in drawn)
    shapes += _draw_moments(moments, step * count, height)
    grid = Markup().join(
        Markup('<line class="grid" x1="0" x2="{}" y1="{}" y2="{}"/>').format(
            step * count, height * part, height * part
        )
        for part in (0, 0.5)
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img">'
        "<title>{}</title><desc>{}</desc>{}{}</svg>"
    ).format(step * count, height, title, _describe([*series, *lines]), grid, shapes)


def find_top(
    series: Sequence[Series], *, stacked: bool = False, lines: Sequence[Series] = ()
) -> float:
    """Return the highest value of the scale of a chart."""
    columns = zip(*(one.values for one in series), strict=True)
    highest = [
        sum(column) if stacked else max(_drop_gaps(column), default=0.0) for column in columns
    ]
    highest += [max(_drop_gaps(one.values), default=0.0) for one in lines]
    return _round_up(max(highest, default=0.0))


def fill_intervals(
    rows: Sequence[Statistics], field: str, since: float, step: int, count: int
) -> list[float]:
    """Return the sums of a counter for `count` intervals from `since` on."""
    values = [0.0] * count
    first = int(since // step)
    for row in rows:
        index = row.start // step - first
        if 0 <= index < count:
            values[index] += getattr(row.counters, field)
    return values


def _describe(series: Sequence[Series]) -> str:
    return "; ".join(
        f"{one.label}: latest {known[-1]:g}, highest {max(known):g}"
        for one in series
        if (known := _drop_gaps(one.values))
    )


def _drop_gaps(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _round_up(top: float) -> float:
    """Return the next number of the form 1, 1.5, 2, 3, 4, 5 or 8 times a power of ten."""
    if top <= 0:
        return 1.0
    power = 1.0
    while power * 10 <= top:
        power *= 10
    while power > top:
        power /= 10
    return next(power * factor for factor in (1, 1.5, 2, 3, 4, 5, 8, 10) if power * factor >= top)


def _draw_bars(
    rows: Sequence[Sequence[float]], kinds: Sequence[str], top: float, step: int, height: int
) -> Markup:
    """Return stacked bars, as one path for each row."""
    bases = [0.0] * max(len(row) for row in rows)
    drawn = Markup()
    for row, kind in zip(rows, kinds, strict=True):
        moves = []
        for index, value in enumerate(row):
            if value <= 0:
                continue
            low = height * (1 - bases[index] / top)
            bases[index] += value
            high = min(height * (1 - bases[index] / top), low - 1)
            right = (index + 1) * step - 1
            moves.append(f"M{index * step} {low:.1f}V{high:.1f}H{right}V{low:.1f}Z")
        drawn += Markup('<path class="{}" d="{}"/>').format(f"bar {kind}", "".join(moves))
    return drawn


def _draw_moments(moments: Sequence[Moment], width: int, height: int) -> Markup:
    return Markup().join(
        Markup(
            '<line class="moment" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}">'
            "<title>{2}</title></line>"
        ).format(one.share * width, height, escape_controls(one.label))
        for one in moments
        if 0 <= one.share <= 1
    )


def _draw_line(series: Series, top: float, step: int, height: int) -> Markup:
    """Return a line with gaps. It begins half an interval early, so that one value is visible."""
    moves, drawing = [], False
    for index, value in enumerate(series.values):
        if not math.isnan(value):
            x, y = index * step + step / 2, height * (1 - value / top)
            moves.append(f"L{x:g} {y:.1f}" if drawing else f"M{index * step} {y:.1f}H{x:g}")
        drawing = not math.isnan(value)
    return Markup('<path class="{}" d="{}"/>').format(f"line {series.kind}", "".join(moves))
