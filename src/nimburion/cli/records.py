"""Format job records for the command line."""

from __future__ import annotations

import base64
import json

import click
import msgspec

from nimburion.cli.output import format_duration, format_time, print_fields, print_table
from nimburion.core.job import JobRecord, State
from nimburion.core.result_errors import decode_result_error
from nimburion.core.text.escaping import escape_controls, escape_lines


def record_to_data(record: JobRecord) -> dict[str, object]:
    """Return a record as JSON data: times as epoch seconds, payload and result as JSON values
    where possible."""
    data: dict[str, object] = msgspec.to_builtins(record)
    data["attempt"] = record.attempt
    data["attempts"] = msgspec.to_builtins(record.attempts)
    data["payload"] = bytes_to_data(record.payload)
    result_error = decode_result_error(record.result)
    data["result"] = None if result_error else bytes_to_data(record.result)
    data["result_error"] = result_error
    return data


def bytes_to_data(content: bytes | None) -> object:
    """Return the decoded JSON value; `{"base64": …}` for bytes that are not JSON; None for None."""
    if content is None:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return {"base64": base64.b64encode(content).decode()}


def bytes_to_text(content: bytes | None) -> str | None:
    """Return the stored text; bytes that are not UTF-8 become escape sequences."""
    return None if content is None else content.decode("utf-8", errors="backslashreplace")


def _format_due(record: JobRecord) -> str | None:
    """Return when a job is or was due; None while it waits for other jobs."""
    return None if record.state is State.SUSPENDED else format_time(record.due)


def print_records(records: list[JobRecord], empty: str) -> None:
    """Print a table with one line per job, or `empty` if there are no jobs."""
    print_table(
        ("id", "name", "queue", "state", "attempt", "priority", "due", "error"),
        [
            (
                record.id,
                record.name,
                record.queue,
                record.state.value,
                record.attempt,
                record.priority,
                _format_due(record),
                summarize_error(record),
            )
            for record in records
        ],
        empty,
    )


def summarize_error(record: JobRecord) -> str | None:
    """Return a short form of the latest error, after the reason of a dead letter; None if there
    is none."""
    error = record.error
    message = f"{error.type}: {error.message}" if error and error.message else error and error.type
    if record.state == "failed" and record.reason:
        return f"{record.reason}: {message}" if message else record.reason
    return message or record.reason


def format_progress(record: JobRecord) -> str | None:
    """Return the progress that a job reported last: `40% page 4`; None if it reported none."""
    progress = record.progress
    return None if progress is None else f"{progress.fraction:.0%} {progress.message}".rstrip()


def print_record(record: JobRecord, steps: int | str | None = None) -> None:
    """Print all fields except the payload and the error history, and the number of steps."""
    result_error = decode_result_error(record.result)
    print_fields(
        {
            "id": record.id,
            "name": record.name,
            "queue": record.queue,
            "state": record.state.value
            + (" (cancel requested)" if record.cancel_requested else ""),
            "attempt": record.attempt,
            "failures": record.failures or None,
            "lost": record.lost or None,
            "priority": record.priority,
            "created": format_time(record.created_at),
            "due": _format_due(record),
            "started": format_time(record.started_at),
            "finished": format_time(record.finished_at),
            "progress": format_progress(record),
            "steps": None if steps is None else f"{steps} (`nimburion jobs steps`)",
            "reason": record.reason,
            "error": summarize_error(record) if record.error else None,
            "result": f"not stored: {result_error}"
            if result_error
            else bytes_to_text(record.result),
            "unique key": record.options.described_key,
            "tenant": record.options.tenant,
            "correlation id": record.options.correlation_id,
            "flow": record.options.flow,
            "group": record.options.group or None,
            "tags": ", ".join(record.options.tags) or None,
        }
    )


def print_whole_record(record: JobRecord, steps: int | str | None = None) -> None:
    """Print all fields, including the payload and the error history. `steps`: how many steps it
    has, if it is a durable run.
    """
    print_record(record, steps)
    if record.payload is not None:
        click.echo(f"\npayload, {len(record.payload)} bytes:")
        click.echo(escape_lines(bytes_to_text(record.payload) or ""))
    for header, value in record.options.headers.items():
        click.echo(f"header  {escape_controls(header)}: {escape_controls(value)}")
    print_attempts(record)
    for error in record.history:
        click.echo(
            f"\nattempt {error.attempt}, {error.kind}, {format_time(error.at)}: "
            f"{escape_controls(error.type)}: {escape_controls(error.message)}"
        )
        if error.traceback:
            click.echo(escape_lines(error.traceback.rstrip()))


def print_attempts(record: JobRecord) -> None:
    """Print one line for each attempt, if there was one."""
    attempts = record.attempts
    if not attempts:
        return
    click.echo("\nattempts:")
    print_table(
        ("attempt", "outcome", "started", "took", "host", "session"),
        [
            (
                attempt.number,
                attempt.outcome,
                format_time(attempt.started_at),
                format_duration(attempt.ended_at - attempt.started_at)
                if attempt.ended_at is not None and attempt.started_at is not None
                else None,
                attempt.host or None,
                attempt.session or None,
            )
            for attempt in attempts
        ],
        "",
    )
