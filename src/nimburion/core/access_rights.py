"""The rights of callers of the management server, and when it may run without tokens."""

from __future__ import annotations

import ipaddress
from collections.abc import Container
from typing import get_args

from nimburion.core.errors import MissingRight
from nimburion.core.settings import Right, ServerSettings

RIGHTS: tuple[str, ...] = get_args(Right)
"""What a caller may do. No right includes another.

- `read`: see jobs, queues, workers, schedules and checks, without the data of jobs.
- `payloads`: see the data of jobs: payloads, results, headers, unique keys and tracebacks.
- `stacks`: see the stacks of running handlers: files, lines of code and functions, and no values.
- `operate`: change what exists, in a way that can be undone: pause, cancel, replay, run a schedule.
- `admin`: enqueue jobs, add schedules, and delete for good.
"""


def require_right(name: str, rights: Container[str], right: str) -> None:
    """Raise `MissingRight` unless the right is among those of the caller with this name."""
    if right not in rights:
        raise MissingRight(name, right)


def is_loopback(host: str) -> bool:
    """Return whether only this host can reach a server at this address.

    A name other than `localhost` is not resolved, and counts as reachable from elsewhere.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.com")]
    [True, True, True, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def describe_exposure(settings: ServerSettings) -> str | None:
    """Return the problem of a server that everybody could use from elsewhere, and its solution;
    None if there is no problem.
    """
    if settings.tokens or not settings.enabled or is_loopback(settings.host):
        return None
    return (
        f"{settings.host} can be reached from other hosts, and there is no token: anyone could run "
        "and delete jobs. Add under server: `tokens: [{name: ops, rights: [read, operate], "
        "variable: OPS_TOKEN}]`, or set `host: 127.0.0.1`"
    )
