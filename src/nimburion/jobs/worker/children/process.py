"""One child process, as the worker that started it sees it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, cast

import msgspec

from nimburion.core.errors import BackendUnavailable
from nimburion.core.frames import FrameProtocol, UnreadableFrame
from nimburion.core.job import Enqueued, NewJob
from nimburion.jobs.worker.attempt.reporter import make_extra
from nimburion.jobs.worker.children.errors import ChildDied, ChildNotStarted, describe_exit
from nimburion.jobs.worker.children.guard import KILL
from nimburion.jobs.worker.children.log_frames import log_record
from nimburion.jobs.worker.children.memory import (
    CHECK_INTERVAL,
    EXIT_OVER_MEMORY_LIMIT,
    read_memory,
)
from nimburion.jobs.worker.children.messages import (
    Call,
    Enqueue,
    EnqueueReply,
    Logged,
    NotRun,
    NotStarted,
    ProgressMade,
    ProgressReceived,
    Raised,
    Ready,
    Returned,
    ShowStack,
    StackShown,
    Start,
    Stop,
    ToHandler,
    ToMainThread,
    ToParent,
    UnitsSpent,
    encode_message,
)
from nimburion.jobs.worker.children.output import OutputReader

_log = logging.getLogger("nimburion.worker")
_decode = msgspec.msgpack.Decoder(ToParent).decode

_PROGRAM = "nimburion.jobs.worker.children"
_PROGRESS_INTERVAL = 0.05
"""Seconds between two progress reports of a child."""
_LAST_FRAMES_TIMEOUT = 0.1
"""Seconds after the end of a process in which its last frames are read.

A process that the handler forked may keep the channel open for longer.
"""
_STOP_TIMEOUT = 5.0
"""Seconds that a child has to end after `Stop`."""
_GUARD_TIMEOUT = 3.0
"""Seconds that a guard has to kill a child and its descendants."""

EnqueueJobs = Callable[[Sequence[NewJob]], Awaitable[list[Enqueued]]]
ReceiveReport = Callable[[ProgressMade | UnitsSpent], None]


class Child:
    """A child process with its channel, its output and the call that it runs."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        enqueue_jobs: EnqueueJobs,
        on_end: Callable[[Child], None],
    ) -> None:
        self._loop = loop
        self._enqueue_jobs = enqueue_jobs
        self._on_end = on_end
        self._process: asyncio.SubprocessTransport | None = None
        self._calls: asyncio.Transport
        """What the main thread of the child reads."""
        self._channel: asyncio.Transport
        """What goes both ways while a call runs."""
        self._output: OutputReader
        self._ready: asyncio.Future[Ready] = loop.create_future()
        self._may_have_guard = sys.platform == "linux"
        """Whether a guard may stand between this process and the child. `Ready` says it."""
        self._exited = asyncio.Event()
        self._finished = asyncio.Event()
        """Set when the process has ended and its transports are closed."""
        self._is_disconnected = False
        self._end_timer: asyncio.TimerHandle | None = None
        self._kill_timer: asyncio.TimerHandle | None = None
        self._call: Call | None = None
        self._reply: asyncio.Future[Returned | Raised | NotRun] | None = None
        self._report: ReceiveReport = _ignore_report
        self._stack: asyncio.Future[str] | None = None
        """The stack that somebody waits for."""
        self._memory_timer: asyncio.TimerHandle | None = None
        self._is_over_memory_limit = False
        self._is_stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.started_at: float = loop.time()
        self.call_count: int = 0
        self.is_usable: bool = True
        """Whether it can be given a call: it was not killed and has not ended."""

    # Start and end

    async def start(self, start: Start) -> None:
        """Start the process and wait until it has imported the application.

        Raises `ChildNotStarted`.
        """
        try:
            await self._start_process()
        except OSError as error:
            self._finished.set()
            raise ChildNotStarted(f"a child process cannot be started: {error}") from error
        if not self.is_usable:  # killed while it was being started
            self._kill_all()
        self._send_to_main_thread(start)
        await self._ready

    async def _start_process(self) -> None:
        """Start the process with its channel and its output. After an error, all are closed."""
        with ExitStack() as ends_of_child, ExitStack() as own_ends:
            own_calls, calls = socket.socketpair()
            own, messages = socket.socketpair()
            for end in (own_calls, own):
                own_ends.callback(end.close)
            for end in (calls, messages):
                ends_of_child.callback(end.close)
            output, child_output = os.pipe()
            ends_of_child.callback(os.close, child_output)
            self._output = OutputReader(self._loop, output, self._loop.time, self._describe_job)
            own_ends.callback(self._output.close)
            self._calls, _ = await self._loop.create_unix_connection(
                asyncio.Protocol, sock=own_calls
            )
            own_ends.callback(self._calls.abort)
            self._channel, _ = await self._loop.create_unix_connection(
                lambda: FrameProtocol(self._receive, self._note_disconnect), sock=own
            )
            own_ends.callback(self._channel.abort)
            await self._loop.subprocess_exec(
                lambda: _ExitWatch(self._note_start, self._note_exit),
                sys.executable,
                "-m",
                _PROGRAM,
                str(calls.fileno()),
                str(messages.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=child_output,
                stderr=child_output,
                pass_fds=(calls.fileno(), messages.fileno()),
                start_new_session=True,  # a terminal's signals are for the worker
            )
            own_ends.pop_all()

    @property
    def id(self) -> int:
        """The id of the process; 0 before it exists. Until it is ready: the id of its guard."""
        if self.is_ready and self._ready.exception() is None:
            return self._ready.result().process
        return 0 if self._process is None else self._process.get_pid()

    @property
    def is_ready(self) -> bool:
        """Whether it has imported the application."""
        return self._ready.done()

    @property
    def age(self) -> float:
        """Seconds since the process was started."""
        return self._loop.time() - self.started_at

    def read_memory(self) -> int:
        """Return its resident memory in bytes; 0 if it cannot be read."""
        return read_memory(self.id) or 0

    def kill(self) -> None:
        """Kill the process, and those that its handlers have started."""
        self.is_usable = False
        if not self._exited.is_set():
            self._kill_all()

    async def stop(self) -> None:
        """Let the process end, and kill it if it does not within a few seconds."""
        self.is_usable = False
        self._is_stopping = True
        if not self._exited.is_set():
            self._send_to_main_thread(Stop())
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await self._finished.wait()
        except TimeoutError:
            self.kill()
            await self._finished.wait()

    async def wait_until_finished(self) -> None:
        """Wait until the process has ended and its transports are closed."""
        await self._finished.wait()

    # Calls

    async def run(self, call: Call, report: ReceiveReport) -> Returned | Raised | NotRun:
        """Run one call. Raises `ChildDied`. The process is killed if the caller is cancelled."""
        self._call, self._report = call, report
        reply: asyncio.Future[Returned | Raised | NotRun] = self._loop.create_future()
        self._reply = reply
        self.call_count += 1
        if call.memory_limit is not None:
            self._watch_memory(call.memory_limit)
        self._send_to_main_thread(call)
        try:
            return await reply
        except asyncio.CancelledError:
            self.kill()
            raise
        finally:
            self._end_call()

    async def read_stack(self) -> str:
        """Return the stack of the running handler; empty if the process ends first."""
        if self._is_disconnected:
            return ""
        if self._stack is None or self._stack.done():
            self._stack = self._loop.create_future()
            self._send_to_handler(ShowStack())
        return await asyncio.shield(self._stack)

    def _receive_stack(self, text: str) -> None:
        if self._stack is not None and not self._stack.done():
            self._stack.set_result(text)

    def _end_call(self) -> None:
        self._output.end_job()
        self._call = self._reply = None
        self._report = _ignore_report
        if self._memory_timer is not None:
            self._memory_timer.cancel()
            self._memory_timer = None

    def _watch_memory(self, limit: int) -> None:
        self._memory_timer = self._loop.call_later(2 * CHECK_INTERVAL, self._check_memory, limit)

    def _check_memory(self, limit: int) -> None:
        """Kill a process over its limit if it has not ended by itself: C code may keep its threads
        waiting."""
        if self.read_memory() > limit:
            self._is_over_memory_limit = True
            self.kill()
        else:
            self._watch_memory(limit)

    # Messages

    def _send_to_main_thread(self, message: ToMainThread) -> None:
        self._calls.write(encode_message(message))

    def _send_to_handler(self, message: ToHandler) -> None:
        self._channel.write(encode_message(message))

    def _receive(self, body: bytes) -> None:
        message = _decode(body)
        match message:
            case Returned() | Raised() | NotRun():
                if self._reply is not None and not self._reply.done():
                    self._reply.set_result(message)
            case ProgressMade():
                self._report(message)
                self._loop.call_later(_PROGRESS_INTERVAL, self._acknowledge_progress)
            case UnitsSpent():
                self._report(message)
            case Logged():
                log_record(message, self._describe_job())
            case Enqueue():
                task = self._loop.create_task(self._enqueue(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case StackShown():
                self._receive_stack(message.text)
            case Ready():
                self._note_ready(message)
            case NotStarted():
                self._fail_start(f"{message.reason}\n{message.traceback}")

    def _note_ready(self, message: Ready) -> None:
        self._may_have_guard = message.has_guard
        if not self._ready.done():
            self._ready.set_result(message)

    def _acknowledge_progress(self) -> None:
        if not self._is_disconnected:
            self._send_to_handler(ProgressReceived())

    async def _enqueue(self, message: Enqueue) -> None:
        try:
            reply = EnqueueReply(message.number, await self._enqueue_jobs(message.jobs))
        except Exception as error:  # noqa: BLE001 - the handler in the child gets it
            outcome = error.outcome if isinstance(error, BackendUnavailable) else "unknown"
            reply = EnqueueReply(message.number, [], type(error).__name__, str(error), outcome)
        if not self._is_disconnected:
            self._send_to_handler(reply)

    def _describe_job(self) -> dict[str, Any]:
        return {} if self._call is None else make_extra(self._call.delivery)

    # The end of the process

    def _note_disconnect(self, error: Exception | None) -> None:
        self._is_disconnected = True
        if isinstance(error, UnreadableFrame | msgspec.MsgspecError):
            _log.error(
                "child process %d sent data that cannot be read (%s); killing it", self.id, error
            )
        if self._exited.is_set():
            self._finish()
        elif not self._is_stopping:
            self.kill()

    def _note_start(self, process: asyncio.SubprocessTransport) -> None:
        self._process = process

    def _note_exit(self) -> None:
        self.is_usable = False
        self._exited.set()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_group()  # what its handlers have started, where there is no guard
        if self._is_disconnected:
            self._finish()
        else:
            self._end_timer = self._loop.call_later(_LAST_FRAMES_TIMEOUT, self._finish)

    def _finish(self) -> None:
        """Fail the running call, close everything, and report the end; only once."""
        if self._finished.is_set():
            return
        if self._end_timer is not None:
            self._end_timer.cancel()
        self._fail_start(f"the child process {self.describe_end()}")
        self._receive_stack("")
        self._output.read()
        self._output.close()
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(self._make_error())
        self._calls.abort()
        self._channel.abort()
        if self._process is not None:
            self._process.close()
        self._finished.set()
        self._on_end(self)

    def _make_error(self) -> ChildDied:
        ended_itself = self._read_exit_code() == EXIT_OVER_MEMORY_LIMIT
        has_limit = self._call is not None and self._call.memory_limit is not None
        return ChildDied(
            self.describe_end(),
            "\n".join(self._output.latest_lines),
            over_memory_limit=has_limit and (ended_itself or self._is_over_memory_limit),
        )

    def _fail_start(self, reason: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(ChildNotStarted(reason))

    def describe_end(self) -> str:
        """Return how the process has ended, as the end of a sentence."""
        return describe_exit(self._read_exit_code())

    def _read_exit_code(self) -> int | None:
        return None if self._process is None else self._process.get_returncode()

    def _kill_all(self) -> None:
        """Let the guard kill the child and its descendants. Kill the guard if it does not end.

        Without a guard, the application may handle the signal `KILL`: kill the group at once.
        """
        if self._process is None:
            return
        if not self._may_have_guard:
            self._kill_group()
            return
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self._process.get_pid(), KILL)
        if self._kill_timer is None:
            self._kill_timer = self._loop.call_later(_GUARD_TIMEOUT, self._kill_group)

    def _kill_group(self) -> None:
        """Kill the process that was started, and its group. A child dies with its guard."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.get_pid(), signal.SIGKILL)


class _ExitWatch(asyncio.SubprocessProtocol):
    """Reports the start and the end of a process."""

    def __init__(
        self,
        on_start: Callable[[asyncio.SubprocessTransport], None],
        on_exit: Callable[[], None],
    ) -> None:
        self._on_start = on_start
        self._on_exit = on_exit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._on_start(cast("asyncio.SubprocessTransport", transport))

    def process_exited(self) -> None:
        self._on_exit()


def _ignore_report(_: ProgressMade | UnitsSpent) -> None:
    return
