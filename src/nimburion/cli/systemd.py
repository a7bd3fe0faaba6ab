"""Messages of a service to systemd: readiness, status and watchdog, as `sd_notify(3)` defines them.

systemd passes the address of its socket in `NOTIFY_SOCKET`, and the watchdog timeout in
`WATCHDOG_USEC`. Without these variables nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

from nimburion.core.service import Service
from nimburion.core.timing.clock import Clock
from nimburion.jobs import Health

SYSTEMD_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""The environment variables by which systemd speaks to one process, and not to its children."""

_STATUS_INTERVAL = 10.0
"""Seconds between two messages without a watchdog."""
_MESSAGES_PER_TIMEOUT = 4
"""Messages within the watchdog timeout: some may be skipped before systemd acts."""
_SEND_TIMEOUT = 1.0
"""Seconds that a message may wait for systemd to read earlier ones."""
_STOP_MARGIN = 10.0
"""Seconds beyond the grace time that a stopping worker asks for: to send its last settlements,
close its session and stop its threads.
"""


def notify_systemd(*assignments: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send assignments such as `READY=1` to systemd, in one message.

    Does nothing without `NOTIFY_SOCKET`, and ignores a socket that does not answer.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # a name in the abstract namespace, which begins with NUL
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.settimeout(_SEND_TIMEOUT)
        sender.sendto("\n".join(assignments).encode(), address)


def read_watchdog_timeout(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the watchdog timeout in seconds; None if systemd expects no message of this process.

    >>> read_watchdog_timeout({"WATCHDOG_USEC": "60000000"})
    60.0
    """
    microseconds = environment.get("WATCHDOG_USEC", "")
    process = environment.get("WATCHDOG_PID") or str(os.getpid())
    if process != str(os.getpid()) or not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6


def has_progress(health: Health, timeout: float) -> bool:
    """Return whether a worker makes progress, or does not because its backend is known to be down.

    An exchange that is due must have been made within `timeout` seconds. If every slot is busy, no
    exchange is due.
    """
    if health.state == "stopping" or health.error is not None:
        return True
    since = health.seconds_since_exchange
    return health.state not in {"stopped", "open"} and (since is None or since < timeout)


class SystemdNotifier(Service):
    """Reports the state of a worker to systemd, from the event loop of the worker.

    `check_progress` decides about the watchdog message; its argument is the watchdog timeout in
    seconds. Without it, the health of the one worker decides.

    A processor starts it after the worker has opened its session, and stops it when the worker
    takes no more jobs. A blocked event loop sends nothing, so the watchdog of systemd acts.
    """

    def __init__(
        self,
        clock: Clock,
        read_health: Callable[[], Health],
        grace: float,
        environment: Mapping[str, str] = os.environ,
        *,
        check_progress: Callable[[float], bool] | None = None,
    ) -> None:
        super().__init__(clock)
        self._read_health = read_health
        self._grace = grace
        self._environment = environment
        self._timeout = read_watchdog_timeout(environment)
        self._check_progress = check_progress or (
            lambda timeout: has_progress(read_health(), timeout)
        )

    async def run(self) -> None:
        """Send READY, then the status and the watchdog message, and at the end STOPPING."""
        timeout = self._timeout
        interval = _STATUS_INTERVAL if timeout is None else timeout / _MESSAGES_PER_TIMEOUT
        self._send("READY=1")
        while not self.stopping.is_set():
            health = self._read_health()
            watchdog = timeout is not None and self._check_progress(timeout)
            self._send(f"STATUS={describe_health(health)}", *(["WATCHDOG=1"] if watchdog else []))
            await self.pause(interval)
        extension = round((self._grace + _STOP_MARGIN) * 1e6)
        self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={extension}", "STATUS=stopping")

    def _send(self, *assignments: str) -> None:
        notify_systemd(*assignments, environment=self._environment)


def describe_health(health: Health) -> str:
    """Return the state of a worker on one line, as `systemctl status` shows it."""
    text = f"{health.state}; {health.running} running, {health.prefetched} prefetched"
    return f"{text}; {health.error}" if health.error else text
