"""The exact order of reserved jobs: level of the queue with ageing, priority, due time, enqueue
order. It is a merge of the heads of the lanes, not a sort of all jobs."""

from __future__ import annotations

from random import Random

import pytest

from nimburion.core.exchange import Lane, QueueOptions
from nimburion.core.job import NewJob
from nimburion.core.settlement import Released, Retried
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness, ids

QUEUES = ("red", "blue", "green")
NAMES = ("mail", "post", "scan")


class Ordering:
    """The order of a reply."""

    async def test_equal_jobs_come_in_enqueue_order(self, harness: Harness) -> None:
        """Ids do not decide the order, because clients make them."""
        await harness.add("c", "a", "b")
        await harness.add("0")
        assert ids(await (await harness.worker()).take(9)) == ["c", "a", "b", "0"]

    async def test_job_priority_orders_a_lane(self, harness: Harness) -> None:
        for priority in (5, -127, 127, 0, 9, 7, -1, 3, 1):
            await harness.put(harness.job(f"p{priority}", priority=priority))
        taken = ids(await (await harness.worker()).take(9))
        assert taken == ["p127", "p9", "p7", "p5", "p3", "p1", "p0", "p-1", "p-127"]

    async def test_job_priority_orders_the_lanes_of_a_queue(self, harness: Harness) -> None:
        await harness.put(harness.job("low", name="mail", priority=3))
        await harness.put(harness.job("high", name="post", priority=7))
        assert ids(await (await harness.worker(names=("mail", "post"))).take(9)) == ["high", "low"]

    async def test_due_time_orders_equal_priorities(self, harness: Harness) -> None:
        now = harness.clock.now()
        for job_id, ago in (("young", 1.0), ("oldest", 9.0), ("old", 5.0)):
            await harness.put(harness.job(job_id, at=now - ago))
        assert ids(await (await harness.worker()).take(9)) == ["oldest", "old", "young"]

    async def test_due_time_orders_across_lanes(self, harness: Harness) -> None:
        now = harness.clock.now()
        await harness.put(harness.job("young", name="mail", at=now - 1.0))
        await harness.put(harness.job("old", name="post", at=now - 5.0))
        assert ids(await (await harness.worker(names=("mail", "post"))).take(9)) == ["old", "young"]

    async def test_enqueue_order_decides_across_lanes_when_all_else_is_equal(
        self, harness: Harness
    ) -> None:
        names = ("scan", "mail", "post", "mail", "scan")
        for n, name in enumerate(names):
            await harness.put(harness.job(f"{n}", name=name))
        assert ids(await (await harness.worker(names=NAMES)).take(9)) == ["0", "1", "2", "3", "4"]

    async def test_a_job_that_became_due_is_ordered_by_its_due_time(self, harness: Harness) -> None:
        await harness.put(harness.job("planned", after=5.0))
        harness.clock.advance(10.0)
        await harness.add("fresh")
        assert ids(await (await harness.worker()).take(9)) == ["planned", "fresh"]

    async def test_priority_comes_before_due_time(self, harness: Harness) -> None:
        await harness.put(harness.job("old", at=harness.clock.now() - 1_000.0, priority=4))
        await harness.put(harness.job("urgent", priority=6))
        assert ids(await (await harness.worker()).take(9)) == ["urgent", "old"]

    async def test_a_queue_of_higher_priority_comes_first(self, harness: Harness) -> None:
        """The priorities of the jobs do not matter."""
        await harness.put(harness.job("low", queue="blue", priority=9))
        await harness.put(harness.job("high", queue="red", priority=0))
        worker = await harness.worker(queues=("blue", "red"))
        assert ids(await worker.take(9, queues={"red": QueueOptions(priority=1)})) == [
            "high",
            "low",
        ]

    async def test_a_queue_may_have_a_priority_below_zero(self, harness: Harness) -> None:
        await harness.put(harness.job("low", queue="blue"))
        await harness.put(harness.job("plain", queue="red"))
        worker = await harness.worker(queues=("blue", "red"))
        options = {"blue": QueueOptions(priority=-1)}
        assert ids(await worker.take(9, queues=options)) == ["plain", "low"]

    async def test_the_queue_options_are_those_of_the_request(self, harness: Harness) -> None:
        """Two workers may rank the same queues differently."""
        await harness.add("a", "b", queue="blue")
        await harness.add("c", "d", queue="red")
        worker = await harness.worker(queues=("blue", "red"))
        assert ids(await worker.take(1, queues={"red": QueueOptions(priority=1)})) == ["c"]
        assert ids(await worker.take(1, queues={"blue": QueueOptions(priority=1)})) == ["a"]

    @pytest.mark.parametrize(
        ("waited", "first"),
        [
            (59.0, "fresh"),
            (60.0, "fresh"),
            (119.999, "fresh"),
            (120.0, "waited"),
            (600.0, "waited"),
        ],
    )
    async def test_a_head_ages_one_level_for_each_whole_span(
        self, harness: Harness, waited: float, first: str
    ) -> None:
        """At one level below, it draws level after 60 s (then priority decides) and is ahead
        after 120 s."""
        await harness.put(harness.job("waited", queue="low", priority=0))
        harness.clock.advance(waited)
        await harness.put(harness.job("fresh", queue="high", priority=9))
        worker = await harness.worker(queues=("low", "high"))
        options = {"high": QueueOptions(priority=1)}
        assert ids(await worker.take(1, queues=options, ageing=60.0)) == [first]

    async def test_ageing_of_zero_is_off(self, harness: Harness) -> None:
        await harness.put(harness.job("waited", queue="low", priority=9))
        harness.clock.advance(1_000_000.0)
        await harness.put(harness.job("fresh", queue="high", priority=0))
        worker = await harness.worker(queues=("low", "high"))
        assert ids(await worker.take(1, queues={"high": QueueOptions(priority=1)})) == ["fresh"]

    async def test_age_is_counted_from_the_due_time(self, harness: Harness) -> None:
        """A job that was scheduled long ago does not count as old."""
        await harness.put(harness.job("planned", queue="low", priority=9, after=600.0))
        harness.clock.advance(605.0)
        await harness.put(harness.job("fresh", queue="high", priority=0))
        worker = await harness.worker(queues=("low", "high"))
        options = {"high": QueueOptions(priority=1)}
        assert ids(await worker.take(1, queues=options, ageing=60.0)) == ["fresh"]

    async def test_ageing_is_looked_at_anew_for_every_head(self, harness: Harness) -> None:
        """The age of a head applies to that job only, not to the jobs behind it."""
        await harness.put(harness.job("old", queue="low"))
        harness.clock.advance(125.0)
        await harness.put(harness.job("young", queue="low"))
        await harness.put(harness.job("fresh", queue="high"))
        worker = await harness.worker(queues=("low", "high"))
        options = {"high": QueueOptions(priority=1)}
        taken = ids(await worker.take(9, queues=options, ageing=60.0))
        assert taken == ["old", "fresh", "young"]

    async def test_an_old_job_behind_a_fresh_urgent_one_does_not_lift_it(
        self, harness: Harness
    ) -> None:
        """A lane is ordered by priority; only its head is compared with other lanes."""
        await harness.put(harness.job("old", queue="low", priority=1))
        harness.clock.advance(600.0)
        await harness.put(harness.job("urgent", queue="low", priority=9))
        await harness.put(harness.job("fresh", queue="high", priority=5))
        worker = await harness.worker(queues=("low", "high"))
        options = {"high": QueueOptions(priority=1)}
        taken = ids(await worker.take(9, queues=options, ageing=60.0))
        assert taken == ["fresh", "urgent", "old"]

    async def test_a_run_behind_a_good_head_is_taken_in_one_piece(self, harness: Harness) -> None:
        """After the new urgent job was taken, the old jobs behind it come before other lanes."""
        await harness.put(harness.job("old-1", queue="low", priority=1))
        await harness.put(harness.job("old-2", queue="low", priority=1))
        harness.clock.advance(600.0)
        await harness.put(harness.job("urgent", queue="low", priority=9))
        await harness.put(harness.job("fresh-1", queue="high", priority=5))
        await harness.put(harness.job("fresh-2", queue="high", priority=4))
        worker = await harness.worker(queues=("low", "high"))
        taken = ids(await worker.take(9, queues={"high": QueueOptions(priority=0)}, ageing=60.0))
        assert taken == ["urgent", "old-1", "old-2", "fresh-1", "fresh-2"]

    async def test_ageing_does_not_reorder_the_jobs_of_one_lane(self, harness: Harness) -> None:
        await harness.put(harness.job("old", priority=4))
        harness.clock.advance(6_000.0)
        await harness.put(harness.job("fresh", priority=5))
        assert ids(await (await harness.worker()).take(9, ageing=60.0)) == ["fresh", "old"]

    async def test_a_released_job_keeps_its_old_place(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        harness.clock.advance(5.0)
        await worker.settle(Released(lease))
        assert ids(await worker.take(9)) == ["a", "b", "c"]

    async def test_a_retried_job_is_ordered_by_its_new_due_time(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        harness.clock.advance(1.0)
        await harness.add("b")
        harness.clock.advance(1.0)
        await worker.settle(Retried(lease, 0.0, FAILURE))
        assert ids(await worker.take(9)) == ["b", "a"]

    async def test_a_rescued_job_keeps_its_old_place(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        await worker.take_one()
        await harness.lose(worker)
        assert ids(await (await harness.worker()).take(9)) == ["a", "b"]

    async def test_a_queue_limit_lets_the_next_lane_move_up(self, harness: Harness) -> None:
        """Jobs over the limit of their queue do not count in the total."""
        await harness.add("a", "b", "c", queue="red")
        await harness.add("d", "e", queue="blue")
        worker = await harness.worker(queues=("red", "blue"))
        options = {"red": QueueOptions(priority=5, limit=2)}
        assert ids(await worker.take(3, queues=options)) == ["a", "b", "d"]

    async def test_a_full_limit_lets_the_next_lane_move_up(self, harness: Harness) -> None:
        await harness.add("a", "b", "c", name="mail")
        await harness.add("d", "e", name="post")
        worker = await harness.worker(names=("mail", "post"), limits={"mail": 1})
        assert ids(await worker.take(3)) == ["a", "d", "e"]

    async def test_queue_limits_and_concurrency_limits_hold_together(
        self, harness: Harness
    ) -> None:
        """A limited name in two limited queues: both limits hold, in the order of delivery."""
        for n in range(3):
            await harness.put(harness.job(f"rm{n}", queue="red", name="mail"))
            await harness.put(harness.job(f"bm{n}", queue="blue", name="mail"))
            await harness.put(harness.job(f"rp{n}", queue="red", name="post"))
            await harness.put(harness.job(f"bp{n}", queue="blue", name="post"))
        worker = await harness.worker(
            names=("mail", "post"), queues=("red", "blue"), limits={"mail": 3}
        )
        options = {"red": QueueOptions(limit=3), "blue": QueueOptions(limit=2)}
        taken = ids(await worker.take(20, queues=options))
        assert taken == ["rm0", "bm0", "rp0", "bp0", "rm1"]

    @pytest.mark.parametrize("seed", range(12))
    async def test_any_lanes_are_reserved_in_the_order_of_the_merge(
        self, harness: Harness, seed: int
    ) -> None:
        """Random jobs, options and limits, compared with a five-line implementation of the rule."""
        random = Random(seed)  # noqa: S311 (a seed makes the case the same each time)
        lanes: dict[Lane, list[NewJob]] = {}
        for n in range(40):
            job = harness.job(
                f"{n}",
                queue=random.choice(QUEUES),
                name=random.choice(NAMES),
                priority=random.choice((4, 5, 6)),
                at=harness.clock.now() - random.choice((0, 0, 30, 60, 61, 119, 120, 500)),
            )
            await harness.put(job)
            lanes.setdefault(Lane(job.queue, job.name), []).append(job)
        options = {
            queue: QueueOptions(random.randint(-1, 2), random.choice((None, None, 2, 5)))
            for queue in QUEUES[:2]
        }
        worker = await harness.worker(names=NAMES, queues=QUEUES)
        await self._check_order(harness, worker, lanes, options, random)

    async def _check_order(
        self,
        harness: Harness,
        worker: HandDrivenWorker,
        lanes: dict[Lane, list[NewJob]],
        options: dict[str, QueueOptions],
        random: Random,
    ) -> None:
        ageing = random.choice((0.0, 60.0))
        for line in lanes.values():
            line.sort(key=lambda job: (-job.priority, job.at, int(job.id)))
        for _ in range(12):
            total = random.randint(1, 9)
            expected = merged(lanes, options, ageing, total, harness.clock.now())
            assert ids(await worker.take(total, queues=options, ageing=ageing)) == expected


def merged(
    lanes: dict[Lane, list[NewJob]],
    options: dict[str, QueueOptions],
    ageing: float,
    total: int,
    now: float,
) -> list[str]:
    """Return the first `total` ids in order and remove those jobs from `lanes`. Each step takes
    the best head of all lanes."""
    taken: list[NewJob] = []

    def rank(lane: Lane) -> tuple[float, ...]:
        job = lanes[lane][0]
        due = job.due_at(now)
        level = options.get(lane.queue, QueueOptions()).priority
        level += int((now - due) // ageing) if ageing else 0
        return (-level, -job.priority, due, int(job.id))

    def admitted(lane: Lane) -> bool:
        cap = options.get(lane.queue, QueueOptions()).limit
        used = sum(job.queue == lane.queue for job in taken)
        return bool(lanes[lane]) and (cap is None or used < cap)

    while len(taken) < total and (open_ := [lane for lane in lanes if admitted(lane)]):
        taken.append(lanes[min(open_, key=rank)].pop(0))
    return [job.id for job in taken]
