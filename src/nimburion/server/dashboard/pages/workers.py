"""The page of workers: hosts and their processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from nimburion.core.diagnosis.unserved import is_live
from nimburion.core.session import SessionInfo, WorkerCommand
from nimburion.server.api import workers as worker_operations
from nimburion.server.api.operation import NoQuery
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)
from nimburion.server.dashboard.readings import UPDATE_AGE

MAX_WORKERS = 500
"""The maximum number of workers that the page shows; those with problems come first."""
LOW_MARGIN = 5.0
"""Seconds of lease margin below which a worker is close to losing its jobs."""

WorkerState = Literal["live", "quiet", "stopping", "expired", "left"]


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process."""

    state: WorkerState
    """`left`: the worker has ended, and some of its jobs still run."""
    session: SessionInfo
    lags: bool
    """Whether its event loop was late for longer than `jobs.loop_lag_limit` of this server."""
    has_low_margin: bool
    """Whether its leases were close to their end."""


class HostRow(msgspec.Struct, frozen=True, kw_only=True):
    """The workers of one host."""

    host: str
    slots: int
    busy: int
    workers: list[WorkerRow]


class UnknownNames(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that does not know jobs which another version on the same queues knows."""

    session: str
    host: str
    pid: int
    version: str
    names: list[str]
    other_versions: list[str]
    """The versions that know them."""


class WorkersData(msgspec.Struct, frozen=True, kw_only=True):
    """All workers by host."""

    hosts: list[HostRow]
    total: int
    live: int
    slots: int
    busy: int
    versions: dict[str, int]
    """The live workers of each version."""
    unknown_names: list[UnknownNames]

    @property
    def workers(self) -> list[WorkerRow]:
        """The workers of all hosts."""
        return [worker for host in self.hosts for worker in host.workers]


async def read_workers(request: PageRequest[NoQuery]) -> WorkersData:
    """Read all sessions."""
    sessions = await request.readings.list_sessions(UPDATE_AGE)
    lag_limit = request.services.config.jobs.loop_lag_limit
    rows = sorted(
        (_make_row(session, lag_limit) for session in sessions),
        key=lambda row: (row.state == "live", row.session.host, row.session.pid),
    )[:MAX_WORKERS]
    by_host: dict[str, list[WorkerRow]] = {}
    for row in sorted(rows, key=lambda row: (row.session.host, row.session.pid, row.session.id)):
        by_host.setdefault(row.session.host, []).append(row)
    hosts = [_make_host(host, workers) for host, workers in by_host.items()]
    live = [session for session in sessions if is_live(session)]
    versions: dict[str, int] = {}
    for session in live:
        version = describe_version(session)
        versions[version] = versions.get(version, 0) + 1
    return WorkersData(
        hosts=hosts,
        total=len(sessions),
        live=len(live),
        slots=sum(host.slots for host in hosts),
        busy=sum(host.busy for host in hosts),
        versions=versions,
        unknown_names=find_unknown_names(live),
    )


def describe_version(session: SessionInfo) -> str:
    """Return the version of the application and of nimburion, as far as the worker reported it.

    >>> describe_version(
    ...     SessionInfo(
    ...         id="a",
    ...         host="",
    ...         pid=1,
    ...         owner="",
    ...         queues=(),
    ...         names=(),
    ...         opened_at=0.0,
    ...         expires_in=1.0,
    ...         left=False,
    ...         running=0,
    ...     )
    ... )
    'unknown'
    """
    vitals = session.vitals
    parts = (
        [vitals.code_version, vitals.version and f"nimburion {vitals.version}"] if vitals else []
    )
    return ", ".join(filter(None, parts)) or "unknown"


def find_unknown_names(live: Sequence[SessionInfo]) -> list[UnknownNames]:
    """Return the workers that do not know all jobs of their queues, where versions differ.

    Workers of the same application with the same queues are compared. During a deployment this is
    normal; afterwards, jobs wait for the workers that know them.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[SessionInfo]] = {}
    for session in live:
        groups.setdefault((session.owner, tuple(sorted(session.queues))), []).append(session)
    return [
        UnknownNames(
            session=session.id,
            host=session.host,
            pid=session.pid,
            version=describe_version(session),
            names=sorted(missing),
            other_versions=sorted(
                {describe_version(other) for other in group if missing & set(other.names)}
            ),
        )
        for group in groups.values()
        for known in (_join_names(group),)
        if len({describe_version(session) for session in group}) > 1
        for session in group
        if (missing := known - set(session.names))
    ]


def _join_names(sessions: Iterable[SessionInfo]) -> set[str]:
    return {name for session in sessions for name in session.names}


def _make_row(session: SessionInfo, lag_limit: float) -> WorkerRow:
    vitals = session.vitals
    margin = None if vitals is None else vitals.lease_margin
    return WorkerRow(
        state=_choose_state(session),
        session=session,
        lags=vitals is not None and vitals.loop_lag > lag_limit,
        has_low_margin=margin is not None and margin < LOW_MARGIN,
    )


def _choose_state(session: SessionInfo) -> WorkerState:
    if session.left:
        return "left"
    if session.expires_in <= 0:
        return "expired"
    if session.command is WorkerCommand.STOP:
        return "stopping"
    return "live" if session.command is None else "quiet"


def _make_host(host: str, workers: list[WorkerRow]) -> HostRow:
    vitals = [row.session.vitals for row in workers if row.session.vitals is not None]
    return HostRow(
        host=host,
        slots=sum(one.slots for one in vitals),
        busy=sum(one.busy for one in vitals),
        workers=workers,
    )


WORKERS = DashboardPage(
    path="/workers",
    title="Workers",
    section="Workers",
    read=read_workers,
    template="workers.html",
    tables=("workers",),
)

_COMMAND = find_operation(worker_operations.OPERATIONS, "command_worker")

ACTIONS = tuple(
    DashboardAction(
        path=f"/workers/{{id}}/{command}",
        operation=_COMMAND,
        fixed={"command": command},
        done=done,
        back="/workers",
    )
    for command, done in (
        ("quiet", "The worker starts no further job."),
        ("resume", "The worker starts jobs again."),
        ("stop", "The worker stops: running jobs get their time to finish."),
    )
)
