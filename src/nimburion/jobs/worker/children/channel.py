"""The child's ends of the two sockets to its parent.

The main thread waits for calls on a socket of their own, so that no other thread has to wake it.
A second thread reads what concerns the running call. It also notices that the parent is gone, and
then ends the process. A handler cannot delay it, except by C code that holds the interpreter.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

import msgspec

from nimburion.core import errors
from nimburion.core.errors import BackendError, BackendUnavailable
from nimburion.core.frames import FrameSplitter
from nimburion.core.job import Enqueued, NewJob
from nimburion.jobs.worker.children.messages import (
    Call,
    Enqueue,
    EnqueueReply,
    ProgressMade,
    ProgressReceived,
    ShowStack,
    StackShown,
    Start,
    ToHandler,
    ToMainThread,
    ToParent,
    encode_message,
)

EXIT_WITHOUT_PARENT = 75
"""The exit code of a child whose parent is gone."""

_READ_SIZE = 65_536

_Reply = Callable[[EnqueueReply], None]


class ParentChannel:
    """Receives calls, sends messages to the parent, and receives its messages on a thread."""

    def __init__(self, calls_descriptor: int, messages_descriptor: int) -> None:
        self._call_reader = _CallReader(_open_socket(calls_descriptor))
        self._socket = _open_socket(messages_descriptor)
        self._lock = threading.Lock()
        self._is_forked = False
        self._numbers = count(1)
        self._waiting: dict[int, _Reply] = {}
        self._progress = _ProgressSender(self.send)
        self.read_stack: Callable[[], str] = lambda: ""
        """Returns the stack of the running handler. Called on the second thread."""
        os.register_at_fork(after_in_child=self._close_after_fork)
        threading.Thread(target=self._read, name="nimburion-parent", daemon=True).start()

    def receive_start(self) -> Start:
        """Wait for the first message. Ends the process if the parent is gone."""
        message = self._call_reader.receive()
        if not isinstance(message, Start):
            raise TypeError(f"the parent sent {message!r} before Start")
        return message

    def receive_call(self) -> Call | None:
        """Wait for the next call; None: end. Only for the main thread.

        Ends the process if the parent is gone.
        """
        message = self._call_reader.receive()
        return message if isinstance(message, Call) else None

    def send(self, message: ToParent) -> None:
        """Send a message. Safe from any thread. Ends the process if the parent is gone."""
        if self._is_forked:
            return
        data = encode_message(message)
        try:
            with self._lock:
                self._socket.sendall(data)
        except OSError:
            os._exit(EXIT_WITHOUT_PARENT)

    def report_progress(self, fraction: float, message: str) -> None:
        """Send the progress of the running call, or soon if the last one is under way."""
        self._progress.report(ProgressMade(fraction, message))

    def flush_progress(self) -> None:
        """Send the latest progress now, before the call is answered."""
        self._progress.flush()

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        """Store jobs through the parent. Raises the error of its backend."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[EnqueueReply] = loop.create_future()

        def settle(reply: EnqueueReply) -> None:
            if not future.done():
                future.set_result(reply)

        number = next(self._numbers)
        self._waiting[number] = lambda reply: _call_soon(loop, settle, reply)
        try:
            self.send(Enqueue(number, list(jobs)))
            reply = await future
        finally:
            self._waiting.pop(number, None)
        if reply.error_type:
            raise _make_error(reply)
        return reply.results

    def _read(self) -> None:
        decode = msgspec.msgpack.Decoder(ToHandler).decode
        splitter = FrameSplitter()
        try:
            while data := self._socket.recv(_READ_SIZE):
                for body in splitter.feed(data):
                    self._receive(decode(body))
        finally:
            os._exit(EXIT_WITHOUT_PARENT)

    def _receive(self, message: ToHandler) -> None:
        match message:
            case EnqueueReply():
                settle = self._waiting.get(message.number)
                if settle is not None:
                    settle(message)
            case ProgressReceived():
                self._progress.note_receipt()
            case ShowStack():
                self.send(StackShown(self.read_stack()))

    def _close_after_fork(self) -> None:
        """Close the sockets in a process that the handler forked: it must send no messages."""
        self._is_forked = True
        self._socket.close()
        self._call_reader.close()


class _CallReader:
    """Reads the messages for the main thread, one at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._splitter = FrameSplitter()
        self._decoder: msgspec.msgpack.Decoder[ToMainThread] = msgspec.msgpack.Decoder(ToMainThread)
        self._received: deque[bytes] = deque()

    def receive(self) -> ToMainThread:
        while not self._received:
            try:
                data = self._socket.recv(_READ_SIZE)
            except OSError:  # a handler may have closed the descriptor
                data = b""
            if not data:
                os._exit(EXIT_WITHOUT_PARENT)
            self._received.extend(self._splitter.feed(data))
        return self._decoder.decode(self._received.popleft())

    def close(self) -> None:
        self._socket.close()


def _open_socket(descriptor: int) -> socket.socket:
    """Return the socket of an inherited descriptor, which programs of handlers do not inherit."""
    os.set_inheritable(descriptor, False)  # noqa: FBT003 (of the standard library)
    return socket.socket(fileno=descriptor)


class _ProgressSender:
    """Sends at most one progress report until the parent has taken it; then the latest one.

    It sends under its lock: a report that another thread sends must not follow the end of the call.
    """

    def __init__(self, send: Callable[[ToParent], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._is_under_way = False
        self._latest: ProgressMade | None = None

    def report(self, progress: ProgressMade) -> None:
        with self._lock:
            if self._is_under_way:
                self._latest = progress
                return
            self._is_under_way = True
            self._send(progress)

    def note_receipt(self) -> None:
        with self._lock:
            latest, self._latest = self._latest, None
            self._is_under_way = latest is not None
            if latest is not None:
                self._send(latest)

    def flush(self) -> None:
        with self._lock:
            latest, self._latest = self._latest, None
            if latest is not None:
                self._send(latest)


def _call_soon(
    loop: asyncio.AbstractEventLoop, settle: Callable[[EnqueueReply], None], reply: EnqueueReply
) -> None:
    try:
        loop.call_soon_threadsafe(settle, reply)
    except RuntimeError:  # the loop of the call is closed: no task awaits the reply
        return


def _make_error(reply: EnqueueReply) -> BackendError:
    if reply.error_type == "BackendUnavailable":
        return BackendUnavailable(reply.error, outcome=reply.outcome)
    kind = getattr(errors, reply.error_type, BackendError)
    plain = isinstance(kind, type) and issubclass(kind, BackendError)
    return kind(reply.error) if plain else BackendError(reply.error)
