"""Limits by key: how many jobs of one key run or start, and which job of a key is next."""

from __future__ import annotations

import pytest

from nimburion.core.diagnosis.explanations import CauseKind, find_causes
from nimburion.core.job import WAITING, JobOptions, NewJob, State, sort_states
from nimburion.core.lease import Lease
from nimburion.core.limits import KeyUse, LimitRule
from nimburion.core.maintenance import Retention
from nimburion.core.rate_limits import RateLimit
from nimburion.core.settlement import (
    Completed,
    RateLimited,
    Released,
    Settlement,
    Spent,
)
from nimburion.testing.contract.consuming.concurrency_limits import ENDING
from nimburion.testing.contract.harness import HandDrivenWorker, Harness, ids, list_uses

ONE_AT_A_TIME = {"mail": {"customer": LimitRule(concurrency=1)}}
TWO_AT_A_TIME = {"mail": {"customer": LimitRule(concurrency=2)}}
ONE_A_SECOND = {"mail": {"customer": LimitRule(rate=RateLimit("1/s", interval=1_000_000, burst=1))}}
FULL_AND_SLOW = {
    "mail": {
        "customer": LimitRule(concurrency=1),
        "region": LimitRule(rate=RateLimit("1/s", interval=1_000_000, burst=1)),
    }
}


def make(harness: Harness, job_id: str, cost: int | None = None, **keys: str) -> NewJob:
    """Return a job with keys of limits. Without any, its first letter is its key `customer`."""
    options = JobOptions(limit_keys=keys or {"customer": job_id[0]}, cost=cost)
    return harness.job(job_id, options=options)


async def add(harness: Harness, *job_ids: str) -> None:
    """Enqueue jobs whose first letter is their customer."""
    await harness.enqueue(*(make(harness, job_id) for job_id in job_ids))


async def read_uses(harness: Harness) -> dict[str, tuple[int, int]]:
    """Return by key how many jobs run, and how many are parked."""
    return {use.key: (use.in_use, use.parked) for use in await list_uses(harness.backend)}


async def end(worker: HandDrivenWorker, *settlements: Settlement) -> list[str]:
    """Settle and take more; return the ids."""
    return ids((await worker.exchange(*settlements, want=worker.want(9))).deliveries)


async def take_when_due(
    harness: Harness, worker: HandDrivenWorker
) -> list[tuple[float, list[str]]]:
    """Make an exchange at each time that the replies name, at most 20. Return when, and the ids."""
    start, taken = harness.clock.now(), []
    for _ in range(20):
        reply = await worker.exchange(want=worker.want(9))
        taken.append((round(reply.now - start, 6), ids(reply.deliveries)))
        if reply.next_due is None:
            break
        harness.clock.advance(reply.next_due - reply.now)
    return taken


class KeyedLimits:
    """Limits by key."""

    async def test_each_key_has_its_own_limit(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1", "a3", "b2", "c1")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["a1", "b1", "c1"]
        assert reply.waiting == []
        assert await read_uses(harness) == {"a": (1, 2), "b": (1, 1), "c": (1, 0)}

    async def test_jobs_of_a_key_run_in_order(self, harness: Harness) -> None:
        """The exchange that settles one reserves the next of its key."""
        await add(harness, "a1", "b1", "a2", "b2", "a3")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        lease = (await worker.take(9))[0].lease
        ran = []
        while True:
            reply = await worker.exchange(Completed(lease), want=worker.want(9))
            if not reply.deliveries:
                break
            lease = reply.deliveries[0].lease
            ran.append(lease.job_id)
            if lease.job_id == "a2":
                await add(harness, "a0")
        assert ran == ["a2", "a3", "a0"]
        assert await read_uses(harness) == {"b": (1, 1)}

    async def test_a_limit_holds_over_the_whole_fleet(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3", "b1")
        first = await harness.worker(keyed=TWO_AT_A_TIME)
        second = await harness.worker(keyed=TWO_AT_A_TIME)
        assert ids(await first.take(1)) == ["a1"]
        assert ids(await second.take(9)) == ["a2", "b1"]
        assert await first.take(9) == []

    @pytest.mark.parametrize("how", ENDING)
    async def test_every_end_of_a_lease_lets_the_next_job_of_its_key_run(
        self, harness: Harness, how: str
    ) -> None:
        await add(harness, "a1", "a2")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        lease = (await worker.take(9))[0].lease
        assert len(await end(worker, ENDING[how](lease))) == 1
        assert (await read_uses(harness))["a"][0] == 1

    async def test_a_rescue_gives_the_place_of_a_key_back(self, harness: Harness) -> None:
        await add(harness, "a1", "a2")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        await worker.take(9)
        await harness.lose(worker)
        other = await harness.worker(keyed=ONE_AT_A_TIME)
        assert ids(await other.take(9)) == ["a1"]
        assert await read_uses(harness) == {"a": (1, 1)}

    async def test_release_and_close_give_the_place_of_a_key_back(self, harness: Harness) -> None:
        await add(harness, "a1", "a2")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        lease = (await worker.take(9))[0].lease
        await harness.backend.consuming.release(worker.id, [lease])
        assert await read_uses(harness) == {}
        await worker.take(9)
        await worker.close()
        other = await harness.worker(keyed=ONE_AT_A_TIME)
        assert ids(await other.take(9)) == ["a1"]

    async def test_a_repeat_counts_once(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        want = worker.want(9)
        for _ in range(3):
            reply = await harness.backend.consuming.exchange(worker.id, 1, [], want)
            assert ids(reply.deliveries) == ["a1", "b1"]
        assert await read_uses(harness) == {"a": (1, 1), "b": (1, 0)}

    async def test_what_a_repeat_returns_frees_its_key(self, harness: Harness) -> None:
        await add(harness, "a1", "b1", "b2")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        await worker.take(9)
        small = worker.want(9, max_bytes=1)
        assert ids(
            (await harness.backend.consuming.exchange(worker.id, 1, [], small)).deliveries
        ) == ["a1"]
        assert (await read_uses(harness))["a"] == (1, 0)
        assert ids(await worker.take(9)) == ["b1"]

    async def test_a_parked_job_is_pending_and_says_why(self, harness: Harness) -> None:
        await add(harness, "a1", "a2")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        await worker.take(9)
        assert await harness.state("a2") is State.PENDING
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 1
        (queue,) = await harness.backend.reads.list_queues()
        assert (queue.size, queue.processing) == (1, 1)
        facts = await harness.backend.reads.explain_job("a2")
        assert facts.keys == [KeyUse(limit="customer", key="a", in_use=1, parked=1)]
        assert find_causes(facts)[0].kind is CauseKind.KEY_FULL

    async def test_a_parked_job_can_be_cancelled(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        lease = (await worker.take(9))[0].lease
        await harness.backend.producing.cancel("a2")
        assert await harness.state("a2") is State.CANCELLED
        assert await end(worker, Completed(lease)) == ["a3"]

    async def test_the_turn_of_a_cancelled_job_passes_on(self, harness: Harness) -> None:
        """A job that returned to its lane is cancelled before a worker took it."""
        await add(harness, "a1", "a2", "a3")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        lease = (await worker.take(9))[0].lease
        await worker.settle(Completed(lease))
        await harness.backend.producing.cancel("a2")
        assert ids(await worker.take(9)) == ["a3"]

    async def test_a_parked_job_can_be_replaced(self, harness: Harness) -> None:
        """It waits as what replaced it does, with the keys of that one."""
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        for job_id, customer in (("1", "a"), ("2", "a"), ("3", "b")):
            options = JobOptions(
                limit_keys={"customer": customer},
                unique_key=None if job_id == "1" else "k",
                on_duplicate="replace",
            )
            await harness.enqueue(harness.job(job_id, options=options))
            if job_id != "3":
                await worker.take(9)
        assert await read_uses(harness) == {"a": (1, 0)}
        assert ids(await worker.take(9)) == ["2"]
        assert await read_uses(harness) == {"a": (1, 0), "b": (1, 0)}

    async def test_a_job_of_higher_priority_takes_the_turn(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        lease = (await worker.take(9))[0].lease
        await harness.enqueue(
            harness.job("a9", priority=9, options=JobOptions(limit_keys={"customer": "a"}))
        )
        for expected in ("a9", "a2", "a3"):
            reply = await worker.exchange(Completed(lease), want=worker.want(9))
            assert ids(reply.deliveries) == [expected]
            lease = reply.deliveries[0].lease
        await worker.settle(Completed(lease))
        assert await read_uses(harness) == {}

    async def test_a_shared_limit_counts_several_names(self, harness: Harness) -> None:
        keys = {"smtp": ""}
        limit = {"smtp": LimitRule(concurrency=2)}
        for job_id, name in (("a", "mail"), ("b", "post"), ("c", "mail"), ("d", "post")):
            options = JobOptions(limit_keys=keys)
            await harness.enqueue(harness.job(job_id, name=name, options=options))
        worker = await harness.worker(names=("mail", "post"), keyed={"mail": limit, "post": limit})
        a, b = await worker.take(9)
        assert await end(worker, Completed(b.lease)) == ["c"]
        assert await end(worker, Completed(a.lease)) == ["d"]

    @pytest.mark.parametrize("own", ["maximum", "rate", "another key"])
    async def test_a_place_of_a_shared_key_goes_to_a_name_with_limits_of_its_own(
        self, harness: Harness, own: str
    ) -> None:
        """The exchange that settles the last job of a key reserves the parked job of another name,
        though no job of this name waited in its lane before."""
        smtp = {"smtp": LimitRule(concurrency=1)}
        post = smtp | ({"region": LimitRule(concurrency=1)} if own == "another key" else {})
        worker = await harness.worker(
            names=("mail", "post"),
            keyed={"mail": smtp, "post": post},
            limits={"post": 1} if own == "maximum" else None,
            rates={"post": RateLimit("1/s", 1_000_000, burst=1)} if own == "rate" else None,
        )
        options = JobOptions(limit_keys={"smtp": "", "region": "eu"})
        await harness.enqueue(harness.job("first", name="mail", options=options))
        (first,) = await worker.take(9)
        await harness.enqueue(harness.job("second", name="post", options=options))
        assert await worker.take(9) == []
        assert await end(worker, Completed(first.lease)) == ["second"]

    async def test_a_job_without_a_key_is_not_limited(self, harness: Harness) -> None:
        await harness.add("x", "y")
        await add(harness, "a1", "a2")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        assert ids(await worker.take(9)) == ["x", "y", "a1"]

    @pytest.mark.parametrize("tenant", [None, "t"])
    async def test_a_job_that_passes_its_turn_on_hides_no_other(
        self, harness: Harness, tenant: str | None
    ) -> None:
        """If the job whose turn it is now does not fit in the same exchange, its lane waits."""
        both = {"a": LimitRule(concurrency=1), "b": LimitRule(concurrency=1)}
        worker = await harness.worker(keyed={"mail": both})

        async def enqueue(job_id: str, tenant: str | None = None, **keys: str) -> None:
            options = JobOptions(tenant=tenant, limit_keys=keys)
            await harness.enqueue(harness.job(job_id, options=options))

        await enqueue("of-b", b="1")
        (of_b,) = (await worker.exchange(want=worker.want(9))).deliveries
        await enqueue("of-both", tenant, a="1", b="1")
        assert await worker.take(9) == []
        await enqueue("of-a", a="1")
        assert ids(await worker.take(9)) == ["of-a"]
        await enqueue("next-of-b", b="1")
        assert await worker.take(9) == []
        reply = await worker.exchange(Completed(of_b.lease), want=worker.want(9))
        assert ids(reply.deliveries) == ["next-of-b"] or reply.waiting
        assert ids([*reply.deliveries, *await worker.take(9)]) == ["next-of-b"]

    async def test_a_parked_job_holds_its_unique_key(self, harness: Harness) -> None:
        """Parked jobs wait, so they hold a key that counts while jobs wait."""
        limits = {"mail": {"customer": LimitRule(1)}}
        worker = await harness.worker(keyed=limits)
        options = JobOptions(
            limit_keys={"customer": "a"},
            unique_key="k",
            unique_while=sort_states(WAITING),
        )
        await harness.enqueue(make(harness, "1", customer="a"))
        assert ids(await worker.take(9)) == ["1"]
        await harness.enqueue(harness.job("2", options=options))
        assert await worker.take(9) == []
        (other,) = await harness.backend.producing.enqueue([harness.job("3", options=options)])
        assert (other.id, other.outcome) == ("2", "taken")

    async def test_several_limits_of_one_job(self, harness: Harness) -> None:
        """A job starts when each of its keys has room. Its turn at the others passes on."""
        limits = {"mail": {"customer": LimitRule(1), "region": LimitRule(2)}}
        await harness.enqueue(
            make(harness, "1", customer="a", region="eu"),
            make(harness, "2", customer="a", region="us"),
            make(harness, "3", customer="b", region="eu"),
            make(harness, "4", customer="c", region="eu"),
            make(harness, "5", customer="b", region="us"),
        )
        worker = await harness.worker(keyed=limits)
        one, three = await worker.take(9)
        assert (one.lease.job_id, three.lease.job_id) == ("1", "3")
        ran = {*await end(worker, Completed(one.lease)), *ids(await worker.take(9))}
        assert ran == {"2", "4"}
        ran = {*await end(worker, Completed(three.lease)), *ids(await worker.take(9))}
        assert ran == {"5"}

    async def test_the_turn_of_a_job_that_is_parked_for_another_key_passes_on(
        self, harness: Harness
    ) -> None:
        """A region has room again. The first job that waits for it has a customer that is full."""
        limits = {"mail": {"customer": LimitRule(1), "region": LimitRule(1)}}
        await harness.enqueue(
            make(harness, "1", customer="a", region="eu"),
            make(harness, "2", customer="b", region="eu"),
            make(harness, "3", customer="c", region="eu"),
            make(harness, "4", customer="b", region="us"),
        )
        worker = await harness.worker(keyed=limits)
        one, four = await worker.take(9)
        assert (one.lease.job_id, four.lease.job_id) == ("1", "4")
        assert [*await end(worker, Completed(one.lease)), *ids(await worker.take(9))] == ["3"]
        assert await end(worker, Completed(four.lease)) == []

    async def test_a_paused_queue_holds_back_only_its_own_jobs(self, harness: Harness) -> None:
        options = JobOptions(limit_keys={"customer": "a"})
        for job_id, queue in (("1", "red"), ("2", "red"), ("3", "blue")):
            await harness.enqueue(harness.job(job_id, queue=queue, options=options))
        worker = await harness.worker(queues=("red", "blue"), keyed=ONE_AT_A_TIME)
        lease = (await worker.take(9))[0].lease
        await harness.backend.maintenance.pause_queue("red", paused=True)
        assert await end(worker, Completed(lease)) == ["3"]

    async def test_changed_limits_are_considered_at_once(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3", "a4")
        first = await harness.worker(keyed=ONE_AT_A_TIME)
        await first.take(9)
        await harness.worker(keyed=TWO_AT_A_TIME)
        assert ids(await first.take(9)) == ["a2"]
        await harness.worker(names=("mail",))
        assert ids(await first.take(9)) == ["a3", "a4"]

    async def test_a_changed_limit_keeps_the_order_of_many_parked_jobs(
        self, harness: Harness
    ) -> None:
        """A backend may return parked jobs to their lane in several steps."""
        await harness.enqueue(*(make(harness, f"a{n}") for n in range(700)))
        first = await harness.worker(keyed=ONE_AT_A_TIME)
        assert ids(await first.take(1)) == ["a0"]
        assert await first.take(1) == []
        assert await read_uses(harness) == {"a": (1, 699)}
        second = await harness.worker(keyed=TWO_AT_A_TIME)
        await add(harness, "a-late")
        reply = await second.exchange(want=second.want(9))
        while not reply.deliveries:
            assert reply.waiting
            reply = await second.exchange(want=second.want(9))
        assert ids(reply.deliveries) == ["a1"]
        assert await end(second, Completed(reply.deliveries[0].lease)) == ["a2"]

    async def test_pruning_keeps_keys_in_use(self, harness: Harness) -> None:
        await add(harness, "a1", "b1")
        worker = await harness.worker(keyed=ONE_AT_A_TIME)
        a, b = [delivery.lease for delivery in await worker.take(9)]
        await worker.settle(Completed(b))
        await harness.backend.maintenance.prune(Retention(), 10)
        await add(harness, "a2")
        assert await worker.take(9) == []
        assert await end(worker, Completed(a)) == ["a2"]
        assert await read_uses(harness) == {"a": (1, 0)}

    async def test_many_keys_are_at_rest_in_the_end(self, harness: Harness) -> None:
        jobs = [make(harness, f"{'abcdefg'[n % 7]}{n}") for n in range(100)]
        await harness.backend.producing.enqueue(jobs)
        workers = [await harness.worker(keyed=ONE_AT_A_TIME) for _ in range(3)]
        held: list[list[Lease]] = [[], [], []]
        ran: dict[str, list[int]] = {}
        for turn in range(300):
            worker, mine = workers[turn % 3], held[turn % 3]
            reply = await worker.exchange(*map(Completed, mine), want=worker.want(4))
            held[turn % 3] = [delivery.lease for delivery in reply.deliveries]
            running = [lease.job_id[0] for leases in held for lease in leases]
            assert len(running) == len(set(running))
            for job_id in ids(reply.deliveries):
                ran.setdefault(job_id[0], []).append(int(job_id[1:]))
        assert sum(map(len, ran.values())) == 100
        assert all(numbers == sorted(numbers) for numbers in ran.values())
        assert await read_uses(harness) == {}


class KeyedRates:
    """Rates by key."""

    async def test_each_key_has_its_own_rate(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "b1", "a3", "b2")
        worker = await harness.worker(keyed=ONE_A_SECOND)
        assert await take_when_due(harness, worker) == [
            (0.0, ["a1", "b1"]),
            (1.0, ["a2", "b2"]),
            (2.0, ["a3"]),
        ]

    async def test_a_rate_for_which_no_job_waits_is_no_reason_to_look_again(
        self, harness: Harness
    ) -> None:
        await add(harness, "a1", "a2")
        worker = await harness.worker(keyed=ONE_A_SECOND)
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["a1"]
        assert reply.next_due == reply.now + 1.0
        await harness.backend.producing.cancel("a2")
        assert (await worker.exchange(want=worker.want(9))).next_due is None

    async def test_costs_of_single_jobs(self, harness: Harness) -> None:
        limits = {"mail": {"budget": LimitRule(rate=RateLimit("1/s", 1_000_000, burst=3))}}
        for n, cost in enumerate((3, 2, 1, None)):
            await harness.enqueue(make(harness, f"{n}", cost, budget=""))
        worker = await harness.worker(keyed=limits)
        taken = await take_when_due(harness, worker)
        ran = [(seconds, job_ids) for seconds, job_ids in taken if job_ids]
        assert ran == [(0.0, ["0"]), (2.0, ["1"]), (3.0, ["2"]), (4.0, ["3"])]

    async def test_a_refusal_stops_one_key(self, harness: Harness) -> None:
        await add(harness, "a1", "b1", "a2", "b2")
        worker = await harness.worker(keyed=ONE_A_SECOND)
        a, b = await worker.take(9)
        await worker.settle(RateLimited(a.lease, 30.0), Completed(b.lease))
        harness.clock.advance(1.0)
        assert ids(await worker.take(9)) == ["b2"]
        assert await worker.take(9) == []
        harness.clock.advance(28.5)
        await worker.heartbeat()
        assert await worker.take(9) == []
        harness.clock.advance(0.5)
        assert ids(await worker.take(9)) == ["a1"]

    async def test_units_of_a_key_are_spent_and_returned(self, harness: Harness) -> None:
        await add(harness, "a1", "a2", "a3")
        worker = await harness.worker(keyed=ONE_A_SECOND)
        lease = (await worker.take(9))[0].lease
        await worker.settle(Spent(lease, 2))
        harness.clock.advance(2.5)
        assert await worker.take(9) == []
        harness.clock.advance(0.5)
        lease = (await worker.take(9))[0].lease
        assert lease.job_id == "a2"
        assert await end(worker, Released(lease, 9.0, unstarted=True)) == ["a3"]

    async def test_a_turn_at_a_rate_without_units_waits_for_the_next_one(
        self, harness: Harness
    ) -> None:
        """The job whose turn it is has a customer that is full, and the units of its region were
        spent meanwhile."""
        await harness.enqueue(*(make(harness, f"{c}1", customer=c, region="eu") for c in "abc"))
        worker = await harness.worker(keyed=FULL_AND_SLOW)
        (a1,) = await worker.take(9)
        harness.clock.advance(1.0)
        assert await worker.take(0) == []
        await harness.enqueue(
            harness.job("b0", priority=9, options=JobOptions(limit_keys={"customer": "b"}))
        )
        assert ids(await worker.take(1)) == ["b0"]
        assert await end(worker, Spent(a1.lease, 3)) == []
        assert await worker.take(9) == []
        harness.clock.advance(4.0)
        assert ids(await worker.take(9)) == ["c1"]

    async def test_a_rate_and_a_maximum_of_different_keys(self, harness: Harness) -> None:
        for n, customer in enumerate("aabb"):
            await harness.enqueue(make(harness, f"{n}", customer=customer, region="eu"))
        worker = await harness.worker(keyed=FULL_AND_SLOW)
        ran: list[str] = []
        held: list[Lease] = []
        for turn in range(40):
            settle = map(Completed, held) if turn % 4 == 3 else ()
            reply = await worker.exchange(*settle, want=worker.want(9))
            held = ([] if turn % 4 == 3 else held) + [one.lease for one in reply.deliveries]
            ran += ids(reply.deliveries)
            harness.clock.advance(0.5)
            if turn % 20 == 0:
                await worker.heartbeat()
        assert sorted(ran) == ["0", "1", "2", "3"]
        assert ran.index("0") < ran.index("1")
        assert ran.index("2") < ran.index("3")
        assert await read_uses(harness) == {}
