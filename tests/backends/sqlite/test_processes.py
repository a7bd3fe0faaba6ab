"""Several processes on one file: together, killed, woken, forked."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.notifications import find_socket_folder
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob, State
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from nimburion.core.timing.clock import SystemClock
from tests.backends.sqlite.conftest import Start, assert_sound, read_line, read_output


class Later(SystemClock):
    """The host's clock as it will be in two minutes: every session of today is overdue."""

    def monotonic(self) -> float:
        return super().monotonic() + 120.0


async def test_four_enqueue_and_two_work_each_job_once(path: Path, start: Start) -> None:
    makers = [start("enqueue", path, f"p{n}", 1000, 10) for n in range(4)]
    stored = {one for maker in makers for line in read_output(maker) for one in line.split()}
    assert len(stored) == 4000
    workers = [start("work", path, 50) for _ in range(2)]
    ends = Counter(line for worker in workers for line in read_output(worker))
    assert ends == Counter(f"{one} done" for one in stored)
    assert_sound(path)


async def test_makers_and_workers_at_once_lose_nothing(path: Path, start: Start) -> None:
    running = [
        *(start("enqueue", path, f"p{n}", 500, 1) for n in range(2)),
        *(start("work", path, 7) for _ in range(2)),
    ]
    for process in running:
        read_output(process)
    ends = Counter(read_output(start("work", path, 500)))
    backend = SQLiteBackend(path)
    await backend.open()
    counts = await backend.reads.count_jobs(budget=None)
    await backend.close()
    assert counts[State.COMPLETED] == 1000 == sum(counts.values())
    assert set(ends.values()) <= {1}
    assert_sound(path)


async def test_kill_while_enqueueing_keeps_what_was_acknowledged(path: Path, start: Start) -> None:
    acknowledged: set[str] = set()
    for turn in range(5):
        maker = start("enqueue", path, f"t{turn}", 1_000_000, 3)
        for _ in range(20 + turn):
            acknowledged.update(read_line(maker).split())
        maker.send_signal(signal.SIGKILL)
        acknowledged.update(one for line in read_output(maker)[:-1] for one in line.split())
    backend = SQLiteBackend(path)
    await backend.open()
    kept = set[str]()
    after: str | None = None
    while True:
        page = await backend.reads.list_jobs(limit=1000, after=after)
        kept.update(job.id for job in page.jobs)
        if page.next is None:
            break
        after = page.next
    await backend.close()
    assert len(acknowledged) >= 300
    assert acknowledged <= kept
    assert_sound(path)


async def test_kill_while_exchanging_repeats_but_never_loses(path: Path, start: Start) -> None:
    backend = SQLiteBackend(path, clock=Later())
    await backend.open()
    ids = [f"j-{n}" for n in range(3000)]
    await backend.producing.enqueue([NewJob(one, "n", "q", b"{}") for one in ids])
    ended: Counter[str] = Counter()
    for turn in range(4):
        worker = start("work", path, 20)
        for _ in range(60 + turn):
            ended[read_line(worker).split()[0]] += 1
        worker.send_signal(signal.SIGKILL)
        ended.update(line.split()[0] for line in read_output(worker)[:-1])
        rescued = await backend.consuming.rescue(1000, max_lost=100)
        assert len(rescued.returned) <= 20
    assert set(ended.values()) == {1}
    completed = await backend.reads.list_jobs(limit=3000)
    assert ended.keys() <= {job.id for job in completed.jobs if job.state is State.COMPLETED}
    await drain(backend)
    assert (await backend.reads.count_jobs(budget=None))[State.COMPLETED] == 3000
    await backend.close()
    assert_sound(path)


async def drain(backend: SQLiteBackend) -> None:
    """Complete what is left."""
    await backend.consuming.open_session(Session(id="last", names=("n",)))
    settled: list[Completed] = []
    for number in range(1, 1000):
        request = ReserveRequest(500, (Lane("q", "n"),), nonce=bytes(16))
        reply = await backend.consuming.exchange("last", number, settled, request)
        settled = [Completed(one.lease) for one in reply.deliveries]
        if not settled:
            return


async def test_an_enqueue_wakes_another_process(path: Path, start: Start) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    waiter = start("wait", path, "q")
    assert read_line(waiter) == "waiting"
    await backend.producing.enqueue([NewJob("other", "n", "elsewhere", b"")])
    await backend.producing.enqueue([NewJob("a", "n", "q", b"")])
    assert read_line(waiter) == "woken"  # its own timeout is an hour
    await backend.close()
    assert read_output(waiter) == []


async def test_the_files_of_a_killed_waiter_are_removed(path: Path, start: Start) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    waiter = start("wait", path, "q")
    assert read_line(waiter) == "waiting"
    assert len(sockets(path)) == 2  # one is the idle entry of its call
    waiter.send_signal(signal.SIGKILL)
    waiter.wait()
    await backend.producing.enqueue([NewJob("a", "n", "q", b"")])
    await backend.close()
    assert sockets(path) == []


def sockets(path: Path) -> list[Path]:
    """The sockets of those who wait."""
    return list(find_socket_folder(path).iterdir())


def test_a_handle_refuses_after_a_fork_and_opens_anew(path: Path, start: Start) -> None:
    assert sorted(read_output(start("fork", path))) == [
        "NotOpen True",
        "NotOpen True",
        "child 2",
        "parent 0 3",
    ]
    assert_sound(path)
