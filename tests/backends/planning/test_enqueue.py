"""A call stores all of its jobs or none, and a repeat of it changes nothing."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from nimburion.backends.planning.enqueue import (
    REFUSING,
    EnqueuePlan,
    KeyHolder,
    KnownJobs,
    Replacement,
    compute_due,
    compute_key_end,
    compute_replaced_due,
    holds_key,
    plan_enqueue,
)
from nimburion.core.ids import compute_digest
from nimburion.core.job import JobOptions, NewJob, OnDuplicate, State

NOW = 1_000_000_000
SECOND = 1_000_000
IDS = tuple(f"job-{n}" for n in range(12))
KEYS = (None, "red", "blue")
MODES: tuple[OnDuplicate, ...] = ("reject", "existing", "replace")
seeds = st.integers(0, 2**32 - 1)


class Model(msgspec.Struct):
    """The simplest backend: what it knows, and the bodies of its jobs."""

    digests: dict[str, bytes] = {}
    holders: dict[tuple[str, str], KeyHolder] = {}
    replacements: dict[str, Replacement] = {}
    bodies: dict[str, bytes] = {}

    def enqueue(self, jobs: list[NewJob]) -> EnqueuePlan:
        plan = plan_enqueue(jobs, KnownJobs(self.digests, self.holders, self.replacements))
        for job in plan.new:
            assert job.id not in self.digests
            self.digests[job.id] = compute_digest(job.name, job.payload)
            self.bodies[job.id] = job.payload
            if job.options.unique_key is not None:
                key = (job.name, job.options.unique_key)
                assert key not in self.holders
                self.holders[key] = KeyHolder(job.id, is_waiting=True)
        for replaced_id, job in plan.replacing:
            self.replacements[job.id] = Replacement(
                replaced_id, compute_digest(job.name, job.payload)
            )
            self.bodies[replaced_id] = job.payload
        return plan


def make_jobs(random: Random, count: int) -> list[NewJob]:
    """Return jobs of few ids. The name and the options of a job follow from its id."""
    return [make_job(random.choice(IDS), random) for _ in range(count)]


def make_job(job_id: str, random: Random) -> NewJob:
    number = IDS.index(job_id)
    options = JobOptions(
        unique_key=KEYS[number // 3 % len(KEYS)],
        on_duplicate=MODES[number % len(MODES)],
    )
    name = "mail" if number < len(IDS) - 3 else "scan"
    return NewJob(job_id, name, "default", random.choice((b"{}", b"[]")), options=options)


def make_model(random: Random) -> Model:
    """Return a backend with some jobs, some of which run."""
    model = Model()
    for job in make_jobs(random, random.randint(0, 12)):
        model.enqueue([job])
    for key, holder in model.holders.items():
        model.holders[key] = holder._replace(is_waiting=random.random() < 0.7)
    return model


@given(seeds)
def test_one_refused_job_refuses_the_call(seed: int) -> None:
    random = Random(seed)
    model, jobs = make_model(random), make_jobs(random, random.randint(1, 8))
    plan = model.enqueue(jobs)
    outcomes = [result.outcome for result in plan.results]
    assert len(outcomes) == len(jobs)
    if REFUSING.isdisjoint(outcomes):
        assert "refused" not in outcomes
        assert len(plan.new) == outcomes.count("created")
    else:
        assert set(outcomes) <= REFUSING | {"refused"}
        assert not plan.new
        assert not plan.replacing


@given(seeds)
def test_jobs_of_one_call_are_decided_as_those_of_calls_one_after_the_other(seed: int) -> None:
    random = Random(seed)
    model, jobs = make_model(random), make_jobs(random, random.randint(1, 8))
    other = msgspec.convert(msgspec.to_builtins(model), Model)
    results = model.enqueue(jobs).results
    one_by_one = [other.enqueue([job]).results[0] for job in jobs]
    refused = [n for n, result in enumerate(one_by_one) if result.outcome in REFUSING]
    if refused:
        assert results[refused[0]] == one_by_one[refused[0]]
    else:
        assert results == one_by_one
        assert model == other


@given(seeds)
def test_a_repeat_changes_nothing_and_names_the_same_jobs(seed: int) -> None:
    random = Random(seed)
    model, jobs = make_model(random), make_jobs(random, random.randint(1, 8))
    first = model.enqueue(jobs)
    before = msgspec.to_builtins(model)
    repeated = model.enqueue(jobs)
    assert msgspec.to_builtins(model) == before
    assert [result.id for result in repeated.results] == [result.id for result in first.results]
    assert {result.outcome for result in repeated.results}.isdisjoint({"created"})


@given(seeds)
def test_only_a_job_that_waits_is_replaced(seed: int) -> None:
    random = Random(seed)
    model = make_model(random)
    running = {holder.job_id for holder in model.holders.values() if not holder.is_waiting}
    plan = model.enqueue(make_jobs(random, random.randint(1, 8)))
    assert running.isdisjoint(replaced_id for replaced_id, _ in plan.replacing)


def test_a_due_time_comes_before_a_delay_and_no_delay_is_in_the_past() -> None:
    job = NewJob("a", "mail", "default", b"{}")
    assert compute_due(job, NOW) == NOW
    assert compute_due(msgspec.structs.replace(job, after=2.0), NOW) == NOW + 2 * SECOND
    assert compute_due(msgspec.structs.replace(job, after=-2.0), NOW) == NOW
    assert compute_due(msgspec.structs.replace(job, at=5.0, after=2.0), NOW) == 5 * SECOND


@given(
    after=st.integers(0, 100),
    max_wait=st.none() | st.integers(0, 100),
    age=st.integers(0, 200),
    failures=st.integers(0, 1),
    left=st.integers(0, 100),
)
def test_a_replaced_job_waits_no_longer_than_max_wait_and_comes_no_earlier_than_its_retry(
    after: int, max_wait: int | None, age: int, failures: int, left: int
) -> None:
    job = NewJob("a", "mail", "default", b"{}", after=after, options=JobOptions(max_wait=max_wait))
    created_at, old_due = NOW - age * SECOND, NOW + left * SECOND
    due = compute_replaced_due(job, NOW, created_at=created_at, old_due=old_due, failures=failures)
    if failures:
        assert due >= old_due
    elif max_wait is not None:
        assert NOW <= due <= max(NOW, created_at + max_wait * SECOND)
    if not failures:
        assert due <= NOW + after * SECOND


def test_a_key_is_held_until_its_end_and_in_its_states() -> None:
    assert compute_key_end(JobOptions(unique_key="k"), NOW) is None
    assert compute_key_end(JobOptions(unique_key="k", unique_for=3.0), NOW) == NOW + 3 * SECOND
    assert holds_key(NOW, None, None, None)
    assert holds_key(NOW, NOW + 1, None, None)
    assert not holds_key(NOW, NOW, None, None)
    assert holds_key(NOW, None, {State.PENDING}, State.PENDING)
    assert not holds_key(NOW, None, {State.PENDING}, State.PROCESSING)
    assert not holds_key(NOW, None, {State.PENDING}, None)
