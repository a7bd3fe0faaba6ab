"""One worker process of a supervisor listens for all, and another takes its place."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Collection
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest

from nimburion.cli.supervisor import shared_listener
from nimburion.cli.supervisor.listener_chooser import ListenerChooser
from nimburion.cli.supervisor.messages import (
    ChannelsServed,
    ChannelsWanted,
    ListenerState,
    ListenRequest,
    Notification,
)
from nimburion.cli.supervisor.shared_listener import SharedListener
from nimburion.cli.supervisor.supervisor_channel import SupervisorChannel
from nimburion.cli.supervisor.worker_process import WorkerProcess
from nimburion.core.job import State
from nimburion.core.listener import Listener, OnListening, OnNotification
from nimburion.jobs import Processor
from tests.cli.supervisor.conftest import APPLICATION, StartSupervised, Supervised
from tests.servers.server_kinds import RunningPostgres, RunningRedis
from tests.waiting import DEADLINE, wait_until, wait_until_finished

NEVER_POLL = """
from nimburion.jobs.worker.exchange import wakeups
wakeups._POLL_INTERVAL = wakeups._IDLE_POLL_INTERVAL = wakeups._LONGEST_POLL_FRACTION = 1000.0
wakeups._LONGEST_POLL_INTERVAL = wakeups._LONGEST_POLL_INTERVAL_AFTER_DEATH = 1000.0
"""
"""For the application: its workers find a job only by a wake-up. Not where the listener changes: a
wake-up may be lost then.
"""
BLOCK_LOOP = """

@processor.job
async def block_loop(process: int) -> None:
    if os.getpid() == process:
        with open("began", "a") as file:
            file.write(f"{os.getpid()}\\n")
        open("go").close()  # returns when the test opens the other end
"""
"""For the application: a job that blocks the event loop of one process."""
SERVER_CONNECTIONS = """SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'nimburion' AND datname = current_database()"""
LISTENING_CONNECTIONS = """SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'nimburion' AND datname = current_database()
AND (query ~ '^(UN)?LISTEN' OR query = 'SELECT 1')"""
"""A listener runs only these statements once it listens: SELECT 1 checks its connection. No other
connection of a worker runs them."""
NO_REPORTS = {"report_interval": 1000.0}
"""The settings of a supervisor that replaces its listener only if that ends."""


@pytest.fixture
def processor(direct_postgres: RunningPostgres) -> Processor:
    """A processor on the server of the workers, to enqueue jobs."""
    return Processor(direct_postgres.url)


def write_application(tmp_path: Path, server: RunningPostgres | RunningRedis, *more: str) -> None:
    text = APPLICATION.replace("sqlite:///jobs.db", server.url).replace("concurrency=4, ", "")
    (tmp_path / "app.py").write_text("".join([text, *more]))


def count_listening(server: RunningPostgres) -> int:
    """Return how many connections listen."""
    ((count,),) = server.ask(LISTENING_CONNECTIONS)
    return int(count)


def count_connections(server: RunningPostgres) -> int:
    ((count,),) = server.ask(SERVER_CONNECTIONS)
    return int(count)


def count_waiting(server: RunningPostgres) -> int:
    """Return how many workers say that they can be woken."""
    ((count,),) = server.ask("SELECT count(*) FROM nimburion.idle_worker WHERE is_waiting")
    return int(count)


def forget_idle_workers(server: RunningPostgres) -> None:
    """Delete the rows of all workers, also those of a killed one. All are then notified."""
    server.ask("DELETE FROM nimburion.idle_worker")


def wait_for_listener(supervised: Supervised, count: int) -> int:
    """Return the id of the process that is chosen as the `count`th one to listen."""
    return int(supervised.wait_for_log(r"worker process (\d+) listens for all", count)[count - 1])


def read_listener(supervised: Supervised) -> int:
    """Return the id of the process that was chosen last to listen."""
    return int(supervised.wait_for_log(r"worker process (\d+) listens for all")[-1])


async def run_jobs(processor: Processor, count: int) -> None:
    """Run jobs one after another."""
    for _ in range(count):
        job_id = await processor.enqueue_raw("note", b"{}")
        await wait_until_finished(processor, job_id)


async def test_an_idle_process_has_two_connections_and_one_of_them_listens(
    start: StartSupervised, tmp_path: Path, direct_postgres: RunningPostgres
) -> None:
    write_application(tmp_path, direct_postgres)
    supervised = start(processes=3)
    supervised.wait_until_ready(3)
    await wait_until(lambda: count_waiting(direct_postgres) == 3, "all wait")
    await wait_until(lambda: count_connections(direct_postgres) == 3 * 2 + 1, "seven connections")
    await wait_until(lambda: count_listening(direct_postgres) == 1, "one listens")
    assert supervised.stop() == 0


async def test_one_process_listens_and_all_are_woken(
    start: StartSupervised, tmp_path: Path, direct_postgres: RunningPostgres, processor: Processor
) -> None:
    write_application(tmp_path, direct_postgres, NEVER_POLL)
    supervised = start(processes=2)
    workers = supervised.wait_until_ready(2)
    await wait_until(lambda: count_waiting(direct_postgres) == 2, "both wait")
    async with processor:
        await run_jobs(processor, 6)
    assert set(supervised.read_pids("notes")) == set(workers), "who waited longest is woken"
    assert supervised.stop() == 0


async def test_another_process_listens_when_the_listener_is_killed(
    start: StartSupervised, tmp_path: Path, direct_postgres: RunningPostgres, processor: Processor
) -> None:
    write_application(tmp_path, direct_postgres)
    supervised = start(processes=2, settings=NO_REPORTS)
    supervised.wait_until_ready(2)
    first = wait_for_listener(supervised, 1)
    await wait_until(lambda: count_waiting(direct_postgres) == 2, "both wait")
    os.kill(first, signal.SIGKILL)
    second = wait_for_listener(supervised, 2)
    assert second != first
    third = supervised.wait_until_ready(3)[-1]
    await wait_until(lambda: count_waiting(direct_postgres) >= 2, "both wait")
    forget_idle_workers(direct_postgres)
    async with processor:
        await run_jobs(processor, 6)
    assert set(supervised.read_pids("notes")) <= {second, third}
    assert supervised.stop() == 0


async def test_a_stopped_listener_delays_jobs_until_the_next_poll(
    start: StartSupervised, tmp_path: Path, direct_postgres: RunningPostgres, processor: Processor
) -> None:
    write_application(tmp_path, direct_postgres)
    supervised = start(processes=2, settings=NO_REPORTS)
    workers = supervised.wait_until_ready(2)
    listener = wait_for_listener(supervised, 1)
    await wait_until(lambda: count_waiting(direct_postgres) == 2, "both wait")
    os.kill(listener, signal.SIGSTOP)
    async with processor:
        await run_jobs(processor, 3)
    os.kill(listener, signal.SIGCONT)
    assert set(supervised.read_pids("notes")) == set(workers) - {listener}
    assert supervised.stop() == 0


async def test_another_process_listens_while_the_listener_is_stopped(
    start: StartSupervised, tmp_path: Path, direct_postgres: RunningPostgres, processor: Processor
) -> None:
    write_application(tmp_path, direct_postgres)
    supervised = start(processes=2, settings={"report_interval": 0.2, "report_timeout": 5.0})
    workers = set(supervised.wait_until_ready(2))
    await wait_until(lambda: count_waiting(direct_postgres) == 2, "both wait")
    first = read_listener(supervised)  # a process that is slow to answer may have been replaced
    os.kill(first, signal.SIGSTOP)
    (second,) = workers - {first}
    await wait_until(lambda: read_listener(supervised) == second, "the other one is chosen")
    forget_idle_workers(direct_postgres)

    async def runs_job_on_first() -> bool:
        await run_jobs(processor, 1)
        return first in supervised.read_pids("notes")

    async with processor:
        await run_jobs(processor, 3)
        assert set(supervised.read_pids("notes")) == {second}
        os.kill(first, signal.SIGCONT)
        await wait_until(lambda: count_listening(direct_postgres) == 1, "one listens")
        await wait_until(runs_job_on_first, "one listens for both")
    assert supervised.stop() == 0


async def test_a_worker_that_finishes_leaves_listening_to_its_successor(
    start: StartSupervised, tmp_path: Path, direct_postgres: RunningPostgres, processor: Processor
) -> None:
    write_application(tmp_path, direct_postgres)
    supervised = start(processes=2, settings=NO_REPORTS)
    supervised.wait_until_ready(2)
    first = wait_for_listener(supervised, 1)
    os.kill(first, signal.SIGTERM)
    second = wait_for_listener(supervised, 2)
    third = supervised.wait_until_ready(3)[-1]
    await wait_until(lambda: first not in supervised.list_workers(), "the first one has ended")
    await wait_until(lambda: count_waiting(direct_postgres) == 2, "both wait")
    async with processor:
        await run_jobs(processor, 4)
    assert set(supervised.read_pids("notes")) <= {second, third}
    assert supervised.stop() == 0


async def test_a_blocked_event_loop_of_the_listener_delays_no_other_process(
    start: StartSupervised, tmp_path: Path, direct_postgres: RunningPostgres, processor: Processor
) -> None:
    write_application(tmp_path, direct_postgres, NEVER_POLL, BLOCK_LOOP)
    path = tmp_path / "app.py"
    path.write_text(path.read_text().replace("session_ttl=5.0", "session_ttl=400.0, concurrency=1"))
    os.mkfifo(tmp_path / "go")
    supervised = start(processes=2, settings=NO_REPORTS)
    workers = set(supervised.wait_until_ready(2))
    listener = wait_for_listener(supervised, 1)
    await wait_until(lambda: count_waiting(direct_postgres) == 2, "both wait")
    async with processor:
        while listener not in supervised.read_pids("began"):
            job_id = await processor.enqueue_raw("block_loop", {"process": listener})

            async def is_blocked_or_free(job_id: str = job_id) -> bool:
                state = (await processor.get_status(job_id)).state
                return state is State.COMPLETED or listener in supervised.read_pids("began")

            await wait_until(is_blocked_or_free, "a process has run it")
        await wait_until(lambda: count_waiting(direct_postgres) == 1, "the other one waits")
        await run_jobs(processor, 3)
    (tmp_path / "go").open("w").close()
    assert set(supervised.read_pids("notes")) == workers - {listener}
    assert supervised.stop() == 0


async def check_cancel(
    start: StartSupervised, tmp_path: Path, server: RunningPostgres | RunningRedis
) -> None:
    """Cancel a job in each of two processes, whose heartbeats come every hundred seconds."""
    write_application(tmp_path, server)
    path = tmp_path / "app.py"
    text = path.read_text().replace("session_ttl=5.0", "session_ttl=400.0, concurrency=1")
    path.write_text(text)
    supervised = start(processes=2)
    supervised.wait_until_ready(2)
    async with Processor(server.url) as processor:
        ids = [await processor.enqueue_raw("note", b'{"seconds":1000}') for _ in range(2)]

        async def both_run() -> bool:
            states = [(await processor.get_status(job_id)).state for job_id in ids]
            return set(states) == {State.PROCESSING}

        await wait_until(both_run, "each process runs a job")
        for job_id in ids:
            await processor.cancel(job_id)
            await wait_until_finished(processor, job_id)
    assert supervised.stop() == 0


async def test_a_cancel_is_sent_to_each_process_on_postgresql(
    start: StartSupervised, tmp_path: Path, direct_postgres: RunningPostgres
) -> None:
    await check_cancel(start, tmp_path, direct_postgres)


async def test_a_cancel_is_sent_to_each_process_on_redis(
    start: StartSupervised, tmp_path: Path, redis_server: RunningRedis
) -> None:
    await check_cancel(start, tmp_path, redis_server)


async def test_an_idle_process_has_two_connections_and_one_of_them_subscribes_on_redis(
    start: StartSupervised, tmp_path: Path, redis_server: RunningRedis
) -> None:
    write_application(tmp_path, redis_server)
    supervised = start(processes=3)
    supervised.wait_until_ready(3)

    def count_clients(*of_type: str) -> int:
        clients = redis_server.ask("CLIENT", "LIST", *of_type).decode().splitlines()
        return sum("name=nimburion " in client for client in clients)

    await wait_until(lambda: count_clients() == 3 * 2 + 1, "seven connections")
    await wait_until(lambda: count_clients("TYPE", "pubsub") == 1, "one subscribes")
    assert supervised.stop() == 0


class SilentChannel:
    """Sends nothing, and keeps what it was to send."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, message: object) -> None:
        self.sent.append(message)

    def send_or_drop(self, message: object) -> None:
        self.sent.append(message)


class FakeListener(Listener):
    def __init__(self) -> None:
        self.channels: set[str] = set()
        self.is_listening = threading.Event()
        self.is_closed = threading.Event()

    def listen(self, channels: Collection[str]) -> None:
        self.channels = set(channels)
        self.is_listening.set()

    async def close(self) -> None:
        self.is_closed.set()


async def test_a_request_right_after_the_end_of_another_makes_a_listener() -> None:
    """Both messages come in one batch if the event loop was blocked."""
    made: list[FakeListener] = []

    def make_listener(_: OnListening, __: OnNotification) -> FakeListener:
        made.append(FakeListener())
        return made[-1]

    shared = SharedListener(cast("SupervisorChannel", SilentChannel()))
    shared.attach(make_listener, lambda _: None, lambda _, __: None).listen(["own"])
    shared.handle(ListenRequest(["other"]))
    shared.handle(ListenRequest(None))
    shared.handle(ListenRequest(["other"]))
    first, second = made
    assert await asyncio.to_thread(first.is_closed.wait, DEADLINE)
    assert await asyncio.to_thread(second.is_listening.wait, DEADLINE)
    assert second.channels == {"own", "other"}
    assert not second.is_closed.is_set()
    await shared.close()
    assert second.is_closed.is_set()


async def test_a_listener_that_does_not_end_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker has to stop in time: its handlers were given time too."""
    monkeypatch.setattr(shared_listener, "_CLOSE_TIMEOUT", 0.05)
    may_end, has_ended = threading.Event(), threading.Event()

    class StuckListener(FakeListener):
        async def close(self) -> None:
            may_end.wait()
            has_ended.set()

    shared = SharedListener(cast("SupervisorChannel", SilentChannel()))
    shared.attach(lambda _, __: StuckListener(), lambda _: None, lambda _, __: None).listen(["own"])
    shared.handle(ListenRequest(["other"]))
    async with asyncio.timeout(DEADLINE):
        await shared.close()
    assert not has_ended.is_set()
    may_end.set()


async def test_a_listener_that_was_closed_reports_nothing_to_the_backend() -> None:
    """What its thread has sent before is not handled after the request that closes it."""
    reported: list[Collection[str]] = []
    callbacks: list[tuple[OnListening, OnNotification]] = []

    def make_listener(on_listening: OnListening, on_notification: OnNotification) -> FakeListener:
        callbacks.append((on_listening, on_notification))
        return FakeListener()

    shared = SharedListener(cast("SupervisorChannel", SilentChannel()))
    receive = reported.append
    shared.attach(make_listener, receive, lambda channel, _: receive([channel])).listen(["own"])
    shared.handle(ListenRequest([]))
    ((on_listening, on_notification),) = callbacks
    on_listening(["own"])
    shared.handle(ListenRequest(None))
    await asyncio.sleep(0)
    assert reported == [], "it does not listen any more"
    shared.handle(ListenRequest([]))
    callbacks[1][0](["own"])
    callbacks[1][1]("own", "text")
    await asyncio.sleep(0)
    assert reported == [{"own"}, ["own"]]
    on_notification("own", "late")
    await shared.close()
    assert reported == [{"own"}, ["own"]]


async def test_a_listener_that_was_closed_sends_nothing_to_the_supervisor() -> None:
    """The supervisor may have asked again. It cannot tell of which listener a message is."""
    callbacks: list[tuple[OnListening, OnNotification]] = []

    def make_listener(on_listening: OnListening, on_notification: OnNotification) -> FakeListener:
        callbacks.append((on_listening, on_notification))
        return FakeListener()

    channel = SilentChannel()
    shared = SharedListener(cast("SupervisorChannel", channel))
    shared.attach(make_listener, lambda _: None, lambda _, __: None).listen(["own"])
    shared.handle(ListenRequest(["other"]))
    shared.handle(ListenRequest(None))
    channel.sent.clear()
    (on_listening, on_notification), *_ = callbacks
    on_listening(["own", "other"])
    on_notification("other", "text")
    shared.handle(ListenRequest(["other"]))
    on_listening(["own", "other"])
    on_notification("other", "text")
    assert channel.sent == []
    callbacks[1][0](["own", "other"])
    callbacks[1][1]("other", "text")
    assert channel.sent == [ChannelsServed(["other", "own"]), Notification("other", "text")]
    await shared.close()


async def test_a_backend_that_takes_the_place_of_another_learns_that_notifications_arrive() -> None:
    """It is opened before the other one is closed."""
    announced: list[tuple[str, list[str]]] = []

    def open_backend(name: str) -> None:
        shared.attach(
            lambda _, __: FakeListener(),
            lambda channels: announced.append((name, sorted(channels))),
            lambda _, __: None,
        ).listen([name])

    shared = SharedListener(cast("SupervisorChannel", SilentChannel()))
    open_backend("first")
    shared.handle(ListenerState(is_listening=True))
    open_backend("second")
    shared.handle(ListenerState(is_listening=True))
    shared.handle(ListenerState(is_listening=True))
    assert announced == [("first", ["first"]), ("second", ["second"])]
    await shared.close()


async def test_a_backend_whose_place_another_has_taken_changes_nothing_when_it_is_closed() -> None:
    received: list[str] = []

    def open_backend(name: str) -> Listener:
        listener = shared.attach(
            lambda _, __: FakeListener(), lambda _: None, lambda _, text: received.append(text)
        )
        listener.listen([name])
        return listener

    channel = SilentChannel()
    shared = SharedListener(cast("SupervisorChannel", channel))
    first = open_backend("first")
    second = open_backend("second")
    await first.close()
    first.listen(["first"])
    assert channel.sent == [ChannelsWanted(["first"]), ChannelsWanted(["second"])]
    shared.handle(Notification("second", "text"))
    assert received == ["text"]
    await second.close()
    assert channel.sent[-1] == ChannelsWanted([])


async def test_a_backend_that_takes_the_place_of_another_has_a_listener_of_its_own() -> None:
    made: list[tuple[str, FakeListener, OnListening]] = []
    announced: list[tuple[str, list[str]]] = []

    def open_backend(name: str) -> None:
        def make_listener(on_listening: OnListening, _: OnNotification) -> FakeListener:
            made.append((name, FakeListener(), on_listening))
            return made[-1][1]

        shared.attach(
            make_listener,
            lambda channels: announced.append((name, sorted(channels))),
            lambda _, __: None,
        ).listen([name])

    channel = SilentChannel()
    shared = SharedListener(cast("SupervisorChannel", channel))
    open_backend("first")
    shared.handle(ListenRequest(["other"]))
    made[0][2](["first", "other"])
    await asyncio.sleep(0)
    open_backend("second")
    assert await asyncio.to_thread(made[0][1].is_closed.wait, DEADLINE)
    assert channel.sent[-2:] == [ChannelsServed([]), ChannelsWanted(["second"])]
    shared.handle(ListenRequest(["other"]))
    assert [name for name, _, _ in made] == ["first", "second"]
    assert await asyncio.to_thread(made[1][1].is_listening.wait, DEADLINE)
    assert made[1][1].channels == {"second", "other"}
    made[1][2](["second", "other"])
    await asyncio.sleep(0)
    assert announced == [("first", ["first"]), ("second", ["second"])]
    await shared.close()


async def test_a_listener_is_asked_again_when_it_wants_other_channels_itself() -> None:
    chooser = ListenerChooser(answer_timeout=1000.0)
    processes = [Mock(spec=WorkerProcess, has_ended=False, lag=0.0) for _ in range(2)]
    for process in processes:
        process.id, process.stopping, process.channels = 1, asyncio.Event(), frozenset()
    listener, other = processes
    chooser.handle(listener, ChannelsWanted(["own"]))
    chooser.handle(other, ChannelsWanted(["other"]))
    listener.listen.reset_mock()
    chooser.handle(listener, ChannelsWanted(["new"]))
    listener.listen.assert_called_once_with({"other"})
    chooser.handle(listener, ChannelsServed([]))
    chooser.handle(listener, ChannelsServed(["new", "other"]))
    other.note_listener.assert_called_once_with(is_listening=True)
    listener.note_listener.assert_not_called()
