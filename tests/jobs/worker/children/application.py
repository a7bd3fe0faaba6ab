"""An application whose handlers run in child processes. The children import it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import Cancel, PermanentError, Retry, Snooze
from nimburion.jobs import ChildProcess, Context, Processor, job


class Odd(Exception):
    """An exception that the parent has never seen raised."""


@job(execution="process")
def add(a: int, b: int) -> int:
    return a + b


@job(execution="process")
async def add_async(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@job(execution="process")
def describe(ctx: Context) -> dict[str, object]:
    return {
        "id": ctx.job_id,
        "name": ctx.name,
        "queue": ctx.queue,
        "attempt": ctx.attempt,
        "fence": ctx.fence,
        "tenant": ctx.tenant,
        "correlation_id": ctx.correlation_id,
        "headers": ctx.headers,
        "priority": ctx.priority,
        "remaining": ctx.remaining(),
        "process": os.getpid(),
        "group": os.getpgid(0),
    }


@job(execution="process")
def get_process() -> int:
    return os.getpid()


@job(execution="process")
def wait_in_child() -> None:
    threading.Event().wait()


@job(execution="process")
async def wait_in_child_async() -> None:
    await asyncio.Event().wait()


@job(execution="process")
def fail(how: str) -> None:
    raise {
        "error": Odd("of the child"),
        "permanent": PermanentError("no use"),
        "retry": Retry("later", after=3600),
        "snooze": Snooze(3600),
        "cancel": Cancel("enough"),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "generator": GeneratorExit(),
    }[how]


@job(execution="process")
async def fail_async(how: str) -> None:
    fail.function(how)


@job(execution="process")
def log(ctx: Context, count: int = 1) -> None:
    for number in range(count):
        ctx.log.warning("record %d", number, extra={"number": number})
    logging.getLogger("app").info("plain %s", "text")


@job(execution="process")
def write(text: str, times: int = 1) -> None:
    """Print to standard output, and below Python to standard error."""
    os.write(2, b"from C\n")
    for _ in range(times):
        sys.stdout.write(text)


@job(execution="process")
def report(ctx: Context, count: int) -> None:
    for number in range(count):
        ctx.progress(number / count, str(number))
    ctx.progress(1.0, "end")
    ctx.set_result("set")


@job(execution="process")
async def enqueue_more(ctx: Context) -> list[str]:
    return [
        await ctx.enqueue(add.job(1, 2)),
        await processor.enqueue(add.job(3, 4), id="own"),
        *await processor.enqueue_many([add.job(5, 6), add.job(7, 8)]),
    ]


@job(execution="process")
def enqueue_blocking() -> str:
    return processor.sync.enqueue(add.job(1, 2))


@job(execution="process")
async def read_backend(ctx: Context, what: str) -> object:
    if what == "status":
        return await processor.get_status(ctx.job_id)
    async with ctx.transaction():
        return None


# Handlers that do harm. A path says where they note that they have started.


def _note_start(path: str) -> None:
    Path(path).write_text(str(os.getpid()))


@job(execution="process", max_retries=0)
def block(path: str) -> None:
    """Block, as C code does: no thread of the process can run Python code."""
    _note_start(path)
    signal.pause()


@job(execution="process", max_retries=0)
async def stop_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return "ran on"


@job(execution="process", max_retries=0)
async def never_return(path: str) -> None:
    _note_start(path)
    await asyncio.Event().wait()


@job(execution="process", max_retries=0)
def ignore_everything(path: str) -> None:
    """Catch every exception, for ever."""
    _note_start(path)
    while True:
        try:
            threading.Event().wait()
        except BaseException:  # noqa: BLE001
            continue


@job(execution="process", max_retries=0)
def end_process(code: int) -> NoReturn:
    print("last words", flush=True)  # noqa: T201
    os._exit(code)


@job(execution="process", max_retries=0)
def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@job(execution=ChildProcess(memory="200MB"), max_retries=3)
def eat_memory() -> None:
    held = []
    never = threading.Event()
    while True:
        held.append(bytearray(4 << 20))
        never.wait(0.005)


@job(
    execution=ChildProcess(memory=200_000_000, retry_over_memory=True),
    max_retries=1,
    retry_backoff=0,
)
def eat_memory_twice() -> None:
    eat_memory.function()


@job(execution="process")
def fork() -> int:
    """Return in both processes."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    return -1


@job(execution="process")
def leave_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


@job(execution="process")
async def leave_task() -> int:
    for task in asyncio.all_tasks():
        if task.get_name() == "left":
            return 1
    task = asyncio.create_task(asyncio.Event().wait(), name="left")
    _kept.append(task)
    return 0


@job(execution="process")
async def cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.Event().wait()


@job(execution="process")
def terminate_itself() -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return os.getpid()


@job(execution="process", timeout=60)
def leave_program(path: str) -> None:
    """Start a program, which shares the output of the child and outlives it."""
    import subprocess

    started = subprocess.Popen(["sleep", "600"])
    Path(path).write_text(str(started.pid))
    signal.pause()


@job(execution="process")
def leave_session(path: str, how: str) -> None:
    """Start a program in a session of its own, and let go of it; then end in one of two ways."""
    import subprocess

    # A shell that ends at once leaves an orphan, as a daemon does.
    command = f'(setsid sleep 600 & echo $! > "{path}.new" && mv "{path}.new" "{path}")'
    subprocess.run(
        ["sh", "-c", command], check=True, stdout=subprocess.DEVNULL, start_new_session=True
    )
    if how == "exits":
        os._exit(3)
    signal.pause()


@job(execution="process")
def damage_channel() -> None:
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(path.readlink()).startswith("socket:"):
                os.write(int(path.name), b"\xff" * 64)
    signal.pause()


@job(execution="process")
def hold_memory(mebibytes: int) -> int:
    _kept.append(b"x" * (mebibytes << 20))
    return os.getpid()


@job
def die_in_worker() -> None:
    """Would end a worker. In a child, it does not."""
    os._exit(1)


@job
def run_anywhere() -> int:
    return os.getpid()


_kept: list[object] = []
hooked: list[str] = []

processor = Processor(MemoryBackend(), children=2)
processor.register(
    wait_in_child,
    wait_in_child_async,
    *(add, add_async, describe, get_process, fail, fail_async, log, write, report),
    *(enqueue_more, enqueue_blocking, read_backend),
    *(
        block,
        stop_loop,
        never_return,
        ignore_everything,
        end_process,
        crash,
        eat_memory,
        eat_memory_twice,
    ),
    *(
        fork,
        leave_thread,
        leave_task,
        leave_program,
        leave_session,
        *(cancel_all, terminate_itself),
        damage_channel,
        hold_memory,
        die_in_worker,
        run_anywhere,
    ),
)


@processor.job(execution="process")
def read_hooks() -> list[str]:
    return list(hooked)


@processor.around_handler
def note(ctx: Context) -> Iterator[None]:
    if ctx.name == "read_hooks":
        hooked.append("before")
    yield


def make_processor(**settings: object) -> Processor:
    """Return a processor with the jobs of `processor`, whose children import that one."""
    made = Processor(
        MemoryBackend(),
        import_path=f"{__name__}:processor",
        **settings,  # type: ignore[arg-type]
    )
    for handler in processor.registry.handlers:
        made.register(handler.target)  # type: ignore[arg-type]
    return made
