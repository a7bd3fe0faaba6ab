"""What another process does with a backend: `python -m tests.backends.sqlite.actor VERB FILE [MORE
...]`.

It prints one line for each thing that the backend has acknowledged, and is killed by the test.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import BackendError, NimburionError
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.ids import make_session_id
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Completed

LANES = (Lane("q", "n"),)


def print_line(*words: object) -> None:
    """Print a line that arrives at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def enqueue(backend: SQLiteBackend, prefix: str, many: str, size: str) -> None:
    """Enqueue `many` jobs by `size`; say each once it is acknowledged."""
    for start in range(0, int(many), int(size)):
        ids = [f"{prefix}-{n}" for n in range(start, start + int(size))]
        await backend.producing.enqueue([NewJob(one, "n", "q", b"x" * 300) for one in ids])
        print_line(*ids)


async def work(backend: SQLiteBackend, total: str) -> None:
    """Complete jobs until none is left; say each once its completion is acknowledged."""
    session = make_session_id()
    await backend.consuming.open_session(Session(id=session, ttl=30.0, names=("n",)))
    number = 0
    settled: list[Completed] = []
    while True:
        number += 1
        request = ReserveRequest(int(total), LANES, nonce=os.urandom(16))
        reply = await backend.consuming.exchange(session, number, settled, request)
        for one, result in zip(settled, reply.results, strict=True):
            print_line(one.lease.job_id, result)
        settled = [Completed(one.lease, one.lease.job_id.encode()) for one in reply.deliveries]
        if not settled:
            return


async def wait(backend: SQLiteBackend, queue: str) -> None:
    """Wait for a notification; print that it waits, and that it was woken."""
    waiting = asyncio.ensure_future(backend.consuming.wait([queue], 3600.0))
    await asyncio.sleep(0)
    print_line("waiting")
    await waiting
    print_line("woken")


async def fill(backend: SQLiteBackend, limit: str) -> None:
    """Write until no file may grow beyond `limit` bytes; then make room and go on."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), most))
    stored = 0
    try:
        while stored < 100_000:
            await backend.producing.enqueue([NewJob(f"f-{stored}", "n", "q", b"x" * 4000)])
            stored += 1
    except BackendError as error:
        print_line(type(error).__name__, stored)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    await backend.producing.enqueue([NewJob(f"f-{stored}", "n", "q", b"")])
    print_line("recovered", sum((await backend.reads.count_jobs(budget=None)).values()))


async def crowd(backend: SQLiteBackend, prefix: str, seconds: str) -> None:
    """Enqueue and complete for so long, whether the disk is full or not; say what was done."""
    session = make_session_id()
    loop = asyncio.get_running_loop()
    end, number, stored, completed, refused = loop.time() + float(seconds), 0, 0, 0, 0
    settled: list[Completed] = []
    request = ReserveRequest(100, LANES, nonce=os.urandom(16))
    opened = False
    while loop.time() < end:
        try:
            await backend.producing.enqueue([NewJob(f"{prefix}-{stored}", "n", "q", b"x" * 3000)])
            stored += 1
        except BackendError:
            refused += 1
        if refused % 10 == 9:
            refused += 1
            try:
                if not opened:
                    await backend.consuming.open_session(
                        Session(id=session, ttl=300.0, names=("n",))
                    )
                    opened = True
                reply = await backend.consuming.exchange(session, number + 1, settled, request)
            except BackendError as error:
                print_line("stuck", type(error).__name__, error)
                continue
            number += 1
            completed += len(settled)
            # By id: while jobs are listed, their snapshot keeps the log from being emptied.
            await backend.maintenance.change_jobs(
                BulkAction.DELETE, [one.lease.job_id for one in settled]
            )
            settled = [Completed(one.lease, b"x" * 500) for one in reply.deliveries]
    print_line("stored", stored, "completed", completed, "refused", refused)


VERBS: dict[str, Callable[..., Awaitable[None]]] = {
    "enqueue": enqueue,
    "work": work,
    "wait": wait,
    "fill": fill,
    "crowd": crowd,
}


async def main(verb: str, path: str, *more: str) -> None:
    """Open the backend and do it; an error of ours is printed, not raised."""
    backend = SQLiteBackend(Path(path))
    try:
        await backend.open()
        await VERBS[verb](backend, *more)
    except NimburionError as error:
        print_line(type(error).__name__, error)
    finally:
        await backend.close()


def run_forked(path: str) -> None:
    """After a fork the handle refuses, and opens anew in the child's own loop."""
    backend = SQLiteBackend(Path(path))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(backend.open())
    loop.run_until_complete(backend.producing.enqueue([NewJob("before", "n", "q", b"")]))
    child = os.fork()
    if child == 0:
        asyncio.run(run_in_child(backend))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    loop.run_until_complete(backend.producing.enqueue([NewJob("after", "n", "q", b"")]))
    print_line(
        "parent",
        status,
        sum(loop.run_until_complete(backend.reads.count_jobs(budget=None)).values()),
    )
    loop.run_until_complete(backend.close())
    loop.close()


async def run_in_child(backend: SQLiteBackend) -> None:
    """What the child of a fork sees."""
    for call in (
        backend.reads.count_jobs(budget=None),
        backend.producing.enqueue([NewJob("no", "n", "q", b"")]),
    ):
        try:
            await call
        except NimburionError as error:
            print_line(type(error).__name__, "fork" in str(error))
    await backend.open()
    await backend.producing.enqueue([NewJob("child", "n", "q", b"")])
    print_line("child", sum((await backend.reads.count_jobs(budget=None)).values()))
    await backend.close()


async def open_as_user(path: str, user: str) -> None:
    """Open the backend as a user who may not write there."""
    await tried_out()
    os.seteuid(int(user))
    try:
        await SQLiteBackend(path).open()
    except NimburionError as error:
        print_line(type(error).__name__, error)


def share(path: str, user: str, group: str) -> None:
    """Use the backend as this user, as another one at the same time, and as this one again."""
    asyncio.run(tried_out())
    reading, writing = os.pipe()
    child = os.fork()  # before anything is open, so that the child has nothing of ours
    if child == 0:
        os.read(reading, 1)
        if os.geteuid() == 0:
            os.setgroups([])
        os.setegid(int(group))
        os.seteuid(int(user))
        asyncio.run(open_and_enqueue(path, "theirs"))
        os._exit(0)
    loop = asyncio.new_event_loop()
    backends = [loop.run_until_complete(open_and_enqueue(path, "ours"))]
    os.write(writing, b".")
    os.waitpid(child, 0)
    backends.append(loop.run_until_complete(open_and_enqueue(path, "ours")))
    for backend in backends:
        loop.run_until_complete(backend.close())
    loop.close()


async def open_and_enqueue(path: str, whose: str) -> SQLiteBackend:
    """Open the backend and enqueue; say how many jobs there are."""
    backend = SQLiteBackend(Path(path))
    try:
        await backend.open()
        await backend.producing.enqueue([NewJob(os.urandom(8).hex(), "n", "q", b"")])
        print_line(whose, sum((await backend.reads.count_jobs(budget=None)).values()))
    except NimburionError as error:
        print_line(type(error).__name__, error)
    return backend


async def tried_out() -> None:
    """Open a backend, so that nothing is left to import for a user who may not read it."""
    with tempfile.TemporaryDirectory() as folder:
        backend = SQLiteBackend(Path(folder) / "jobs.db")
        await backend.open()
        await backend.close()


if __name__ == "__main__":
    if sys.argv[1] == "fork":
        run_forked(sys.argv[2])
    elif sys.argv[1] == "share":
        share(*sys.argv[2:])
    elif sys.argv[1] == "open_as":
        asyncio.run(open_as_user(*sys.argv[2:]))
    else:
        asyncio.run(main(*sys.argv[1:]))
