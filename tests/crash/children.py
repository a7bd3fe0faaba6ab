"""Handlers that make processes of their own: by fork, by `multiprocessing`, by `subprocess`.

Each notes how its child ended. A child that does not end within a while is killed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from multiprocessing.connection import wait
from typing import Any

from nimburion.jobs import Context, Processor

DEADLINE = 10.0

EXITS = {
    "child_exits": 3,
    "child_raises": 1,
    "child_returns": 0,
    "child_waits": 1,
    "child_closes": 7,
    "task_child_exits": 3,
    "task_child_raises": 1,
    "thread_child_exits": 3,
    "thread_child_raises": 1,
    "thread_child_returns": 0,
    "loop_process": -signal.SIGTERM,
    "loop_pool": 0,
    "process_fork": -signal.SIGTERM,
    "process_spawn": -signal.SIGTERM,
    "process_forkserver": -signal.SIGTERM,
    "pool_fork": 0,
    "pool_spawn": 0,
    "program": -signal.SIGTERM,
    "prepared_program": -signal.SIGTERM,
}
"""Each handler's name, and how the process that it makes must end."""

Note = Callable[..., Any]


def register(processor: Processor, note: Note) -> None:
    """Give a processor a handler for each name of `EXITS`."""

    async def child_closes() -> int:
        """In the child nothing of the worker runs, and the processor can be closed at once."""
        code = _fork()
        if code is None:
            assert processor.health().state == "stopped"
            asyncio.run(processor.close())
            os._exit(7)
        return code

    async def noting(ctx: Context, call_next: Callable[[Context], Awaitable[object]]) -> object:
        try:
            return await call_next(ctx)
        finally:
            if ctx.name in EXITS:
                note(ctx, "around")

    processor.use(noting)
    handlers = {**_HANDLERS, "child_closes": child_closes}
    for name in EXITS:
        processor.register(name, _noting(handlers[name], note))


def _noting(handler: Callable[[], Any], note: Note) -> Callable[[Context, bytes], Any]:
    if asyncio.iscoroutinefunction(handler):

        async def run(ctx: Context, _: bytes) -> int:
            note(ctx, "start")
            return _noted(ctx, note, await handler())

        return run

    def run_in_thread(ctx: Context, _: bytes) -> int:
        note(ctx, "start")
        return _noted(ctx, note, handler())

    return run_in_thread


def _noted(ctx: Context, note: Note, code: int | None) -> int:
    if code is not None:  # in a child: it returns in silence
        note(ctx, "child", code=code)
        note(ctx, "end")
    return ctx.fence


def _fork() -> int | None:
    """How the child ended; None in the child itself."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        return None
    os.close(writing)
    ended, _, _ = select.select([reading], [], [], DEADLINE)  # closed when the child has ended
    os.close(reading)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if ended else -signal.SIGKILL


async def _child_exits() -> int:
    code = _fork()
    if code is None:
        sys.exit(3)
    return code


async def _child_raises() -> int:
    code = _fork()
    if code is None:
        raise ValueError("in the child")
    return code


async def _child_returns() -> int | None:
    return _fork()


async def _child_waits() -> int:
    code = _fork()
    if code is None:
        await asyncio.Event().wait()
        return 99
    return code


async def _task_child_exits() -> int:
    return await asyncio.create_task(_child_exits())


async def _task_child_raises() -> int:
    return await asyncio.create_task(_child_raises())


def _thread_child_exits() -> int:
    code = _fork()
    if code is None:
        sys.exit(3)
    return code


def _thread_child_raises() -> int:
    code = _fork()
    if code is None:
        raise ValueError("in the child")
    return code


def _thread_child_returns() -> int | None:
    return _fork()


_STARTING = threading.Lock()
"""Held while a process starts or its exit code is read: a start also reaps the processes of other
threads, whose exit code is unknown to these for a moment."""


def _process(method: str) -> int | None:
    """Start a process, end it at once."""
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=signal.pause)
    with _STARTING:
        process.start()
    process.terminate()
    wait([process.sentinel], DEADLINE / 2)
    with _STARTING:
        if process.is_alive():
            process.kill()
            process.join()
        code: int | None = process.exitcode
    return code


def _pool(method: str) -> int:
    """Use a pool and leave it, which ends its processes by SIGTERM."""
    with _STARTING:
        started = multiprocessing.get_context(method).Pool(1)
    with started as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    return 0


async def _loop_process() -> int | None:
    return _process("fork")


async def _loop_pool() -> int | None:
    return _pool("fork")


def _program(**more: Any) -> int:
    """Start another program, end it at once."""
    with subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], **more
    ) as process:
        process.terminate()
        return process.wait(DEADLINE)


_HANDLERS: dict[str, Callable[[], Any]] = {
    "child_exits": _child_exits,
    "child_raises": _child_raises,
    "child_returns": _child_returns,
    "child_waits": _child_waits,
    "task_child_exits": _task_child_exits,
    "task_child_raises": _task_child_raises,
    "thread_child_exits": _thread_child_exits,
    "thread_child_raises": _thread_child_raises,
    "thread_child_returns": _thread_child_returns,
    "loop_process": _loop_process,
    "loop_pool": _loop_pool,
    "process_fork": lambda: _process("fork"),
    "process_spawn": lambda: _process("spawn"),
    "process_forkserver": lambda: _process("forkserver"),
    "pool_fork": lambda: _pool("fork"),
    "pool_spawn": lambda: _pool("spawn"),
    "program": _program,
    "prepared_program": lambda: _program(preexec_fn=lambda: None),  # runs Python in the child
}
