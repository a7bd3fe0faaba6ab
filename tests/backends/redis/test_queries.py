"""More jobs than one script looks at; and what is left of those that were forgotten: nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from nimburion.backends.redis.backend import RedisBackend
from nimburion.backends.redis.connection.command_connection import CommandPart
from nimburion.backends.redis.queries import MAX_SORTED
from nimburion.backends.redis.scripts import build_scripts
from nimburion.core.errors import InvalidJob, JobNotFound, Unstorable
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.maintenance import Retention
from nimburion.core.metrics.statistics import MERGE_AFTER, STEPS, Counters, Statistics
from nimburion.core.queries import EVERY_JOB, JobFilter
from nimburion.core.schedules import ScheduleRecord, delete_schedule, put_schedule
from nimburion.core.settlement import Cancelled, Completed, Failed
from nimburion.testing import FakeClock
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import FAILURE, Harness
from nimburion.testing.contract.job_states import JOB_STATES
from tests.servers.server_kinds import BINARIES, RunningRedis

pytestmark = pytest.mark.parametrize("redis_server", BINARIES, indirect=True)

NOTHING_KEPT = Retention(completed=0.0, failed=0.0, results=0.0)
MIB = 1024 * 1024


class CountingBackend(RedisBackend):
    """Counts the scripts that it runs."""

    def __init__(self, url: str, clock: FakeClock) -> None:
        super().__init__(url, clock=clock)
        self.ran: Counter[str] = Counter()
        self._run_script = self._server.run_script
        self._server.run_script = self._count_and_run  # type: ignore[method-assign]

    async def _count_and_run(
        self, name: str, *arguments: CommandPart, more_keys: Sequence[bytes] = ()
    ) -> Any:
        self.ran[name] += 1
        return await self._run_script(name, *arguments, more_keys=more_keys)


@pytest.fixture
async def backend(redis_server: RunningRedis) -> AsyncIterator[CountingBackend]:
    backend = CountingBackend(redis_server.url, FakeClock())
    await backend.open()
    yield backend
    await backend.close()


@pytest.fixture
def harness(backend: CountingBackend) -> Harness:
    clock = backend._server.clock
    assert isinstance(clock, FakeClock)
    return Harness(clock, [backend])


async def enqueue_many(harness: Harness, count: int, queue: str = "default") -> list[str]:
    """Enqueue so many jobs; their ids."""
    jobs = [harness.job(queue=queue) for _ in range(count)]
    assert {one.outcome for one in await harness.enqueue(*jobs)} == {"created"}
    return [job.id for job in jobs]


async def finish_many(harness: Harness, count: int, *, fails: bool = False) -> None:
    """Let the next so many end."""
    worker = await harness.worker(queues=("default", "red"))
    while count:
        taken = await worker.take(min(count, 500))
        leases = [one.lease for one in taken]
        made = [Failed(one, "permanent", FAILURE) if fails else Completed(one) for one in leases]
        await worker.settle(*made)
        count -= len(taken)
    await worker.close()


async def list_ids(
    backend: RedisBackend, which: JobFilter = EVERY_JOB, limit: int = 700
) -> list[str]:
    """All pages of a filter, as ids."""
    ids: list[str] = []
    after = None
    while True:
        page = await backend.reads.list_jobs(which, limit=limit, after=after)
        ids += [job.id for job in page.jobs]
        after = page.next
        if after is None:
            return ids


async def test_a_list_passes_over_what_was_forgotten(
    harness: Harness, backend: CountingBackend
) -> None:
    """However many jobs there were: it looks at those that are there."""
    (first,) = await enqueue_many(harness, 1, queue="kept")
    await enqueue_many(harness, 6_000)
    (middle,) = await enqueue_many(harness, 1, queue="kept")
    await enqueue_many(harness, 6_000)
    (last,) = await enqueue_many(harness, 1, queue="kept")
    await finish_many(harness, 12_000)
    harness.clock.advance(1.0)
    assert await backend.maintenance.prune(NOTHING_KEPT, 20_000) == 12_000
    backend.ran.clear()
    assert await list_ids(backend) == [last, middle, first]
    assert backend.ran["list_jobs"] <= 2


async def test_blocks_are_emptied_in_any_order(harness: Harness, backend: CountingBackend) -> None:
    ids = await enqueue_many(harness, 2_500)
    await finish_many(harness, 2_500)
    for block in (3, 1, 0, 2):
        chosen = tuple(ids[block * 500 : (block + 1) * 500])
        assert set(await delete(backend, JobFilter(ids=chosen), 500)) == set(chosen)
        assert (
            len(await list_ids(backend))
            == (await backend.reads.count_jobs(budget=None))[State.COMPLETED]
        )
    backend.ran.clear()
    assert await list_ids(backend) == ids[:1999:-1]
    assert backend.ran["list_jobs"] <= 2


async def test_a_filter_finds_the_few_among_the_many(
    harness: Harness, backend: CountingBackend
) -> None:
    few = await enqueue_many(harness, 3, queue="red")
    await enqueue_many(harness, 1_400)
    few += await enqueue_many(harness, 2, queue="red")
    assert await list_ids(backend, JobFilter(queue="red"), limit=2) == few[::-1]


async def test_unfinished_jobs_are_found_without_looking_at_the_others(
    harness: Harness, backend: CountingBackend
) -> None:
    await enqueue_many(harness, 2_000)
    await finish_many(harness, 2_000)
    order = sorted(JOB_STATES, key=lambda name: name.startswith("processing"))  # else they get lost
    ids = [await JOB_STATES[name](harness) for name in order]
    backend.ran.clear()
    for state in (State.PENDING, State.SCHEDULED, State.RETRYING, State.PROCESSING):
        found = await backend.reads.list_jobs(JobFilter(states=frozenset({state})))
        assert {job.state for job in found.jobs} == {state}
    assert backend.ran == {"find_unfinished": 4, "list_jobs": 4}
    waiting = frozenset({State.PENDING, State.SCHEDULED, State.RETRYING, State.PROCESSING})
    unfinished = [
        one for one in reversed(ids) if not (await backend.reads.get_job(one)).state.finished
    ]
    assert await list_ids(backend, JobFilter(states=waiting), limit=2) == unfinished


async def test_of_many_unfinished_jobs_the_newest_are_found_first(
    harness: Harness, backend: CountingBackend
) -> None:
    ids = await enqueue_many(harness, MAX_SORTED + 1)
    backend.ran.clear()
    page = await backend.reads.list_jobs(JobFilter(states=frozenset({State.PENDING})))
    assert [job.id for job in page.jobs] == ids[:-101:-1]
    assert backend.ran == {"find_unfinished": 1, "list_jobs": 1}


async def test_more_ids_than_one_script_takes(harness: Harness, backend: CountingBackend) -> None:
    ids = await enqueue_many(harness, 1_300)
    wanted = JobFilter(ids=(*ids, *ids[:10], "nobody", "\ud800"))
    assert await list_ids(backend, wanted) == ids[::-1]
    assert await list_ids(backend, wanted, limit=1_300) == ids[::-1]


async def test_a_page_of_large_payloads_takes_several_answers(
    harness: Harness, backend: CountingBackend
) -> None:
    jobs = [harness.job(payload=b"%d" % n + b"x" * MIB) for n in range(40)]
    await harness.enqueue(*jobs)
    backend.ran.clear()
    page = await backend.reads.list_jobs(limit=40, payloads=True)
    assert [job.payload for job in page.jobs] == [job.payload for job in reversed(jobs)]
    assert page.next is None
    assert backend.ran["list_jobs"] == 3


@pytest.mark.parametrize(("budget", "examined"), [(500, 500), (999, 999), (1_300, 1_300)])
async def test_a_search_stops_at_its_budget_between_scripts(
    harness: Harness, backend: CountingBackend, budget: int, examined: int
) -> None:
    ids = await enqueue_many(harness, 1_300)
    nobodys = JobFilter(tenant="nobody")
    page = await backend.reads.list_jobs(nobodys, budget=budget)
    assert (page.jobs, page.examined) == ([], examined)
    assert (page.next is None) == (budget == len(ids))
    if page.next is not None:
        rest = await backend.reads.list_jobs(nobodys, after=page.next)
        assert (rest.examined, rest.next) == (len(ids) - budget, None)


async def test_a_search_passes_a_bounded_number_of_deleted_jobs(
    harness: Harness, backend: CountingBackend
) -> None:
    """One job is left of each 500: no run of deleted jobs can be skipped."""
    kept = []
    for _ in range(12):
        kept += await enqueue_many(harness, 1, queue="kept")
        await enqueue_many(harness, 499)
    worker = await harness.worker(queues=("default",))
    while taken := await worker.take(500):
        await worker.settle(*(Completed(one.lease) for one in taken))
    harness.clock.advance(1.0)
    await backend.maintenance.prune(NOTHING_KEPT, 6_000)
    found, after, pages = [], None, 0
    while True:
        page = await backend.reads.list_jobs(after=after, budget=100)
        found += [job.id for job in page.jobs]
        pages += 1
        if (after := page.next) is None:
            break
    assert found == kept[::-1]
    assert pages > 1
    assert await list_ids(backend) == kept[::-1]


async def test_dead_letters_of_more_than_one_script_are_grouped(
    harness: Harness, backend: CountingBackend
) -> None:
    await enqueue_many(harness, 1_000)
    await finish_many(harness, 1_000, fails=True)
    for budget in (500, 1_000):
        found = await backend.reads.group_failures(budget=budget)
        assert [group.count for group in found.groups] == [budget]
        assert (found.examined, found.complete) == (budget, budget == 1_000)
        assert (found.groups[0].type, found.groups[0].message) == (FAILURE.type, FAILURE.message)


async def test_the_session_of_an_old_job_is_forgotten_but_not_that_an_attempt_ended_it(
    harness: Harness, backend: CountingBackend
) -> None:
    completed, failed = await harness.add("completed", "failed")
    worker = await harness.worker()
    one, other = await worker.take(2)
    error = replace(FAILURE, session=worker.id, host="here")
    await worker.settle(Completed(one.lease), Failed(other.lease, "permanent", error))
    await worker.close()
    harness.clock.advance(90_000.0)
    await backend.maintenance.prune(Retention(completed=None), 100)
    record = await backend.reads.get_job(completed)
    assert (record.ended_by, record.host) == ("", "")
    assert [attempt.outcome for attempt in record.attempts] == ["completed"]
    record = await backend.reads.get_job(failed)
    assert record.ended_by == worker.id
    assert record.attempts[0].host == "here"


async def test_a_fingerprint_that_is_too_long_is_refused(
    harness: Harness, backend: CountingBackend
) -> None:
    (job_id,) = await harness.add()
    worker = await harness.worker()
    lease = (await worker.take_one()).lease
    error = replace(FAILURE, fingerprint="f" * 256)
    with pytest.raises(Unstorable, match="fingerprint"):
        await backend.consuming.exchange(
            worker.id, 2, [Failed(lease, "permanent", error)], worker.want(0)
        )
    await worker.settle(Failed(lease, "permanent", replace(FAILURE, fingerprint="f" * 255)))
    assert await list_ids(backend, JobFilter(fingerprint="f" * 255)) == [job_id]


async def test_a_pause_that_ended_is_pruned(
    harness: Harness, backend: CountingBackend, redis_server: RunningRedis
) -> None:
    await backend.maintenance.pause_queue("red", paused=True, until=harness.clock.now() + 5.0)
    await backend.maintenance.pause_queue("blue", paused=True)
    harness.clock.advance(5.0)
    await backend.maintenance.prune(NOTHING_KEPT, 1)
    assert redis_server.ask("HKEYS", "{nimburion}:paused_queue") == [b"blue"]
    with pytest.raises(Unstorable):
        await backend.maintenance.pause_queue("red", paused=True, until=float("inf"))


async def test_many_statistics_take_several_scripts(
    harness: Harness, backend: CountingBackend
) -> None:
    start = int(harness.clock.now()) // 60 * 60
    rows = [
        Statistics(
            step=60,
            start=start - 60 * (n % 170),
            queue="default",
            name=f"name-{n // 170}",
            counters=Counters(started=n + 1),
        )
        for n in range(1_020)
    ]
    for source in ("one", "two"):
        await backend.consuming.put_statistics(source, rows)
    assert backend.ran["put_statistics"] == 6
    found = await backend.reads.list_statistics(start - 200 * 60, start + 1, 60)
    assert backend.ran["list_statistics"] == 3
    assert [row.start for row in found] == sorted(row.start for row in rows)
    assert sum(row.counters.started for row in found) == 2 * sum(range(1, 1_021))
    (one,) = await backend.reads.list_statistics(start, start + 60, 60, name="name-3")
    assert one.counters.started == 2 * (3 * 170 + 1)
    assert await backend.reads.list_statistics(start, start + 60, 60, queue="\ud800") == []


async def test_statistics_of_large_replies_are_complete(
    harness: Harness, backend: CountingBackend
) -> None:
    start = int(harness.clock.now()) // 60 * 60
    rows = [
        Statistics(step=60, start=start - 60 * n, queue="q" * 128, name="n", counters=Counters())
        for n in range(100)
    ]
    for source in range(400):
        await backend.consuming.put_statistics(f"{source:0100}", rows)
    backend.ran.clear()
    assert len(await backend.reads.list_statistics(start - 6_000, start + 60, 60)) == 100
    assert backend.ran["list_statistics"] > 1


async def test_the_sources_of_an_interval_are_merged_once(
    harness: Harness, backend: CountingBackend, redis_server: RunningRedis
) -> None:
    start = int(harness.clock.now()) // 60 * 60
    row = Statistics(step=60, start=start, queue="a", name="b", counters=Counters(started=1))
    for source in range(30):
        await backend.consuming.put_statistics(str(source), [row])
    key = f"{{nimburion}}:statistics:60:{start}"
    harness.clock.advance(MERGE_AFTER)
    await backend.maintenance.prune(NOTHING_KEPT, 1)
    assert redis_server.ask("HLEN", key) == 30
    harness.clock.advance(61.0)
    await backend.maintenance.prune(NOTHING_KEPT, 1)
    assert redis_server.ask("HKEYS", key) == [b"a\0b\0"]
    assert redis_server.ask("TTL", key) > 0
    backend.ran.clear()
    await backend.maintenance.prune(NOTHING_KEPT, 1)
    assert backend.ran == {"prune": 1, "continue_flows": 1}  # and no merge
    (found,) = await backend.reads.list_statistics(start, start + 60, 60)
    assert found.counters.started == 30


async def test_statistics_expire(
    harness: Harness, backend: CountingBackend, redis_server: RunningRedis
) -> None:
    start = int(harness.clock.now()) // 60 * 60
    rows = [
        Statistics(step=60, start=at, queue="a", name="b", counters=Counters(started=1))
        for at in (start, start - 86_400)
    ]
    await backend.consuming.put_statistics("one", rows)
    (key,) = [key for key in list_keys(redis_server) if key.startswith("statistics")]
    assert key == f"statistics:60:{start}"
    left = redis_server.ask("TTL", f"{{nimburion}}:{key}")
    assert STEPS[60] - 60 <= left <= STEPS[60] + 60


async def test_holders_are_found_among_more_leases_than_one_script_looks_at(
    harness: Harness, backend: CountingBackend
) -> None:
    await enqueue_many(harness, 30, queue="red")
    limited = await harness.worker(queues=("red",), limits={"mail": 3_000})
    await limited.take(5)
    harness.clock.advance(1.0)
    await enqueue_many(harness, 2_200)
    other = await harness.worker(limits={"mail": 3_000})
    while await other.take(500):
        harness.clock.advance(1.0)
    await (await harness.worker(queues=("red",), limits={"mail": 3_000})).take(25)
    (limit,) = await backend.reads.list_limits()
    assert (limit.in_use, len(limit.holders)) == (2_230, 20)
    assert [holder.session for holder in limit.holders[:5]] == [limited.id] * 5
    assert backend.ran["list_limits"] == 2
    assert (await backend.reads.explain_job(limit.holders[0].job_id)).limits == [limit]


async def test_a_delete_goes_on_past_what_it_leaves(
    harness: Harness, backend: CountingBackend
) -> None:
    for _ in range(3):
        await enqueue_many(harness, 300)
        await enqueue_many(harness, 300, queue="red")
    await finish_many(harness, 1_800)
    assert len(await delete(backend, JobFilter(queue="red"), 700)) == 700
    assert len(await delete(backend, JobFilter(queue="red"), 700)) == 200
    assert await delete(backend, JobFilter(queue="red"), 700) == []
    assert (await backend.reads.count_jobs(budget=None))[State.COMPLETED] == 900
    assert len(await list_ids(backend)) == 900


async def test_a_replay_stops_at_its_limit_and_reports_more(
    harness: Harness, backend: CountingBackend
) -> None:
    ids = await enqueue_many(harness, 1_300)
    await finish_many(harness, 1_300, fails=True)
    first = await replay(backend, EVERY_JOB, 700)
    assert first.ids == ids[:599:-1]
    second = await replay(backend, EVERY_JOB, 600, first.next)
    assert (second.ids, second.next) == (ids[599::-1], None)
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 1_300


async def test_many_that_are_due_count_as_pending_before_they_are_promoted(
    harness: Harness, backend: CountingBackend
) -> None:
    await harness.enqueue(*(harness.job(after=5.0 + n % 2) for n in range(2_400)))
    harness.clock.advance(10.0)
    counts = await backend.reads.count_jobs(budget=None)
    assert (counts[State.PENDING], counts[State.SCHEDULED]) == (2_400, 0)
    (queue,) = await backend.reads.list_queues()
    assert (queue.size, queue.scheduled, queue.oldest_age) == (2_400, 0, 5.0)


async def test_a_due_job_is_the_oldest_before_it_is_promoted(harness: Harness) -> None:
    await harness.put(harness.job(after=5.0))
    harness.clock.advance(8.0)
    await harness.add()
    (queue,) = await harness.backend.reads.list_queues()
    assert (queue.size, queue.oldest_age) == (2, 3.0)


async def test_prune_stops_at_its_limit(harness: Harness, backend: CountingBackend) -> None:
    await enqueue_many(harness, 1_800)
    await finish_many(harness, 1_800)
    keep = Retention(completed=None, completed_max=100, results=None)
    assert [
        await backend.maintenance.prune(keep, 1_200),
        await backend.maintenance.prune(keep, 1_200),
    ] == [1_200, 500]


async def test_nothing_is_left_of_what_was_forgotten(
    harness: Harness, backend: CountingBackend, redis_server: RunningRedis
) -> None:
    """Jobs of every kind, dead sessions and keys whose time is past: no byte of them stays."""
    for build in JOB_STATES.values():
        await build(harness)
    large = harness.job(payload=b"x" * 10_000, options=JobOptions(unique_key="k", unique_for=5.0))
    await harness.put(large)
    await put_schedule(backend, ScheduleRecord(name="nightly", spec=b"{}"))
    await backend.producing.fire(
        "nightly", None, 60.0, harness.job(options=JobOptions(unique_key="l")), "allow"
    )
    worker = await harness.worker()
    harness.clock.advance(7_200.0)
    await backend.consuming.rescue(100, max_lost=1)
    for job in (await backend.reads.list_jobs(limit=1_000)).jobs:
        if not job.state.finished:
            await backend.producing.cancel(job.id)
    await backend.maintenance.pause_queue("default", paused=True)
    await backend.maintenance.pause_queue("default", paused=False)
    await delete_schedule(backend, "nightly")
    harness.clock.advance(90_000.0)
    assert await backend.maintenance.prune(NOTHING_KEPT, 1_000) > len(JOB_STATES)
    with pytest.raises(JobNotFound):
        await backend.reads.get_job(large.id)
    assert worker.id not in {one.id for one in await backend.reads.list_sessions()}
    left = {
        "meta",
        "counters",
        "lane_number",
        "lane_name",
        "lane_counts",
        "pruned_blocks",
        "statistics_merged",
    }
    assert list_keys(redis_server) == left
    assert set((await backend.reads.count_jobs(budget=None)).values()) == {0}


def list_keys(server: RunningRedis) -> set[str]:
    keys: Sequence[bytes] = server.ask("KEYS", "*")
    return {key.decode().partition("}:")[2] for key in keys}


async def test_a_reason_may_be_empty_long_or_none(
    harness: Harness, backend: CountingBackend
) -> None:
    (waits,) = await harness.add()
    await backend.producing.cancel(waits)
    reasons = ["", "r" * 65_534]
    ids = await enqueue_many(harness, 3)
    worker = await harness.worker()
    leases = [one.lease for one in await worker.take(3)]
    with pytest.raises(Unstorable, match="reason"):
        await backend.consuming.exchange(
            worker.id, 2, [Cancelled(leases[0], "r" * 65_535)], worker.want(0)
        )
    await worker.settle(*(Cancelled(*one) for one in zip(leases, reasons, strict=False)))
    records = [await backend.reads.get_job(job_id) for job_id in (waits, *ids[:2])]
    assert [record.reason for record in records] == [None, *reasons]
    assert await list_ids(backend, JobFilter(reason="")) == ids[:1]


async def test_names_that_cannot_be_stored_match_nothing(
    harness: Harness, backend: CountingBackend
) -> None:
    await harness.add()
    odd = "\ud800"
    assert await list_ids(backend, JobFilter(queue=odd)) == []
    assert await delete(backend, JobFilter(name=odd), 10) == []
    assert set((await backend.reads.count_jobs(odd)).values()) == {0}
    assert await delete_schedule(backend, odd) is False
    with pytest.raises(JobNotFound):
        await backend.reads.get_job(odd)
    with pytest.raises(JobNotFound):
        await backend.producing.cancel(odd)
    with pytest.raises(Unstorable):
        await put_schedule(backend, ScheduleRecord(name=odd, spec=b"{}"))
    with pytest.raises(Unstorable):
        await backend.producing.enqueue([NewJob("a", "mail", odd, b"{}")])


@pytest.mark.parametrize("after", ["", "-1", "1.0", "٣", "no cursor"])
async def test_a_foreign_cursor_is_rejected(backend: CountingBackend, after: str) -> None:
    for call in (backend.reads.list_jobs(after=after), replay(backend, EVERY_JOB, 1, after)):
        with pytest.raises(InvalidJob):
            await call


@pytest.mark.parametrize("after", ["0", "1", "9" * 18])
async def test_a_cursor_beyond_all_jobs_is_one(harness: Harness, after: str) -> None:
    (job_id,) = await harness.add()
    page = await harness.backend.reads.list_jobs(after=after)
    assert [job.id for job in page.jobs] == ([job_id] if len(after) > 1 else [])


_COUNTING = """
local longest, server = 0, redis
local redis = { call = function(...)
  local reply = server.call(...)
  longest = math.max(longest, type(reply) == 'table' and #reply or 0)
  return reply
end }
"""
"""Makes a script count: `longest` is the number of elements of the longest reply to a command."""


async def test_opening_a_handle_reads_no_jobs(redis_server: RunningRedis, harness: Harness) -> None:
    """The server would answer nobody else meanwhile: with a million jobs for seconds."""
    await enqueue_many(harness, 200)
    script = build_scripts(flagged=False)["open"]
    text, end = script.text.decode().rstrip().rsplit("\nreturn ", 1)
    text = f"{_COUNTING}{text}\nlocal _ = {end}\nreturn longest"
    keys = [f"{{nimburion}}:{key}" for key in script.keys]
    assert 0 < redis_server.ask("EVAL", text, len(keys), *keys, "", "", "1") < 50
