"""One worker process, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

import msgspec

from nimburion.cli.supervisor.messages import (
    ChannelsServed,
    ChannelsWanted,
    FinishRequest,
    ListenerState,
    ListenRequest,
    Notification,
    ReportRequest,
    ToWorker,
    WorkerLoaded,
    WorkerOptions,
    WorkerReport,
    WorkerStarted,
    WorkerStopping,
    decode_for_supervisor,
    encode_message,
)
from nimburion.cli.supervisor.reaper import Reaper
from nimburion.cli.systemd import SYSTEMD_VARIABLES, has_progress
from nimburion.core.frames import FrameProtocol, UnreadableFrame
from nimburion.core.settings import Settings
from nimburion.jobs import Health
from nimburion.jobs.worker.children.errors import describe_exit
from nimburion.jobs.worker.children.memory import read_memory

_log = logging.getLogger("nimburion.supervisor")

_PROGRAM = "nimburion.cli.supervisor"
_LAST_MESSAGES_TIMEOUT = 0.5
"""Seconds after the end of a process in which its last messages are read.

A process that a handler has forked may keep the connection open for longer.
"""


ListenerMessage = ChannelsWanted | ChannelsServed | Notification
"""A message about the listener that the workers of a supervisor share."""


class WorkerProcess:
    """A worker process: its start, its messages and its end."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, reaper: Reaper, change_count: int = 0
    ) -> None:
        self._loop = loop
        self._reaper = reaper
        self._channel: asyncio.Transport | None = None
        self._disconnected = asyncio.Event()
        self._answered = asyncio.Event()
        self.change_count: int = change_count
        """How often a source file had changed when it was started."""
        self.id: int = 0
        """The id of the process; 0 before it was started."""
        self.started_at: float = loop.time()
        self.grace: float = Settings().grace
        """Its grace time in seconds, as far as known."""
        self.backend: str = ""
        """The description of its backend, once it is loaded."""
        self.report: WorkerReport | None = None
        """Its last report."""
        self.channels: frozenset[str] = frozenset()
        """The channels of the backend whose notifications it wants."""
        self.on_listener_message: Callable[[WorkerProcess, ListenerMessage], None] = (
            lambda _process, _message: None
        )
        """Called with each message about the listener that the workers share."""
        self._asked_at: float | None = None
        """When the first report was requested that has not come yet."""
        self.exit_code: int | None = None
        """Its exit code, or minus the signal that killed it; None while it runs."""
        self.tasks: set[asyncio.Task[None]] = set()
        """Tasks that wait for its events."""
        self.loaded: asyncio.Event = asyncio.Event()
        self.started: asyncio.Event = asyncio.Event()
        self.stopping: asyncio.Event = asyncio.Event()
        """Set when it takes no more jobs."""
        self.ended: asyncio.Event = asyncio.Event()
        """Set when it has ended and its last message was read."""

    async def start(self, options: WorkerOptions, environment: Mapping[str, str]) -> None:
        """Start the process. Raises `OSError`."""
        own, other = socket.socketpair()
        try:
            self._channel, _ = await self._loop.create_unix_connection(
                lambda: FrameProtocol(self.receive, self.note_disconnect), sock=own
            )
            self._spawn(other, options.target, environment)
        except BaseException:
            own.close()
            raise
        finally:
            other.close()
        self._send(options)

    def _spawn(self, other: socket.socket, target: str, environment: Mapping[str, str]) -> None:
        other.set_inheritable(True)
        self.id = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", _PROGRAM, str(other.fileno()), target],
            {name: text for name, text in environment.items() if name not in SYSTEMD_VARIABLES},
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setpgroup=0,  # so that Ctrl-C reaches the supervisor alone
        )
        self._reaper.watch(self.id, self._note_exit)

    def note_failed_start(self) -> None:
        """Note that the operating system has not started the process."""
        self.exit_code = 1
        self._finish()

    # State

    @property
    def age(self) -> float:
        """Seconds since the process was started."""
        return self._loop.time() - self.started_at

    @property
    def health(self) -> Health | None:
        """Its health, by its last report."""
        return None if self.report is None else self.report.health

    @property
    def lag(self) -> float:
        """Seconds since the first request for a report that it has not answered; 0: none."""
        return 0.0 if self._asked_at is None else self._loop.time() - self._asked_at

    def has_progress(self, timeout: float) -> bool:
        """Return whether it has answered, and its worker has made progress, within `timeout`."""
        if self.health is None:
            return self.age < timeout
        return self.lag < timeout and has_progress(self.health, timeout)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self.exit_code is not None

    def read_memory(self) -> int:
        """Return its resident memory in bytes; 0 if it cannot be read."""
        return read_memory(self.id) or 0

    def describe_end(self) -> str:
        """Return how the process has ended, as the end of a sentence."""
        return describe_exit(self.exit_code)

    # Requests

    async def request_report(self, timeout: float) -> None:
        """Let the worker send a report, and wait for it up to `timeout` seconds."""
        self._answered.clear()
        self._asked_at = self._asked_at or self._loop.time()
        self._send(ReportRequest())
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._answered.wait()

    def finish(self) -> None:
        """Let the worker take no more jobs, and end when the running ones have ended."""
        self.stopping.set()
        self._send(FinishRequest())

    def listen(self, channels: Collection[str] | None) -> None:
        """Let the worker listen on these channels for others; None: for none any more."""
        self._send(ListenRequest(None if channels is None else sorted(channels)))

    def note_listener(self, *, is_listening: bool) -> None:
        """Tell the worker whether another one listens on its channels."""
        self._send(ListenerState(is_listening))

    def notify(self, notification: Notification) -> None:
        """Pass a notification on. Drop it if the worker does not read: it polls."""
        if self._channel is not None and self._channel.get_write_buffer_size() == 0:
            self._send(notification)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process. Does nothing if it has ended."""
        if self.exit_code is None and self.id:
            with suppress(ProcessLookupError):
                os.kill(self.id, number)

    def kill(self) -> None:
        """Kill the process, and what its handlers have started in its process group."""
        if self.exit_code is None and self.id:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.id, signal.SIGKILL)

    def _send(self, message: ToWorker) -> None:
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(encode_message(message))

    # Events

    def receive(self, body: bytes) -> None:
        """Note a message of the worker. Raises `msgspec.MsgspecError`."""
        message = decode_for_supervisor(body)
        match message:
            case WorkerLoaded():
                self.backend, self.grace = message.backend, message.grace
                self.loaded.set()
            case WorkerStarted():
                self.started.set()
            case WorkerStopping():
                self.stopping.set()
            case WorkerReport():
                self.report, self._asked_at = message, None
                if message.health.state == "stopping":
                    self.stopping.set()
                self._answered.set()
            case ChannelsWanted() | ChannelsServed() | Notification():
                self.on_listener_message(self, message)

    def note_disconnect(self, error: Exception | None) -> None:
        """Note that the worker sends no more messages, because of `error` or its end."""
        if isinstance(error, UnreadableFrame | msgspec.MsgspecError):
            _log.error(
                "worker process %d: its channel is damaged (%s); it is killed", self.id, error
            )
            self.kill()
        self._disconnected.set()
        if self.exit_code is not None:
            self._finish()

    def _note_exit(self, code: int) -> None:
        self.exit_code = code
        if code < 0:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.id, signal.SIGKILL)  # what its handlers have started
        if self._disconnected.is_set():
            self._finish()
        else:
            self._loop.call_later(_LAST_MESSAGES_TIMEOUT, self._finish)

    def _finish(self) -> None:
        if self._channel is not None:
            self._channel.abort()
        self._answered.set()
        self.stopping.set()
        self.ended.set()
