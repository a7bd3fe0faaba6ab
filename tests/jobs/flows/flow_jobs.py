"""The jobs of the tests of flows."""

from __future__ import annotations

from typing import Any

from nimburion import Context, Job, Processor, Unique, job
from nimburion.backends.memory import MemoryBackend
from nimburion.jobs.options.limits import Limit
from nimburion.testing import FakeClock


@job
async def fetch(url: str) -> str:
    return f"/tmp/{url}"


@job
async def count_rows(path: str, part: int) -> int:
    return len(path) + part


@job
async def fail(part: int) -> int:
    raise ValueError(f"part {part}")


@job
async def add_up(counts: list[int]) -> int:
    return sum(counts)


@job
def show(text: str, times: int = 1) -> str:
    return text * times


@job
async def note(text: str) -> None:
    return None


@job(result=False)
async def keep_nothing() -> str:
    return "nothing"


@job(unique=["path"], name="unique_path")
async def take_path(path: str) -> None: ...


@job(unique=Unique("part", on_duplicate="existing"))
async def take_existing(part: int) -> None: ...


@job(limits=[Limit(1, key="path")])
async def limited_path(path: str) -> None: ...


class Measure(Job):
    path: str
    unit: str = "m"

    async def process(self, ctx: Context) -> int:
        return len(self.path)


class Checked(Job):
    path: str

    def __post_init__(self) -> None:
        self.path.strip()

    async def process(self, ctx: Context) -> None: ...


def make_processor(clock: FakeClock | None = None, **settings: Any) -> Processor:
    processor = Processor(MemoryBackend(clock=clock), clock=clock, max_retries=0, **settings)
    processor.register(
        fetch, count_rows, fail, add_up, show, note, keep_nothing, take_path, take_existing, Measure
    )
    return processor
