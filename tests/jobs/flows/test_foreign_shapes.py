"""Shapes of flows that users of other systems know, each under the name of the test it comes from.

The catalogue lists tests of Celery (`t/integration/test_canvas.py`), Sidekiq batches, pg-boss
(`test/flowTest.ts`) and issues of BullMQ. A shape that is missing here has its reason in `MISSING`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from nimburion import Context, Flow, PermanentError, Processor, State, chain, job
from nimburion.backends.memory import MemoryBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.core.flows import FlowState
from nimburion.testing import FakeClock

MISSING = {
    "test_add_to_chord": "a flow does not grow while it runs yet",
    "test_add_chord_to_chord": "a flow does not grow while it runs yet",
    "test_chain_child_replaced_with_chain_first": "a member does not turn into a flow yet",
    "test_chord_header_child_replaced_with_chain_first": "a member does not turn into a flow yet",
    "test_chord_body_chain_child_replaced_with_chain_first": "a member does not turn into a flow",
    "test_second_order_replace": "a member does not turn into a flow yet",
    "invalidate_all": "a flow is cancelled: tests/jobs/flows/test_operating.py",
}
"""By the name of the foreign test, why there is none of that name here."""


@job
async def add(x: int, y: int) -> int:
    return x + y


@job
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@job
async def collect(numbers: list[int]) -> list[int]:
    return numbers


@job
async def fail(*, forgiven: bool = False) -> int:
    raise PermanentError("no luck")


@job(max_retries=2, retry_backoff=1.0)
async def fail_first(ctx: Context) -> int:
    if ctx.attempt == 1:
        raise ValueError("not yet")
    return 1


@job
async def note(text: str) -> None: ...


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def processor(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Processor]:
    clock = FakeClock()
    backends: dict[str, Callable[[], Backend]] = {
        "memory": lambda: MemoryBackend(clock=clock),
        "sqlite": lambda: SQLiteBackend(tmp_path / "jobs.db", clock=clock),
    }
    made = Processor(backends[request.param](), clock=clock)
    made.register(add, total, collect, fail, fail_first, note)
    async with made:
        yield made


async def run(processor: Processor, flow: Flow, flow_id: str = "f") -> FlowState:
    """Enqueue a flow, run all that becomes due, and return its state."""
    await processor.enqueue_flow(flow, id=flow_id)
    await processor.drain(advance=True)
    return (await processor.flows.get(flow_id)).state


async def read_result(processor: Processor, name: str, flow_id: str = "f") -> object:
    return (await processor.get_status(f"{flow_id}.{name}")).result


async def read_state(processor: Processor, name: str, flow_id: str = "f") -> State:
    return (await processor.get_status(f"{flow_id}.{name}")).state


# Celery


async def test_simple_chain(processor: Processor) -> None:
    flow = Flow("chain")
    first = flow.add(add.job(4, 4))
    second = flow.add(add.job(first.result, 8))
    flow.add(add.job(second.result, 16), name="last")
    assert await run(processor, flow) is FlowState.COMPLETED
    assert await read_result(processor, "last") == 32


async def test_single_chain(processor: Processor) -> None:
    assert await run(processor, chain(add.job(3, 4))) is FlowState.COMPLETED


async def test_complex_chain(processor: Processor) -> None:
    """Fan-out and fan-in between links, twice."""
    flow = Flow("complex")
    first = flow.add(add.job(1, 1))
    group = flow.add_all([add.job(first.result, n) for n in range(3)], name="group")
    middle = flow.add(total.job(group.results), name="middle")
    again = flow.add_all([add.job(middle.result, n) for n in range(2)], name="again")
    flow.add(total.job(again.results), name="end")
    assert await run(processor, flow) is FlowState.COMPLETED
    assert await read_result(processor, "end") == 19


async def test_group_results_in_chain(processor: Processor) -> None:
    flow = Flow("group")
    group = flow.add_all([add.job(1, n) for n in range(3)])
    flow.add(collect.job(group.results))
    await run(processor, flow)
    assert await read_result(processor, "collect") == [1, 2, 3]


async def test_chain_of_nine_chords(processor: Processor) -> None:
    flow = Flow("nine")
    before = flow.add(add.job(1, 0), name="start")
    for number in range(9):
        group = flow.add_all([add.job(before.result, n) for n in (0, 1)], name=f"group{number}")
        before = flow.add(total.job(group.results), name=f"join{number}")
    assert await run(processor, flow) is FlowState.COMPLETED
    assert await read_result(processor, "join8") == 1023


@pytest.mark.parametrize("place", ["lone", "mid", "last"])
async def test_nested_chain_group(processor: Processor, place: str) -> None:
    links = {
        "lone": ([add.job(1, 1), add.job(2, 2)],),
        "mid": (add.job(0, 1), [add.job(1, 1), add.job(2, 2)], add.job(3, 3)),
        "last": (add.job(0, 1), [add.job(1, 1), add.job(2, 2)]),
    }[place]
    assert await run(processor, chain(*links)) is FlowState.COMPLETED


async def test_chain_on_error(processor: Processor) -> None:
    """The rest is not run, and the callback comes once."""
    flow = chain(add.job(1, 1), fail.job(), add.job(2, 2), on_failure=note.job("alert"))
    assert await run(processor, flow) is FlowState.FAILED
    assert await read_state(processor, "add-2") is State.CANCELLED
    assert await read_state(processor, "on_failure") is State.COMPLETED


@pytest.mark.parametrize("members", [0, 1])
async def test_empty_and_single_task_header(processor: Processor, members: int) -> None:
    flow = Flow("few", on_success=note.job("done"))
    group = flow.add_all([add.job(1, n) for n in range(members)], name="group")
    flow.add(total.job(group.results))
    assert await run(processor, flow) is FlowState.COMPLETED
    assert await read_result(processor, "total") == members
    assert await read_state(processor, "on_success") is State.COMPLETED


async def test_large_header_from_a_generator(processor: Processor) -> None:
    flow = Flow("large")
    group = flow.add_all((add.job(1, 0) for _ in range(1_000)), name="group")
    flow.add(total.job(group.results))
    assert await run(processor, flow) is FlowState.COMPLETED
    assert await read_result(processor, "total") == 1_000


async def test_chord_order(processor: Processor) -> None:
    """The results have the order of the members, not of their ends."""
    flow = Flow("order")
    group = flow.add_all([add.job(n, 0) for n in (3, 1, 2)], name="group")
    flow.add(collect.job(group.results))
    await processor.enqueue_flow(flow, id="f")
    await processor.run_now("f.group.1")
    await processor.drain()
    assert await read_result(processor, "collect") == [3, 1, 2]


@pytest.mark.parametrize("failing", [(0,), (2,), (0, 1, 2)])
async def test_errback_called_by_group_fail(processor: Processor, failing: tuple[int, ...]) -> None:
    """One callback for one or more failures: first, last, multiple."""
    flow = Flow("group", on_failure=note.job("alert"), on_success=note.job("done"))
    flow.add_all([fail.job() if n in failing else add.job(n, n) for n in range(3)], name="group")
    assert await run(processor, flow) is FlowState.FAILED
    assert await read_state(processor, "on_failure") is State.COMPLETED
    assert await read_state(processor, "on_success") is State.CANCELLED


async def test_error_propagates_from_chord(processor: Processor) -> None:
    flow = Flow("chord")
    group = flow.add_all([add.job(1, 1), fail.job()], name="group")
    flow.add(total.job(group.results))
    assert await run(processor, flow) is FlowState.FAILED
    assert await read_state(processor, "total") is State.CANCELLED


async def test_chord_unlock_with_failed_task_in_nested_chain_member(processor: Processor) -> None:
    """celery#9674: a member that is itself a chain fails in its middle."""
    flow = Flow("nested")
    first = flow.add(add.job(1, 1))
    broken = flow.add(fail.job(), depends_on=first)
    tail = flow.add(add.job(broken.result, 1), name="tail")
    other = flow.add(add.job(2, 2), name="other")
    flow.add(add.job(tail.result, other.result), name="join")
    assert await run(processor, flow) is FlowState.FAILED
    for name in ("tail", "join"):
        assert await read_state(processor, name) is State.CANCELLED


async def test_chord_header_that_runs_twice_counts_once(processor: Processor) -> None:
    flow = Flow("twice")
    group = flow.add_all([fail_first.job(), fail_first.job()], name="group")
    flow.add(total.job(group.results))
    assert await run(processor, flow) is FlowState.COMPLETED
    found = await processor.flows.get("f")
    assert (found.failed, await read_result(processor, "total")) == (0, 2)


async def test_parallel_chords(processor: Processor) -> None:
    flow = Flow("parallel")
    joins = []
    for side in ("left", "right"):
        group = flow.add_all([add.job(1, n) for n in range(3)], name=side)
        joins.append(flow.add(total.job(group.results), name=f"{side}_total"))
    flow.add(add.job(joins[0].result, joins[1].result), name="end")
    assert await run(processor, flow) is FlowState.COMPLETED
    assert await read_result(processor, "end") == 12


# Sidekiq batches


async def test_empty_batch(processor: Processor) -> None:
    assert await run(processor, Flow("empty", on_finished=note.job("x"))) is FlowState.COMPLETED
    assert await read_state(processor, "on_finished") is State.COMPLETED


async def test_callback_jobs_are_retried_and_run_once(processor: Processor) -> None:
    flow = Flow("batch", on_success=fail_first.job())
    flow.add(add.job(1, 1))
    assert await run(processor, flow) is FlowState.COMPLETED
    status = await processor.get_status("f.on_success")
    assert (status.state, status.attempt) == (State.COMPLETED, 2)


async def test_jobs_finish_too_fast(processor: Processor) -> None:
    """sidekiq-batch#29: a repeat after some members have ended counts none of them again."""
    flow = chain(add.job(1, 1), add.job(2, 2), on_success=note.job("done"))
    await processor.enqueue_flow(flow, id="f")
    await processor.process_one()
    assert await run(processor, flow) is FlowState.COMPLETED
    assert (await processor.flows.get("f")).completed == 2


# pg-boss


async def test_blocked_when_a_parent_fails_and_unblocked_by_its_retry(
    processor: Processor,
) -> None:
    flow = chain(fail.job(), add.job(1, 1))
    assert await run(processor, flow) is FlowState.FAILED
    await processor.flows.replay("f")
    await processor.drain(advance=True)
    assert await read_state(processor, "add") is State.CANCELLED  # it failed again


async def test_parent_cancelled(processor: Processor) -> None:
    await processor.enqueue_flow(chain(add.job(1, 1), add.job(2, 2)), id="f")
    await processor.cancel("f.add")
    assert (await processor.get_status("f.add-2")).reason == "dependency"


# BullMQ


async def test_child_fails_and_the_rest_continues(processor: Processor) -> None:
    """The option `ignoreDependencyOnFailure`: a tolerance."""
    flow = Flow("continue")
    group = flow.add_all([add.job(1, 1), fail.job(), add.job(2, 2)], name="group", max_failed=1)
    flow.add(total.job(group.results))
    assert await run(processor, flow) is FlowState.COMPLETED
    assert await read_result(processor, "total") == 6


async def test_grandchild_fails(processor: Processor) -> None:
    """bullmq#3235: the failure reaches the end of the chain."""
    flow = chain(fail.job(), add.job(1, 1), add.job(2, 2), on_failure=note.job("x"))
    assert await run(processor, flow) is FlowState.FAILED
    assert await read_state(processor, "add-2") is State.CANCELLED


async def test_same_flow_added_twice(processor: Processor) -> None:
    """bullmq#1793."""
    flow = chain(add.job(1, 1), add.job(2, 2))
    for _ in range(2):
        assert await processor.enqueue_flow(flow, id="f") == "f"
    assert await run(processor, flow) is FlowState.COMPLETED
    assert (await processor.flows.get("f")).completed == 2
