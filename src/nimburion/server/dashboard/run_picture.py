"""The timeline of a durable run as inline SVG: one row for each entry, time from left to right.

Spans in which no step worked and which are long beside the others are cut to a fixed width, and
have their length in words. The shapes have classes, not style attributes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from nimburion.core.text.escaping import escape_controls
from nimburion.core.text.shortening import shorten
from nimburion.jobs.durable.timeline import EntryKind, EntryState, TimelineEntry
from nimburion.server.api.runs import RunView
from nimburion.server.dashboard.rendering import STATE_ICONS, format_duration

LABEL_WIDTH = 230
PLOT_WIDTH = 720
NOTE_WIDTH = 170
FUTURE_WIDTH = 70
"""The width of the time between now and a deadline, however long it is."""
ROW_HEIGHT = 24
TOP = 24
"""The height of the line with the lengths of cut spans."""
CUT_WIDTH = 64
_MAX_CUT_SHARE = 0.6
"""The most of the width that cut spans take together."""
_LABELLED_WIDTH = 34
"""A narrower cut span has no label."""
_MIN_BAR = 3
_CLASSES = {
    EntryState.DONE: "completed",
    EntryState.FAILED: "failed",
    EntryState.RETRYING: "retrying",
    EntryState.TIMEOUT: "timeout",
    EntryState.CANCELLED: "cancelled",
    EntryState.WAITING: "processing",
    EntryState.STARTED: "processing",
}
_CALLS = frozenset({EntryKind.STEP, EntryKind.UNDO, EntryKind.END})
"""The kinds of entries that do something. The others only wait."""


class TimeSpan(NamedTuple):
    """A part of the time of a run, from `start` to `end`, and where it is drawn."""

    start: float
    end: float
    x: float
    width: float
    is_cut: bool


def draw_run(run: RunView, shown: Sequence[TimelineEntry], base: str) -> Markup:
    """Return the picture of some entries of a run; nothing if no time of them is known."""
    entries = [one for one in shown if _find_times(one, run.now)]
    if not entries:
        return Markup()
    has_deadline = any(one.is_open and one.until for one in entries)
    width = PLOT_WIDTH - (FUTURE_WIDTH if has_deadline else 0)
    spans = lay_out_time(entries, run.now, LABEL_WIDTH, width)
    height = TOP + ROW_HEIGHT * len(entries) + 6
    rows = Markup().join(
        _draw_row(one, TOP + ROW_HEIGHT * number, spans, run.now, base)
        for number, one in enumerate(entries)
    )
    cuts = Markup().join(_draw_cut(span, height) for span in spans if span.is_cut)
    now = Markup()
    if has_deadline:
        now = Markup('<line class="edge on-finished" x1="{0:g}" x2="{0:g}" y1="{1}" y2="{2}"/>')
        now = now.format(LABEL_WIDTH + width, TOP - 4, height)
        now += Markup('<text class="note" x="{:g}" y="15">now</text>').format(
            LABEL_WIDTH + width + 4
        )
    total = LABEL_WIDTH + PLOT_WIDTH + NOTE_WIDTH
    return Markup(
        '<svg class="flow" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="group" '
        'aria-label="The timeline, which the table below has as text.">{2}{3}{4}</svg>'
    ).format(total, height, cuts, now, rows)


def _find_times(one: TimelineEntry, now: float) -> tuple[float, float] | None:
    """Return when an entry began and ended, or now; None if neither is known."""
    end = one.ended_at if one.ended_at is not None else now if one.is_open else one.started_at
    if end is None:
        return None
    end = min(end, now)
    return (end if one.started_at is None else min(one.started_at, end)), end


def lay_out_time(
    entries: Sequence[TimelineEntry], now: float, left: float, width: float
) -> list[TimeSpan]:
    """Return the spans between the moments of a run, with their places between `left` and
    `left + width`.
    """
    times = [found for one in entries if (found := _find_times(one, now))]
    worked = [
        found
        for one in entries
        if one.kind in _CALLS
        and one.state is not EntryState.RETRYING
        and (found := _find_times(one, now))
    ]
    moments = sorted({moment for found in times for moment in found})
    pairs = list(pairwise(moments))
    idle = [
        (start, end) for start, end in pairs if not any(a <= start and end <= b for a, b in worked)
    ]
    cut = _choose_cut(pairs, idle)
    cut_width = min(CUT_WIDTH, _MAX_CUT_SHARE * width / len(cut)) if cut else 0.0
    rest = sum(end - start for start, end in pairs if (start, end) not in cut)
    scale = (width - cut_width * len(cut)) / rest if rest else 0.0
    spans, x = [], left
    for start, end in pairs:
        is_cut = (start, end) in cut
        part = cut_width if is_cut else scale * (end - start)
        spans.append(TimeSpan(start, end, x, part, is_cut))
        x += part
    if not rest and spans:  # everything is cut: the whole width is theirs
        spans = [
            span._replace(x=left + width * n / len(spans), width=width / len(spans))
            for n, span in enumerate(spans)
        ]
    return spans or [TimeSpan(moments[0], moments[0], left, width, is_cut=False)]


def _choose_cut(
    pairs: Sequence[tuple[float, float]], idle: Sequence[tuple[float, float]]
) -> set[tuple[float, float]]:
    """Return the longest idle spans, so that the others are no longer than the time of work."""
    work = sum(end - start for start, end in pairs) - sum(end - start for start, end in idle)
    left = sum(end - start for start, end in idle)
    cut: set[tuple[float, float]] = set()
    for start, end in sorted(idle, key=lambda span: span[0] - span[1]):
        if left <= work or end - start < 1.0:
            break
        cut.add((start, end))
        left -= end - start
    return cut


def _find_x(at: float, spans: Sequence[TimeSpan]) -> float:
    number = max(0, bisect_right(spans, at, key=lambda span: span.start) - 1)
    span = spans[number]
    share = (at - span.start) / (span.end - span.start) if span.end > span.start else 0.0
    return span.x + span.width * min(1.0, max(0.0, share))


def _draw_cut(span: TimeSpan, height: float) -> Markup:
    whole = " ".join(format_duration(span.end - span.start).split(" ")[:2])
    text = Markup()
    if span.width >= _LABELLED_WIDTH:
        text = Markup('<text class="note" x="{:.1f}" y="15" text-anchor="middle">{}</text>').format(
            span.x + span.width / 2, whole
        )
    return Markup('<rect class="track" x="{:.1f}" y="{}" width="{:.1f}" height="{:g}"/>{}').format(
        span.x, TOP - 4, span.width, height - TOP + 4, text
    )


def _draw_row(
    one: TimelineEntry, y: float, spans: Sequence[TimeSpan], now: float, base: str
) -> Markup:
    """Return the label, the bar and the note of an entry."""
    start, end = _find_times(one, now) or (now, now)
    left, right = _find_x(start, spans), _find_x(end, spans)
    is_call = one.kind in _CALLS
    bar_height = 12 if is_call else 6
    kind = _CLASSES[one.state] if is_call or one.state is not EntryState.DONE else "unfinished"
    bar_width = max(right - left, _MIN_BAR)
    bar = Markup('<rect class="{}" x="{:.1f}" y="{:g}" width="{:.1f}" height="{}" rx="2"/>').format(
        f"span {kind}", right - bar_width, y + (ROW_HEIGHT - bar_height) / 2, bar_width, bar_height
    )
    if one.is_open and one.until is not None:
        bar += Markup('<path class="edge on-failure" d="M{:.1f} {:g}h{}"/>').format(
            right, y + ROW_HEIGHT / 2, FUTURE_WIDTH - 6
        )
    label = Markup(
        '<svg class="box {state}" x="0" y="{y:g}" width="{width}" height="{height}">'
        '<use class="icon" href="#i-{icon}" x="8" y="5" width="14" height="14"/>'
        '<text x="28" y="16"><tspan class="note">{kind}</tspan> '
        '<tspan class="name">{key}</tspan></text></svg>'
    ).format(
        state=_CLASSES[one.state],
        y=y,
        width=LABEL_WIDTH - 8,
        height=ROW_HEIGHT,
        icon=STATE_ICONS.get(one.state, "clock"),
        kind=one.kind.value,
        key=escape_controls(shorten(one.key, 24)),
    )
    note = Markup('<text class="note" x="{}" y="{:g}">{}</text>').format(
        LABEL_WIDTH + PLOT_WIDTH + 8, y + 16, escape_controls(shorten(make_note(one, now), 28))
    )
    row = label + bar + note
    title = Markup("<title>{}</title>").format(escape_controls(describe_entry(one, now)))
    if one.flow is None:
        return Markup("<g>{}{}</g>").format(title, row)
    return Markup('<a href="{}/flows/{}">{}{}</a>').format(base, one.flow, title, row)


def make_note(one: TimelineEntry, now: float) -> str:
    """Return the end of a row: how long it took, or what it waits for."""
    if one.is_open and one.until is not None:
        left = one.until - now
        return f"{format_duration(left)} left" if left > 0 else "due now"
    took = ""
    if one.started_at is not None and (one.ended_at is not None or one.is_open):
        end = now if one.ended_at is None else one.ended_at
        took = format_duration(max(0.0, end - one.started_at))
    state = "" if one.state is EntryState.DONE else one.state.value
    tries = f"{one.tries} tries" if one.tries > 1 else ""
    return ", ".join(part for part in (state, took, tries) if part)


def describe_entry(one: TimelineEntry, now: float) -> str:
    """Return an entry in words."""
    parts = [f"{one.kind.value} {one.key}".rstrip(), one.state.value, make_note(one, now)]
    if one.flow is not None:
        parts.append(f"{one.jobs} job{'' if one.jobs == 1 else 's'}")
    return ", ".join(dict.fromkeys(part for part in (*parts, one.error) if part))
