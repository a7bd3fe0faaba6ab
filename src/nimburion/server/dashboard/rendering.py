"""Templates of the dashboard: the environment, and the filters for times, durations and states.

Every value is escaped, and control characters and bidirectional marks are shown as escapes, so that
nothing from a job is ever markup. Only `Markup` from `charts.py` and from the filters is trusted.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from urllib.parse import urlencode

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.compiler import CodeGenerator, Frame
from jinja2.nodes import Expr
from markupsafe import Markup, escape

from nimburion.core.errors import DefinitionError
from nimburion.core.text.escaping import escape_controls, escape_in_json, escape_lines
from nimburion.core.text.shortening import shorten
from nimburion.core.timing.timezones import find_zone
from nimburion.server.dashboard.charts import (
    draw_chart,
    draw_marks,
    draw_runs,
    draw_sparkline,
    draw_timeline,
    find_top,
)

NOTHING = "\N{EN DASH}"
"""Stands for a value that is not there."""
MAX_TEXT_CHARACTERS = 65_536
"""A longer text is cut on a page; the JSON twin of the page has all of it."""

_MAX_LINE = 120
"""The characters of a JSON text that a table shows."""
_SHORT = 32
"""The most characters of a text that is escaped once for many pages."""


class _OneCallGenerator(CodeGenerator):
    """Writes a value with one call of `finalize_value`, which escapes. Jinja would escape what it
    returns once more: two calls and a copy for each of the thousand values of a page.
    """

    def _output_child_pre(self, node: Expr, frame: Frame, finalize: object) -> None:  # noqa: ARG002
        self.write("environment.finalize(")

    def _output_child_post(self, node: Expr, frame: Frame, finalize: object) -> None:  # noqa: ARG002
        self.write(")")


class _PageEnvironment(Environment):
    code_generator_class = _OneCallGenerator


@cache
def make_environment() -> Environment:
    """Return the environment of the templates."""
    environment = _PageEnvironment(
        loader=PackageLoader("nimburion.server.dashboard"),
        autoescape=True,
        auto_reload=False,  # upgrading the package must not change pages of a running server
        undefined=StrictUndefined,
        finalize=finalize_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        {
            "runs": draw_runs,
            "lines_chart": draw_chart,
            "lines_top": find_top,
            "link_with": make_link_with,
            "marks": draw_marks,
            "part": render_part,
            "sparkline": draw_sparkline,
            "stacked": partial(draw_chart, stacked=True),
            "stacked_top": partial(find_top, stacked=True),
            "timeline": draw_timeline,
        }
    )
    environment.filters.update(
        {
            "bytes": format_bytes,
            "count": format_count,
            "duration": format_duration,
            "duration_since": format_past_duration,
            "first_line": find_first_line,
            "json_line": format_json_line,
            "json_text": format_json_text,
            "lines": format_lines,
            "link_jobs": link_jobs,
            "percent": format_percent,
            "rate": format_rate,
            "short": shorten,
            "short_id": shorten_id,
            "state": format_state,
            "time": format_time,
            "time_in": format_time_in,
        }
    )
    return environment


def render_page(template: str, values: Mapping[str, object]) -> str:
    """Return a whole page."""
    return make_environment().get_template(template).render(values)


def render_block(template: str, block: str, values: Mapping[str, object]) -> str:
    """Return one block of a template."""
    found = make_environment().get_template(template)
    return "".join(found.blocks[block](found.new_context(dict(values))))


@lru_cache(maxsize=256)
def render_part(template: str, **values: Hashable) -> Markup:
    """Return a part that is the same on many pages."""
    return Markup(render_page(template, values))  # noqa: S704 (a template escapes its values)


def finalize_value(value: object) -> str:
    """Return what a template writes for a value: escaped, nothing for None, and no control
    characters.

    >>> finalize_value("<b>"), finalize_value(7), finalize_value(None)
    (Markup('&lt;b&gt;'), '7', '')
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        if len(value) <= _SHORT:
            return _escape_again(value)
        return escape(escape_controls(value))
    if value is None:
        return ""
    return str(value) if isinstance(value, int | float) else escape(escape_controls(value))


@lru_cache(maxsize=4096)
def _escape_again(text: str) -> Markup:
    """Escape a short text, of which pages repeat most: paths, names, labels."""
    return escape(escape_controls(text))


def format_count(number: float | None, precision: str = "") -> str:
    """Format a number with narrow spaces between thousands, and a word before it.

    >>> format_count(7), format_count(7, "at least")
    ('7', 'at least 7')
    """
    if number is None:
        return NOTHING
    text = f"{number:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{precision} {text}".lstrip()


def format_rate(number: float | None) -> str:
    """Format a rate: one digit behind the point below ten.

    >>> format_rate(0), format_rate(0.04), format_rate(3.25), format_rate(120.4)
    ('0', '<0.1', '3.2', '120')
    """
    if number is None:
        return NOTHING
    if 0 < number < 0.05:
        return "<0.1"
    return format_count(number) if number >= 10 else f"{number:.1f}".removesuffix(".0")


def format_percent(fraction: float | None) -> str:
    """Format a fraction as a percentage.

    >>> format_percent(0), format_percent(0.0004), format_percent(0.5)
    ('0 %', '<0.1 %', '50 %')
    """
    if fraction is None:
        return NOTHING
    if 0 < fraction < 0.001:
        return "<0.1 %"
    return f"{100 * fraction:.1f}".removesuffix(".0") + " %"


def format_duration(seconds: float | None) -> str:
    """Format a duration with two units at most.

    >>> [format_duration(seconds) for seconds in (0, 0.0123, 4.2, 75, 3 * 3600 + 120, 200_000)]
    ['0 s', '12 ms', '4.2 s', '1 min 15 s', '3 h 2 min', '2 d 7 h']
    """
    if seconds is None:
        return NOTHING
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if 0 < seconds < 1:
        return f"{max(1.0, 1000 * seconds):.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    for unit, length, part, part_length in (
        ("d", 86_400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= length:
            rest = whole % length // part_length
            return f"{whole // length} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def format_past_duration(seconds: float) -> str:
    """Format the time since something; clocks that differ a little make no negative time."""
    return format_duration(max(0.0, seconds))


def find_first_line(text: str) -> str:
    """Return the first line of a text that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def format_bytes(count: int | None) -> str:
    """Format a size: `850 B`, `12 MiB`."""
    size, unit = float(count or 0), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}"


def format_time(at: float | None, element_id: str = "") -> Markup:
    """Return a time as `<time>` in UTC. The script of the page shows it in the viewer's zone."""
    if at is None:
        return escape(NOTHING)
    try:
        moment = datetime.fromtimestamp(at, UTC).replace(tzinfo=None)
    except (OverflowError, OSError, ValueError):
        return escape(f"{at:g}")
    exact, shown = moment.isoformat(timespec="milliseconds"), moment.isoformat(" ", "seconds")
    name = f' id="{element_id}"' if element_id else ""
    # To let `Markup` escape the parts takes longer than to make them.
    return Markup(  # noqa: S704 (no part comes from a job)
        f'<time{name} datetime="{exact}Z">{shown} UTC</time>'
    )


def format_time_in(at: float, zone: str) -> str:
    """Return a time in a zone, with its name; empty if this host does not know the zone.

    >>> format_time_in(1_790_000_000, "Europe/Rome"), format_time_in(0, "Europe/Nowhere")
    ('2026-09-21 16:13 Europe/Rome', '')
    """
    try:
        moment = datetime.fromtimestamp(at, find_zone(zone))
    except (DefinitionError, OverflowError, OSError, ValueError):
        return ""
    return f"{moment:%Y-%m-%d %H:%M} {zone}"


def format_lines(text: str | bytes | msgspec.Raw | None) -> Markup:
    """Return a text of several lines for `<pre>`, escaped and cut to `MAX_TEXT_CHARACTERS`."""
    if isinstance(text, bytes | msgspec.Raw):
        text = bytes(text).decode(errors="backslashreplace")
    shown = escape_lines((text or "")[:MAX_TEXT_CHARACTERS])
    cut = len(text or "") - MAX_TEXT_CHARACTERS
    more = f"\n… {format_count(cut)} more characters" if cut > 0 else ""
    return escape(shown + more)


def format_json_text(text: str | None) -> Markup:
    """Return JSON text for `<textarea>`. Control characters and bidirectional marks become JSON
    escapes, which mean the same.
    """
    lines = (text or "").replace("\r\n", "\n").replace("\r", "\n")
    return escape(escape_in_json(lines))


def format_json_line(value: msgspec.Raw) -> str:
    """Return the beginning of JSON text, on one line.

    >>> format_json_line(msgspec.Raw(b'{"a":   1, "b": 2}'))
    '{"a": 1, "b": 2}'
    """
    start = bytes(value)[: 4 * _MAX_LINE].decode(errors="replace")
    return shorten(" ".join(start.split()), _MAX_LINE)


def make_link_with(query: msgspec.Struct, **changes: object) -> str:
    """Return the query of a link to the same page with other parameters. Defaults are left out."""
    values = {**msgspec.structs.asdict(query), **changes}
    return "?" + urlencode(
        [
            (name, str(values[name]))
            for name, default in _list_defaults(type(query))
            if values[name] not in (default, None)
        ]
    )


@cache
def _list_defaults(query: type[msgspec.Struct]) -> tuple[tuple[str, object], ...]:
    """Return the parameters of a page with their defaults. To list them takes 0.6 ms each time."""
    return tuple((field.name, field.default) for field in msgspec.structs.fields(query))


def link_jobs(text: str, job_ids: Sequence[str], base: str) -> Markup:
    """Return a sentence in which the jobs that it names, after "job" or "by", are links.

    >>> link_jobs("Job 1 waits, held by 7.", ["7"], "/dashboard")
    Markup('Job 1 waits, held by <a href="/dashboard/jobs/7">7</a>.')
    """
    named = ", ".join(job_ids)
    for lead in ("job ", "by "):
        before, found, after = text.rpartition(lead + named)
        if named and found:
            links = Markup(", ").join(
                Markup('<a href="{}/jobs/{}">{}</a>').format(base, one, one) for one in job_ids
            )
            return Markup("{}{}{}{}").format(
                escape_controls(before), lead, links, escape_controls(after)
            )
    return escape(escape_controls(text))


def shorten_id(job_id: str) -> str:
    """Return the last characters of a long id, which differ most; shorter ids stay whole."""
    return job_id if len(job_id) <= 14 else f"…{job_id[-12:]}"


STATE_ICONS: Mapping[str, str] = {
    "pending": "wait",
    "scheduled": "clock",
    "processing": "run",
    "retrying": "again",
    "suspended": "clock",
    "waiting": "clock",
    "completed": "check",
    "failed": "cross",
    "cancelled": "stop",
    "good": "check",
    "warning": "warn",
    "error": "cross",
    "paused": "pause",
    "live": "check",
    "busy": "run",
    "idle": "wait",
    "quiet": "pause",
    "stopping": "stop",
    "expired": "cross",
    "unserved": "warn",
    "late": "warn",
    "active": "check",
    "disabled": "stop",
    "inactive": "warn",
    "over": "stop",
    "unreadable": "cross",
    "left": "stop",
    "missed": "cross",
    "skipped": "stop",
    "timeout": "clock",
    "failure": "cross",
    "permanent": "cross",
    "lost": "warn",
    "started": "run",
    "running": "run",
    "done": "check",
}
"""The icon of each state. A word beside it says the same."""


@lru_cache(maxsize=256)
def format_state(state: str, label: str | None = None) -> Markup:
    """Return a state as icon, word and colour."""
    known = str(state) if str(state) in STATE_ICONS else "other"
    icon = STATE_ICONS.get(known, "wait")
    shown = escape_controls(state if label is None else label)
    return Markup(
        '<span class="state %s"><svg class="icon" aria-hidden="true"><use href="#i-%s"/></svg>'
        "%s</span>"
    ) % (known, icon, shown)
