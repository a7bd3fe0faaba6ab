"""`nimburion workers …`: list workers, and send them commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from nimburion.cli.exit_codes import BadInput
from nimburion.cli.invocation import add_shared_options, current_invocation
from nimburion.cli.listing_groups import listing_group
from nimburion.cli.operators import make_actions
from nimburion.cli.output import format_bytes, format_duration, print_result, print_table
from nimburion.cli.parameters import add_reason_option
from nimburion.core.errors import WorkerNotFound
from nimburion.core.session import SessionInfo
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.actions.workers import Command
    from nimburion.core.backend import Backend


@listing_group
def workers() -> None:
    """List workers; tell one to start no further job, or to stop."""


@workers.command("list")
@add_shared_options
def list_workers() -> None:
    """List the sessions of workers, oldest first.

    LEASE is the time until the session expires, if no heartbeat comes. LAG is how late the event
    loop of the worker was, at worst, since its last heartbeat.
    """
    sessions = current_invocation().run(lambda backend: backend.reads.list_sessions())
    print_result(
        [msgspec.to_builtins(session) for session in sessions], lambda: print_sessions(sessions)
    )


def print_sessions(sessions: list[SessionInfo]) -> None:
    """Print one line per session."""
    print_table(
        ("id", "host", "process", "state", "busy", "held", "lease", "lag", "memory", "queues"),
        [
            (
                session.id,
                session.host,
                session.pid,
                describe_state(session),
                describe_slots(session),
                session.running,
                format_duration(session.expires_in) if session.expires_in > 0 else "expired",
                format_duration(session.vitals.loop_lag) if session.vitals else None,
                format_bytes(session.vitals.rss) if session.vitals else None,
                ",".join(session.queues),
            )
            for session in sessions
        ],
        "no worker is running",
    )


def describe_state(session: SessionInfo) -> str:
    """Return the state of a worker in one word."""
    if session.left:
        return "left"
    if session.expires_in <= 0:
        return "expired"
    if session.command is not None:
        return session.command.value
    return "live"


def describe_slots(session: SessionInfo) -> str | None:
    """Return the busy slots and all slots, as `3/10`."""
    vitals = session.vitals
    return None if vitals is None else f"{vitals.busy}/{vitals.slots}"


@workers.command("quiet")
@click.argument("session", metavar="ID")
@add_reason_option
@add_shared_options
def quiet(session: str, reason: str) -> None:
    """Tell a worker to start no further job. Running jobs continue."""
    send(session, "quiet", reason)


@workers.command("resume")
@click.argument("session", metavar="ID")
@add_reason_option
@add_shared_options
def resume(session: str, reason: str) -> None:
    """Let a quiet worker start jobs again."""
    send(session, "resume", reason)


@workers.command("stop")
@click.argument("session", metavar="ID")
@add_reason_option
@add_shared_options
def stop(session: str, reason: str) -> None:
    """Tell a worker to stop, as SIGTERM does: running jobs get their time to finish."""
    send(session, "stop", reason)


def send(text: str, command: Command, reason: str) -> None:
    """Send a command to the worker that `text` names, and say when it takes effect."""
    session = current_invocation().run(
        lambda backend: find_and_send(backend, text, command, reason)
    )
    sent = "was sent before" if session.command == command else "is sent"
    print_result(
        {"session": session.id, "command": command},
        lambda: click.echo(
            f"{escape_controls(session.id)}: {command} {sent}; the worker gets it with its next "
            "heartbeat"
        ),
    )


async def find_and_send(backend: Backend, text: str, command: Command, reason: str) -> SessionInfo:
    """Send a command. Return the session as it was before.

    Raises `WorkerNotFound` if no session has this id, prefix or suffix, `BadInput` if several have.
    """
    from nimburion.actions.workers import send_command

    sessions = await backend.reads.list_sessions()
    exact = [session for session in sessions if session.id == text]
    found = exact or [s for s in sessions if s.id.startswith(text) or s.id.endswith(text)]
    if len(found) > 1:
        raise BadInput(f"{text!r} matches {len(found)} workers: give more characters")
    if not found:
        raise WorkerNotFound(text)
    await send_command(make_actions(backend).workers, found[0].id, command, reason=reason)
    return found[0]
