"""The program of a child process: import the application, then run one call after another."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, NoReturn, cast

from nimburion.core.backend import Backend
from nimburion.core.errors import DefinitionError, NotSupported
from nimburion.core.events import Events
from nimburion.core.result_errors import encode_result_error
from nimburion.core.settlement import Progressed, Spent
from nimburion.jobs.client.client import Client
from nimburion.jobs.declaration.registry import Handler
from nimburion.jobs.handling.attempt_record import AttemptRecord, WorkerServices
from nimburion.jobs.handling.context import CURRENT, Context
from nimburion.jobs.payloads.codec import UnstorableResult
from nimburion.jobs.processor import Processor
from nimburion.jobs.worker.attempt.forking import ForkGuard
from nimburion.jobs.worker.attempt.handler_calls import HandlerCall, make_handler_call
from nimburion.jobs.worker.attempt.handler_stacks import (
    find_task_frames,
    find_thread_frames,
    format_frames,
)
from nimburion.jobs.worker.attempt.outcome import (
    AttemptFailed,
    CancelRequested,
    Outcome,
    OverRateLimit,
    Snoozed,
    classify_exception,
)
from nimburion.jobs.worker.children.application import load_processor
from nimburion.jobs.worker.children.channel import ParentChannel
from nimburion.jobs.worker.children.log_frames import ParentHandler
from nimburion.jobs.worker.children.memory import MemoryWatch
from nimburion.jobs.worker.children.messages import (
    Call,
    NotRun,
    NotStarted,
    Raised,
    Ready,
    Returned,
    Start,
    UnitsSpent,
)
from nimburion.jobs.worker.children.parent_backend import ParentBackend
from nimburion.jobs.worker.children.process_setup import (
    SIGNALS,
    end_with_parent,
    leave_signals_to_parent,
    prefer_for_oom_kill,
    prepare_output,
)
from nimburion.jobs.worker.open_lifespan import OpenLifespan
from nimburion.telemetry.trace_headers import attach_trace, detach_trace


def run_child(calls_descriptor: int, messages_descriptor: int, guard: int | None) -> None:
    """Run the calls that arrive on the first socket, until the parent ends it.

    `guard` is the process that started this one, if it is not the parent at the other end.
    """
    channel = ParentChannel(calls_descriptor, messages_descriptor)
    start = channel.receive_start()
    end_with_parent(start.parent if guard is None else guard)
    prefer_for_oom_kill()
    leave_signals_to_parent()
    prepare_output()
    sys.path[:] = start.search_path
    sys.argv[:] = start.arguments
    logs = ParentHandler(channel.send, time.monotonic)
    try:
        processor = _load(start)
        _forward_logs(logs, start.log_level)
        child = ChildRuntime(processor, channel, logs)
    except BaseException as error:  # noqa: BLE001 - a module may raise anything
        text = "".join(traceback.format_exception(error, limit=-20))
        channel.send(NotStarted(f"{type(error).__name__}: {error}", text))
        sys.exit(1)
    channel.send(Ready(list(processor.registry.names), os.getpid(), guard is not None))
    child.serve()
    child.close()
    logging.shutdown()


def _load(start: Start) -> Processor:
    """Import the processor. A module that opens it meanwhile has no guard: it would run twice."""
    own_open = Client.open
    setattr(Client, "open", _refuse_open)  # noqa: B010 (mypy knows it as a method)
    try:
        return load_processor(start.import_path, start.script)
    finally:
        setattr(Client, "open", own_open)  # noqa: B010


async def _refuse_open(_: Client) -> NoReturn:
    raise DefinitionError(
        "the module of the processor opens it while a child process imports the module; put the "
        'code that enqueues or starts a worker below `if __name__ == "__main__":`'
    )


def _forward_logs(handler: ParentHandler, level: int) -> None:
    """Send all records to the parent, which has the application's handlers."""
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


class ChildRuntime:
    """Runs the calls of one child process, one at a time, on its main thread."""

    def __init__(self, processor: Processor, channel: ParentChannel, logs: ParentHandler) -> None:
        self._registry = processor.registry
        self._setup = processor.handler_setup
        self._calls: dict[str, HandlerCall] = {}
        self._limit = processor.settings.sizes.error
        self._channel = channel
        self._logs = logs
        self._memory = MemoryWatch()
        self._thread = threading.get_ident()
        self._task: asyncio.Task[object] | None = None
        """The task of an `async def` handler."""
        channel.read_stack = self._read_stack
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._guard = ForkGuard(self._loop)
        self._guard.signals = SIGNALS
        self._guard.enable()
        _connect(processor, channel)
        self._loop.run_until_complete(Client.open(processor))
        self._lifespan = OpenLifespan(processor.handler_setup.lifespan)
        state = self._loop.run_until_complete(self._lifespan.open())
        self._services = WorkerServices(time.monotonic, self._report, processor, state=state)

    def serve(self) -> None:
        """Run calls until the parent says to end."""
        while (call := self._channel.receive_call()) is not None:
            handler = self._registry.get(call.delivery.name)
            if handler is None:
                self._channel.send(NotRun(call.delivery.name))
                continue
            # Each call in a copy, so that no handler sees the context variables of another.
            reply = contextvars.copy_context().run(self._run, call, handler)
            self._channel.flush_progress()
            self._logs.report_dropped()
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):  # the handler may have closed or replaced it
                    stream.flush()
            self._channel.send(reply)

    def close(self) -> None:
        """Close the lifespan."""
        if not self._loop.is_closed():  # unless a handler has closed it
            self._loop.run_until_complete(self._lifespan.close())

    def _run(self, call: Call, handler: Handler) -> Returned | Raised:
        record = AttemptRecord(call.delivery, call.session_id)
        record.handler = handler
        deadline = None if call.timeout is None else time.monotonic() + call.timeout
        context = _ChildContext(record, self._services, deadline)
        current, trace = CURRENT.set(context), attach_trace(call.trace)
        if call.memory_limit is not None:
            self._memory.start_job(call.memory_limit)
        try:
            value = self._call(handler, context)
            return Returned(_encode_result(handler, record, value, context))
        except BaseException as raised:  # noqa: BLE001 - a handler may raise anything
            return _make_reply(
                classify_exception(raised, call.delivery.attempt, handler.policy, self._limit)
            )
        finally:
            if call.memory_limit is not None:
                self._memory.end_job()
            detach_trace(trace)
            CURRENT.reset(current)

    def _call(self, handler: Handler, context: Context) -> object:
        call = self._calls.get(handler.name)
        if call is None:
            call = self._calls[handler.name] = make_handler_call(handler, self._setup, self._guard)
        value = call(context)
        return self._run_on_loop(value) if inspect.isawaitable(value) else value

    def _run_on_loop(self, value: Awaitable[Any]) -> object:
        """Run an `async def` handler to its end. Tasks that it leaves wait for the next one.

        `run_until_complete` stops the loop one iteration later, which costs a tenth of a call. A
        handler that stops the loop itself runs on.
        """
        self._task = task = self._loop.create_task(self._await_and_stop_loop(value))
        try:
            while not task.done():
                self._loop.run_forever()
            return task.result()
        finally:
            self._task = None
            if task.done() and not task.cancelled():
                task.exception()  # SystemExit and KeyboardInterrupt leave the loop at once

    def _read_stack(self) -> str:
        """Return the stack of the running handler. Safe from any thread."""
        task = self._task
        if task is None:
            return format_frames(find_thread_frames(self._thread))
        return format_frames(find_task_frames(task, self._thread))

    async def _await_and_stop_loop(self, value: Awaitable[Any]) -> object:
        try:
            return await value
        finally:
            self._loop.stop()

    def _report(self, report: Progressed | Spent) -> None:
        if isinstance(report, Spent):
            self._channel.send(UnitsSpent(report.units))
        else:
            self._channel.report_progress(report.fraction, report.message)


class _ChildContext(Context):
    """The context of a handler in a child process, which has no connection to the backend."""

    __slots__ = ()

    @property
    def flow(self) -> NoReturn:
        """Raise `NotSupported`: the worker holds the lease."""
        raise NotSupported(
            'ctx.flow does not work in a child process; use execution="auto", or return what to '
            "add, and let another member add it"
        )

    def transaction(self, connection: object = None) -> NoReturn:  # noqa: ARG002 (as the base)
        """Raise `NotSupported`: the worker holds the lease."""
        raise NotSupported(
            "ctx.transaction() does not work in a child process, because only the worker can "
            'complete the job; use execution="auto", or commit first and return from the handler'
        )


def _connect(processor: Processor, channel: ParentChannel) -> None:
    """Give the processor a backend that reaches the parent, and events without subscribers.

    The parent emits the events of the jobs that it stores.
    """
    processor.backend = cast("Backend", ParentBackend(channel))
    processor.events = Events()


def _encode_result(
    handler: Handler, record: AttemptRecord, value: object, context: Context
) -> bytes | None:
    if value is None:
        return record.encode_result()
    try:
        return handler.encode_result(value)
    except UnstorableResult as error:
        context.log.warning("the result of job %s is not stored: %s", context.job_id, error)
        return encode_result_error(str(error))


def _make_reply(outcome: Outcome) -> Raised:
    match outcome:
        case AttemptFailed():
            return Raised("failed", outcome.error, outcome.after)
        case Snoozed():
            return Raised("snoozed", delay=outcome.delay)
        case OverRateLimit():
            return Raised("rate_limited", delay=outcome.retry_after)
        case CancelRequested():
            return Raised("cancelled", reason=outcome.reason)
    raise AssertionError(outcome)
