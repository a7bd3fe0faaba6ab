"""The connection of a worker process to its supervisor."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable

from nimburion.cli.supervisor.messages import (
    ToSupervisor,
    ToWorker,
    WorkerOptions,
    decode_for_worker,
    encode_message,
)
from nimburion.core.frames import FrameSplitter
from nimburion.jobs.worker.children.channel import EXIT_WITHOUT_PARENT

_log = logging.getLogger("nimburion.worker")

_READ_SIZE = 65_536
_LONGEST_WAIT_FOR_THREAD = 0.1
"""Seconds. Another thread sends for less, unless the supervisor does not read."""
_GRACE_WITHOUT_SUPERVISOR = 3.0
"""Seconds that handlers may still run when the supervisor has ended."""
_END_WITHOUT_SUPERVISOR = 8.0
"""Seconds after which the process ends in any case when the supervisor has ended."""


class SupervisorChannel:
    """Receives messages of the supervisor on a thread, and ends the process when it vanishes."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 (of the standard library)
        self._socket = socket.socket(fileno=descriptor)
        self._splitter = FrameSplitter()
        self._lock = threading.Lock()
        self._unsent = b""
        """The rest of a message that was sent in part. It precedes the next message."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receive: Callable[[ToWorker], None] = lambda _: None
        self._never = threading.Event()

    def receive_options(self) -> WorkerOptions:
        """Return the first message, then start to receive the others on a thread."""
        bodies: list[bytes] = []
        while not bodies:
            data = self._socket.recv(_READ_SIZE)
            if not data:
                os._exit(EXIT_WITHOUT_PARENT)
            bodies = self._splitter.feed(data)
        options = decode_for_worker(bodies[0])
        assert isinstance(options, WorkerOptions)
        threading.Thread(target=self._read, name="nimburion-supervisor", daemon=True).start()
        return options

    def attach(self, loop: asyncio.AbstractEventLoop, receive: Callable[[ToWorker], None]) -> None:
        """Call `receive` on this loop for each message from now on."""
        self._receive = receive
        self._loop = loop

    def send(self, message: ToSupervisor) -> None:
        """Send a message. Safe from any thread. Does nothing if the supervisor has ended."""
        data = encode_message(message)
        try:
            with self._lock:
                unsent, self._unsent = self._unsent, b""
                self._socket.sendall(unsent + data)
        except OSError:
            return  # the thread that reads ends the process

    def send_or_drop(self, message: ToSupervisor) -> None:
        """Send a message, or drop it if the supervisor does not read.

        Waits 0.1 s at most, while another thread sends. If only a part can be sent, the rest is
        sent before the next message.
        """
        if not self._lock.acquire(timeout=_LONGEST_WAIT_FOR_THREAD):
            return
        try:
            if self._unsent:
                self._unsent = self._send_part(self._unsent)
            if not self._unsent:
                self._unsent = self._send_part(encode_message(message))
        except OSError:  # also if the buffer is full
            return
        finally:
            self._lock.release()

    def _send_part(self, data: bytes) -> bytes:
        """Send what the buffer of the socket takes at once, and return the rest."""
        return data[self._socket.send(data, socket.MSG_DONTWAIT) :]

    def _read(self) -> None:
        try:
            while data := self._socket.recv(_READ_SIZE):
                for body in self._splitter.feed(data):
                    self._pass_on(decode_for_worker(body))
        except OSError:  # reset: the supervisor was killed before it had read everything
            pass
        finally:
            self._end_process()

    def _pass_on(self, message: ToWorker) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._receive, message)
        except RuntimeError:  # the loop is closed: the process is about to end
            return

    def _end_process(self) -> None:
        """Stop as on SIGTERM, with less time. Without its supervisor, nothing restarts or stops
        this process any more.
        """
        # A thread in C watches the time: code that holds the interpreter lock does not stop it.
        faulthandler.dump_traceback_later(_END_WITHOUT_SUPERVISOR, file=2, exit=True)
        if self._loop is None:
            os._exit(EXIT_WITHOUT_PARENT)
        _log.error(
            "the supervisor has ended; this worker stops within %.0f s", _END_WITHOUT_SUPERVISOR
        )
        # Not `os.kill`, which would count as a signal that a handler sends.
        signal.raise_signal(signal.SIGTERM)
        self._never.wait(_GRACE_WITHOUT_SUPERVISOR)
        signal.raise_signal(signal.SIGTERM)
