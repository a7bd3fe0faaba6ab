"""Workers: list the fleet, and send commands to one of them."""

from __future__ import annotations

import msgspec

from nimburion.actions.workers import Command, send_command
from nimburion.core.diagnosis.unserved import is_live
from nimburion.core.session import SessionInfo
from nimburion.server.api.names import PageQuery, ReasonText
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation


class WorkerSummary(SessionInfo, frozen=True, kw_only=True):
    """A worker, as its session in the backend describes it."""

    live: bool
    """Whether the worker takes jobs, as far as the backend knows."""


class WorkerPage(msgspec.Struct, frozen=True):
    """A page of workers, oldest session first."""

    workers: list[WorkerSummary]
    next: str | None


class CommandBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command to a worker."""

    command: Command
    """`quiet`: start no further job. `resume`: start jobs again. `stop`: stop as on SIGTERM."""
    reason: ReasonText = ""
    """Why, for the audit log."""


class SentCommand(msgspec.Struct, frozen=True):
    """A command that the worker gets with its next heartbeat; it is notified to send one."""

    worker: str
    command: str


async def list_workers(request: ApiRequest[PageQuery, NoBody]) -> WorkerPage:
    """List the workers whose sessions have not ended."""
    after, limit = request.query.after, request.query.limit
    found = sorted(await request.services.backend.reads.list_sessions(), key=_make_cursor)
    rest = [session for session in found if after is None or _make_cursor(session) > after]
    page = [
        WorkerSummary(**msgspec.structs.asdict(session), live=is_live(session))
        for session in rest[:limit]
    ]
    return WorkerPage(page, _make_cursor(rest[limit - 1]) if len(rest) > limit else None)


async def command_worker(request: ApiRequest[NoQuery, CommandBody]) -> SentCommand:
    """Tell a worker to start no further job, to start jobs again, or to stop."""
    session, command = request.path["id"], request.body.command
    await send_command(request.actions.workers, session, command, reason=request.body.reason)
    return SentCommand(session, command)


def _make_cursor(session: SessionInfo) -> str:
    """Return a text that sorts as the age of the session does."""
    return f"{session.opened_at:020.6f}-{session.id}"


OPERATIONS = (
    Operation(
        method="GET",
        path="/workers",
        handle=list_workers,
        query=PageQuery,
        answer=WorkerPage,
    ),
    Operation(
        method="POST",
        path="/workers/{id}/command",
        handle=command_worker,
        action="worker.stop",
        body=CommandBody,
        answer=SentCommand,
    ),
)
