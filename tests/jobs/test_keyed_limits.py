"""Limits by key from a declaration to the handler."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.backend import Backend
from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.job import JobOptions
from nimburion.core.limits import LimitRule
from nimburion.core.rate_limits import RateLimit
from nimburion.jobs import Context, Job, Limit, Processor
from nimburion.jobs.client.registered_job import RegisteredJob
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.harness import list_uses
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio


async def options_of(processor: Processor, job_id: str) -> JobOptions:
    return (await processor.backend.reads.get_job(job_id)).options


async def wait_until_unused(backend: Backend) -> None:
    """Wait until the outcome of each job is stored, so that no key is in use."""

    async def is_unused() -> bool:
        return await list_uses(backend) == []

    await wait_until(is_unused, "no key is in use")


async def test_one_job_per_customer_runs_at_a_time_in_order() -> None:
    processor = Processor(MemoryBackend(), concurrency=10)
    running: Counter[str] = Counter()
    most, ran = 0, []

    @processor.job(limits=[Limit(1, key="customer")])
    async def sync(customer: str, n: int) -> None:
        nonlocal most
        running[customer] += 1
        most = max(most, running.total())
        assert running[customer] == 1
        for _ in range(5):
            await asyncio.sleep(0)
        running[customer] -= 1
        ran.append((customer, n))

    async with processor:
        await processor.enqueue_many(sync.job("abc"[n % 3], n) for n in range(60))
        await processor.start()
        await wait_until(lambda: len(ran) == 60, "all jobs run")
        await wait_until_unused(processor.backend)
    assert most > 1
    for customer in "abc":
        numbers = [n for name, n in ran if name == customer]
        assert numbers == sorted(numbers)


async def test_keys_come_from_arguments_tenants_and_functions() -> None:
    processor = Processor(MemoryBackend())

    class Charge(
        Job,
        limits=[
            Limit(5, key="tenant"),
            Limit(2, key="order"),
            Limit(3, key=lambda job: f"{job.city[:2]}", name="city"),
            Limit(1, name="gateway"),
        ],
    ):
        order: int
        city: str

        async def process(self, ctx: Context) -> None: ...

    processor.register(Charge)
    async with processor:
        job_id = await processor.enqueue(Charge(order=7, city="Bern"), tenant="acme")
        assert (await options_of(processor, job_id)).limit_keys == {
            "charge:tenant": "acme",
            "charge:order": "7",
            "city": "Be",
            "gateway": "",
        }
        plain = await processor.enqueue(Charge(order=8, city="x" * 600))
        keys = (await options_of(processor, plain)).limit_keys
        assert keys["charge:tenant"] == ""
    assert processor.registry.limits == {
        "charge": {
            "charge:tenant": LimitRule(5),
            "charge:order": LimitRule(2),
            "city": LimitRule(3),
            "gateway": LimitRule(1),
        }
    }


async def test_a_rate_by_key_with_the_cost_of_each_job() -> None:
    clock = FakeClock()
    processor = Processor(MemoryBackend(clock=clock), clock=clock)
    began, starts = clock.now(), []

    @processor.job(limits=[Limit(rate="10/s", burst=10, key="model", cost="tokens")])
    async def ask(model: str, tokens: int) -> None:
        starts.append((model, tokens, round(clock.now() - began, 3)))

    assert processor.registry.limits == {
        "ask": {"ask:model": LimitRule(rate=RateLimit("10/s", 100_000, burst=10))}
    }
    async with processor:
        for model, tokens in (("a", 10), ("a", 5), ("b", 10), ("a", 5)):
            await ask.enqueue(model, tokens)
        await processor.drain(advance=True)
        with pytest.raises(InvalidJob, match="a cost must be a whole number from 1"):
            await ask.enqueue("a", 0)
    assert starts == [("a", 10, 0.0), ("b", 10, 0.0), ("a", 5, 0.5), ("a", 5, 1.0)]


async def test_a_raw_job_of_a_registered_name_has_the_keys_of_its_tenant() -> None:
    processor = Processor(MemoryBackend())
    processor.register("hook", lambda ctx, data: None, limits=[Limit(1, key="tenant")])
    async with processor:
        job_id = await processor.enqueue_raw("hook", b"\x00", tenant="acme")
        assert (await options_of(processor, job_id)).limit_keys == {"hook:tenant": "acme"}


async def test_a_raw_job_has_the_keys_that_functions_compute_from_its_arguments() -> None:
    """One that its handler cannot read fails at once, so it needs none."""
    processor = Processor(MemoryBackend())

    @processor.job(name="sync", limits=[Limit(1, key=lambda job: job.city[:2], name="city")])
    async def sync(city: str) -> None: ...

    async with processor:
        job_id = await processor.enqueue_raw("sync", {"city": "Bern"})
        assert (await options_of(processor, job_id)).limit_keys == {"city": "Be"}
        job_id = await processor.enqueue_raw("sync", {"town": "Bern"})
        assert (await options_of(processor, job_id)).limit_keys == {}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"limits": [Limit(1, key="nobody")]}, "key names 'nobody', which is not an argument"),
        (
            {"limits": [Limit(rate="1/s", cost="nothing")]},
            "cost names 'nothing', which is not an argument",
        ),
        ({"concurrency": "5"}, "concurrency must be a whole number, 1 or more"),
        ({"limits": [Limit(1), Limit(2)]}, "two limits are for all jobs of the name"),
        ({"limits": [Limit(1, key="n"), Limit(2, key="n")]}, "two limits have one name"),
    ],
)
async def test_a_wrong_limit_says_what_is_allowed(options: dict[str, object], text: str) -> None:
    async def work(n: int) -> None: ...

    async def declare_and_run() -> None:
        processor = Processor(MemoryBackend())
        job: RegisteredJob[..., ..., None, None] = processor.job(**options)(work)  # type: ignore[call-overload]
        async with processor:
            await job.enqueue(1)
            await processor.drain()

    with pytest.raises(DefinitionError) as raised:
        await declare_and_run()
    assert text in str(raised.value)


async def test_a_limit_needs_a_maximum_or_a_rate() -> None:
    for number, name in ((None, None), (0, None), (True, None), (1, "a b")):
        with pytest.raises(DefinitionError):
            Limit(number, name=name)
    assert repr(Limit(5, key="tenant", name="smtp")) == "Limit(5, key='tenant', name='smtp')"
