"""Who acts, with which rights, and how an action is recorded."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import MappingProxyType

import msgspec

from nimburion.actions.auditing import Change, record_change
from nimburion.core.access_rights import RIGHTS, require_right
from nimburion.core.backend import Backend
from nimburion.core.text.escaping import escape_controls

_MAX_DETAIL_CHARACTERS = 200

RIGHT_BY_ACTION = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("queue.pause", "queue.resume", "queue.pause_all", "queue.resume_all"),
                *("jobs.cancel", "jobs.run_now", "jobs.signal", "dead.replay"),
                *("limit.change", "limit.reset", "tenant.weight"),
                *("worker.quiet", "worker.resume", "worker.stop"),
                *("schedule.pause", "schedule.resume", "schedule.run"),
                *("flows.close", "flows.cancel", "flows.replay"),
                *("operations.start_replay", "operations.start_run_now"),
                *("operations.start_cancel", "operations.cancel"),
            ),
            "operate",
        ),
        **dict.fromkeys(
            (
                *("jobs.enqueue", "dead.purge", "dead.replay_edited"),
                *("schedule.add", "schedule.remove", "operations.start_delete"),
            ),
            "admin",
        ),
        "jobs.stack": "stacks",
    }
)
"""The right that each action needs, by the name that its audit record has."""


class Operator(msgspec.Struct, frozen=True):
    """Who acts. The audit log keeps the name and the origin."""

    name: str
    """The name that the audit log keeps."""
    origin: str = "python"
    """Through what: `cli`, `api`, `dashboard` or `python`."""
    rights: frozenset[str] = frozenset(RIGHTS)
    """Of `read`, `payloads`, `stacks`, `operate` and `admin`; by default all of them."""

    def record(
        self, backend: Backend, action: str, target: str = "", /, **details: object
    ) -> AbstractAsyncContextManager[Change]:
        """Record an action around the block that makes it, see `record_change`.

        Details that are None or empty are left out. Raises `MissingRight` if the operator lacks the
        right; then nothing is recorded.
        """
        require_right(self.name, self.rights, RIGHT_BY_ACTION[action])
        return record_change(
            backend,
            action,
            by=self.name,
            origin=self.origin,
            target=target,
            details={
                name: escape_controls(str(value))[:_MAX_DETAIL_CHARACTERS]
                for name, value in details.items()
                if value is not None and value != ""
            },
        )


class SubjectActions:
    """The actions of one operator on one subject of a backend. The base of all of them."""

    def __init__(self, backend: Backend, operator: Operator) -> None:
        self._backend = backend
        self._operator = operator

    def __repr__(self) -> str:
        kind, backend = type(self).__name__, self._backend.describe()
        return f"<{kind} on {backend} by {self._operator.name}>"


def make_process_operator(origin: str) -> Operator:
    """Return the user of this process as an operator with all rights: `ann@web-1`."""
    # Imported for an action only.
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user id has no name
        user = "?"
    return Operator(f"{user}@{socket.gethostname()}", origin)
