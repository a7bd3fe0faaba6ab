"""Sessions: the workers of the fleet."""

from __future__ import annotations

import msgspec

from nimburion.core.session import SessionInfo
from nimburion.core.unserved import is_live
from nimburion.server.api.names import PageQuery
from nimburion.server.api.operation import ApiRequest, NoBody, Operation


class SessionSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, as its session in the backend describes it."""

    id: str
    host: str
    pid: int
    owner: str
    """The name of the application."""
    queues: tuple[str, ...]
    names: tuple[str, ...]
    opened_at: float
    """Epoch seconds."""
    expires_in: float
    """Seconds until the session may be rescued; negative when it has expired."""
    left: bool
    running: int
    """The number of jobs that the worker holds."""
    live: bool
    """Whether the worker takes jobs, as far as the backend knows."""


class SessionPage(msgspec.Struct, frozen=True):
    """A page of sessions, oldest first."""

    sessions: list[SessionSummary]
    next: str | None


async def list_sessions(request: ApiRequest[PageQuery, NoBody]) -> SessionPage:
    """List the sessions of workers that have not ended."""
    after, limit = request.query.after, request.query.limit
    found = sorted(await request.services.backend.sessions(), key=_make_cursor)
    rest = [session for session in found if after is None or _make_cursor(session) > after]
    page = [
        SessionSummary(**msgspec.structs.asdict(session), live=is_live(session))
        for session in rest[:limit]
    ]
    return SessionPage(page, _make_cursor(rest[limit - 1]) if len(rest) > limit else None)


def _make_cursor(session: SessionInfo) -> str:
    """Return a text that sorts as the age of the session does."""
    return f"{session.opened_at:020.6f}-{session.id}"


OPERATIONS = (
    Operation(
        method="GET",
        path="/sessions",
        right="read",
        handle=list_sessions,
        query=PageQuery,
        answer=SessionPage,
    ),
)
