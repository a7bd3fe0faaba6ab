"""Print the timeline of a durable run."""

from __future__ import annotations

import click
import msgspec

from nimburion.cli.output import format_bytes, format_duration, format_time, print_table
from nimburion.cli.records import bytes_to_data, bytes_to_text
from nimburion.core.text.escaping import escape_controls
from nimburion.core.text.shortening import shorten
from nimburion.jobs.durable.timeline import RunTimeline, TimelineEntry


def timeline_to_data(timeline: RunTimeline, *, with_values: bool = True) -> dict[str, object]:
    """Return the timeline of a run as JSON data: times as epoch seconds, values as JSON values, or
    only their sizes in bytes.
    """
    job = timeline.job
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state.value,
        "why": timeline.why,
        "steps": timeline.steps,
        "complete": timeline.is_complete,
        "unreadable": timeline.unreadable,
        "cancelling": timeline.is_cancelling,
        "entries": [_entry_to_data(one, with_values=with_values) for one in timeline.entries],
        "signals": [
            {"name": one.name, "at": one.at, **_value_to_data("payload", one.payload, with_values)}
            for one in timeline.signals
        ],
    }


def _entry_to_data(entry: TimelineEntry, *, with_values: bool) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(msgspec.structs.replace(entry, value=None))
    if with_values and entry.value is not None:
        fields["value"] = bytes_to_data(bytes(entry.value))
    return fields


def _value_to_data(name: str, value: bytes | None, with_values: bool) -> dict[str, object]:  # noqa: FBT001
    if with_values:
        return {name: bytes_to_data(value)}
    return {f"{name}_size": None if value is None else len(value)}


def print_timeline(timeline: RunTimeline, *, with_values: bool = True) -> None:
    """Print the entries of the timeline, what the run waits for, and its unread signals."""
    print_table(
        ("kind", "key", "state", "started", "took", "tries", "value, error or wait"),
        [
            (
                one.kind.value,
                one.key,
                one.state.value,
                format_time(one.started_at),
                _format_took(one, timeline.now),
                one.tries or None,
                describe_entry(one, timeline.now, with_values=with_values),
            )
            for one in timeline.entries
        ],
        "no steps",
    )
    click.echo(escape_controls(timeline.why))
    if timeline.is_cancelling:
        click.echo("It was asked to end as cancelled.")
    if timeline.unreadable:
        click.echo(f"{timeline.unreadable} steps are in the format of a newer version")
    for one in timeline.signals:
        payload = _format_value(one.payload, with_values=with_values)
        click.echo(
            f"unread signal {escape_controls(one.name)}, {format_time(one.at)}: "
            f"{escape_controls(shorten(payload, 80))}"
        )
    if not timeline.is_complete:
        click.echo(f"read {timeline.steps} steps, and there are more: add --limit")


def _format_took(entry: TimelineEntry, now: float) -> str | None:
    """Return how long it took, or has taken."""
    if entry.started_at is None:
        return None
    end = now if entry.ended_at is None else entry.ended_at
    return format_duration(max(0.0, end - entry.started_at))


def _format_value(value: bytes, *, with_values: bool) -> str:
    if with_values:
        return bytes_to_text(value) or ""
    return format_bytes(len(value)) or "0 B"


def describe_entry(entry: TimelineEntry, now: float, *, with_values: bool = True) -> str:
    """Return the value, the error, the child jobs or the wait of an entry, on one line."""
    parts = []
    if entry.error:
        parts.append(entry.error.partition("\n")[0])
    elif entry.value is not None:
        parts.append(_format_value(bytes(entry.value), with_values=with_values))
    if entry.is_open and entry.until is not None:
        left = entry.until - now
        parts.append(f"{format_duration(left)} left" if left > 0 else "due")
    if entry.flow is not None:
        jobs = "1 job" if entry.jobs == 1 else f"{entry.jobs} jobs"
        parts.append(f"{jobs} of {entry.flow}")
    return ", ".join(parts)
