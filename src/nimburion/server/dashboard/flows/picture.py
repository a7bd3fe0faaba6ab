"""Flows as inline SVG: bars of states, and the picture of a graph.

The shapes have classes, not style attributes: the pages allow no inline style.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from nimburion.core.flows import FlowInfo, On
from nimburion.core.job import State
from nimburion.core.text.escaping import escape_controls
from nimburion.core.text.shortening import shorten
from nimburion.server.dashboard.flows.graph import NOT_ENDED, FlowBox
from nimburion.server.dashboard.flows.layout import (
    BOX_HEIGHT,
    BOX_WIDTH,
    COLUMN_WIDTH,
    Point,
    arrange,
)
from nimburion.server.dashboard.rendering import STATE_ICONS, format_count

MAX_LINES = 1_000
"""The most lines of a picture. Further ones are left out, and the picture says so."""
_BAR_WIDTH = 1000
_ORDER = (
    State.COMPLETED,
    State.FAILED,
    State.CANCELLED,
    State.PROCESSING,
    State.RETRYING,
    State.PENDING,
    State.SCHEDULED,
    State.SUSPENDED,
    NOT_ENDED,
)
"""The order of states in a bar, from left to right."""


def count_states(flow: FlowInfo) -> dict[str, int]:
    """Return the number of members of a flow by state; those that have not ended are together."""
    return {
        State.COMPLETED.value: flow.completed,
        State.FAILED.value: flow.failed,
        State.CANCELLED.value: flow.cancelled,
        NOT_ENDED: flow.unfinished,
    }


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return how many are in each state, for people.

    >>> describe_counts({"completed": 3, "failed": 0, "not ended": 1})
    '3 completed, 1 not ended'
    """
    parts = [f"{format_count(counts[state])} {state}" for state in _ORDER if counts.get(state)]
    return ", ".join(parts) or "no members"


def draw_state_bar(counts: Mapping[str, int]) -> Markup:
    """Return a bar of the states of members. A state with few members is widened to be visible."""
    return Markup(
        '<svg class="states" viewBox="0 0 {} 10" preserveAspectRatio="none" role="img">'
        "<title>{}</title>{}</svg>"
    ).format(_BAR_WIDTH, describe_counts(counts), _draw_segments(counts, 0, 0, _BAR_WIDTH, 10))


def _draw_segments(
    counts: Mapping[str, int], x: float, y: float, width: float, height: float
) -> Markup:
    """Return one rectangle for each state, over a background for an empty bar."""
    known = [(state, counts[state]) for state in _ORDER if counts.get(state)]
    least = 0.02 * width
    rest = width - least * len(known)
    total = sum(count for _, count in known)
    shapes = Markup('<rect class="track" x="{:g}" y="{:g}" width="{:g}" height="{:g}"/>').format(
        x, y, width, height
    )
    for state, count in known:
        part = least + rest * count / total
        shapes += Markup(
            '<rect class="{}" x="{:.1f}" y="{:g}" width="{:.1f}" height="{:g}"/>'
        ).format(f"span {_choose_class(state)}", x, y, part, height)
        x += part
    return shapes


def _choose_class(state: str) -> str:
    is_idle = state in {NOT_ENDED, State.PENDING, State.SCHEDULED, State.SUSPENDED}
    return "unfinished" if is_idle else str(state)


def draw_flow(boxes: Sequence[FlowBox], base: str) -> Markup:
    """Return the picture of a flow. Each box is a link to a page with its jobs."""
    if not boxes:
        return Markup()
    layout = arrange(boxes)
    edges = [
        (source.box, number, source.on)
        for number, box in enumerate(boxes)
        for source in box.sources
    ]
    lines = Markup().join(
        _draw_line(
            layout.boxes[source],
            layout.lines[source, number],
            layout.boxes[number],
            _choose_line(boxes[source], boxes[number], on),
        )
        for source, number, on in edges[:MAX_LINES]
    )
    shapes = Markup().join(
        _draw_box(box, corner, base) for box, corner in zip(boxes, layout.boxes, strict=True)
    )
    left_out = len(edges) - MAX_LINES
    more = f" {format_count(left_out)} further lines are not drawn." if left_out > 0 else ""
    return Markup(
        '<svg class="flow" width="{0:g}" height="{1:g}" viewBox="0 0 {0:g} {1:g}" role="group" '
        'aria-label="The graph, which the table below has as text.{2}">{3}{4}</svg>'
    ).format(layout.width, layout.height, more, lines, shapes)


def _choose_line(source: FlowBox, target: FlowBox, on: On) -> str:
    """Return the classes of a line: which end is waited for, and whether failed jobs of its source
    stopped its target, which a tolerated failure does not.
    """
    stopped = source.state == State.FAILED and target.counts.get(State.CANCELLED, 0)
    return f"edge on-{on} {'failed' if stopped else ''}".rstrip()


def _draw_line(start: Point, between: Iterable[Point], end: Point, kind: str) -> Markup:
    """Return a line with an arrowhead from the right side of a box to the left side of another."""
    x, y = start.x + BOX_WIDTH, start.y + BOX_HEIGHT / 2
    gap = (COLUMN_WIDTH - BOX_WIDTH) / 2
    moves = [f"M{x:g} {y:g}"]
    for point in between:
        left, right = point.x - BOX_WIDTH / 2, point.x + BOX_WIDTH / 2
        moves.append(f"C{x + gap:g} {y:g} {left - gap:g} {point.y:g} {left:g} {point.y:g}")
        moves.append(f"H{right:g}")
        x, y = right, point.y
    last_x, last_y = end.x - 1, end.y + BOX_HEIGHT / 2
    moves.append(f"C{x + gap:g} {y:g} {last_x - gap:g} {last_y:g} {last_x:g} {last_y:g}")
    moves.append("m-6 -4l6 4l-6 4")
    return Markup('<path class="{}" d="{}"/>').format(kind, "".join(moves))


def _draw_box(box: FlowBox, corner: Point, base: str) -> Markup:
    """Return a box with its name, its state and, for several jobs, a bar of states.

    The inner SVG cuts a text that is too long.
    """
    inner = BOX_WIDTH - 20
    icon = STATE_ICONS.get(box.state, "wait")
    is_single = box.jobs == 1 and box.kind in {"job", "callback"}
    bar = Markup() if is_single else _draw_segments(box.counts, 10, BOX_HEIGHT - 11, inner, 5)
    return Markup(
        '<a href="{base}{link}"><title>{title}</title>'
        '<svg class="box {kind} {state}" x="{x:g}" y="{y:g}" width="{w}" height="{h}">'
        '<rect class="shape" x="1" y="1" width="{iw}" height="{ih}" rx="7"/>'
        '<use class="icon" href="#i-{icon}" x="9" y="{icon_y}" width="14" height="14"/>'
        '<text class="name" x="29" y="{name_y}">{name}</text>'
        '<text class="note" x="{note_x}" y="{note_y}">{note}</text>{bar}</svg></a>'
    ).format(
        base=base,
        link=box.link,
        title=escape_controls(_describe_box(box)),
        kind=box.kind,
        state=box.state.replace(" ", "-"),
        x=corner.x,
        y=corner.y,
        w=BOX_WIDTH,
        h=BOX_HEIGHT,
        iw=BOX_WIDTH - 2,
        ih=BOX_HEIGHT - 2,
        icon=icon,
        icon_y=9 if is_single else 6,
        name=escape_controls(shorten(box.label, 24)),
        name_y=21 if is_single else 17,
        note=escape_controls(shorten(_make_note(box), 28)),
        note_x=29,
        note_y=38 if is_single else 33,
        bar=bar,
    )


def _make_note(box: FlowBox) -> str:
    """Return the second line of a box."""
    if box.kind in {"job", "callback"}:
        return box.state if box.label == box.job_name else f"{box.state}, {box.job_name}"
    left = box.counts.get(NOT_ENDED, 0)
    jobs = format_count(box.jobs)
    done = f"{format_count(box.jobs - left)} of {jobs} ended" if left else f"{jobs} jobs"
    failed = box.counts.get(State.FAILED, 0)
    return f"{done}, {format_count(failed)} failed" if failed else done


def _describe_box(box: FlowBox) -> str:
    """Return all that a box stands for, for the tooltip and for readers who do not see it."""
    what = {
        "job": "job",
        "group": "group",
        "several": f"{format_count(box.boxes)} members",
        "callback": "callback",
    }[box.kind]
    name = f", {box.job_name}" if box.job_name and box.job_name != box.label else ""
    return f"{box.label} ({what}{name}): {describe_counts(box.counts)}"
