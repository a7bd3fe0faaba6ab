"""Our flows and durable functions. `python -m benchmarks.peers.nimburion_flows` is the worker.

Default and best: every setting at its default.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from benchmarks.peers import handlers
from benchmarks.peers.flow_scenes import FlowPeer
from benchmarks.peers.peer import PYTHON
from benchmarks.peers.setting import setting
from nimburion import DurableContext, Flow, Processor, chain, job


@job(queue="bench")
async def link() -> None: ...


@job(queue="bench")
async def finish(sent: float) -> None:
    handlers.note(sent)


@job(queue="bench")
async def member(number: int) -> int:
    return number


@job(queue="bench")
async def join(numbers: list[int], size: int, sent: float) -> None:
    assert numbers == [*range(size)]
    handlers.note(sent)


async def return_number(number: int) -> int:
    return number


@job(queue="bench")
async def steps(ctx: DurableContext, size: int, sent: float) -> None:
    for number in range(size):
        await ctx.options(key=str(number)).step(return_number, number)
    handlers.note(sent)


@job(queue="bench")
async def children(ctx: DurableContext, size: int, sent: float) -> None:
    numbers = await ctx.run_all(member.job(number) for number in range(size))
    assert numbers == [*range(size)]
    handlers.note(sent)


def make_processor() -> Processor:
    made = Processor(setting().url)
    made.register(link, finish, member, join, steps, children)
    return made


class NimburionFlows(FlowPeer):
    """Has all scenes."""

    def __init__(self) -> None:
        super().__init__()
        self.processor = make_processor()

    async def open(self) -> None:
        await self.processor.open()

    async def close(self) -> None:
        await self.processor.close()

    def enqueue_flow(self, scene: str, size: int, sent: float) -> Awaitable[object]:
        if scene == "steps":
            return self.processor.enqueue(steps.job(size, sent))
        if scene == "children":
            return self.processor.enqueue(children.job(size, sent))
        if scene == "chain":
            links = [link.job() for _ in range(size - 1)]
            return self.processor.enqueue_flow(chain(*links, finish.job(sent), name="chain"))
        flow = Flow("fan-in")
        numbers = flow.add_all(member.job(number) for number in range(size))
        flow.add(join.job(numbers.results, size, sent))
        return self.processor.enqueue_flow(flow)

    def workers(self, processes: int) -> list[list[str]]:
        return [[PYTHON, "-m", "benchmarks.peers.nimburion_flows"]] * processes


PEER = NimburionFlows


async def main() -> None:
    """Run jobs until stopped."""
    async with make_processor() as running:
        await running.run(owns_process=True)


if __name__ == "__main__":
    asyncio.run(main())
