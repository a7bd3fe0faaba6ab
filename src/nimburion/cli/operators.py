"""Who runs the command, and how its changes are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.jobs.auditing import Change


def find_operator() -> str:
    """Return user and host of this process, as `ann@web-1`."""
    # Only for a command that changes something.
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user id has no name
        user = "?"
    return f"{user}@{socket.gethostname()}"


def record_command(
    backend: Backend, action: str, target: str = "", details: Mapping[str, object] | None = None
) -> AbstractAsyncContextManager[Change]:
    """Record a change that this command makes; details that are None are left out."""
    from nimburion.jobs.auditing import record_change

    return record_change(
        backend,
        action,
        by=find_operator(),
        origin="cli",
        target=target,
        details={name: str(value) for name, value in (details or {}).items() if value is not None},
    )
