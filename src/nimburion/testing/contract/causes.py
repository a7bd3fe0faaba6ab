"""Makes the page that lists why a job may not be running, from the cases of the suite.

python -m nimburion.testing.contract.causes docs/reference/why.md
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from nimburion.backends.memory import MemoryBackend
from nimburion.core.diagnosis.explanations import find_causes
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.harness import Harness
from nimburion.testing.contract.reads.explaining import SITUATIONS, Situation

_HEAD = """\
# Why a job is not running

`nimburion why ID`, the HTTP API and `backend.reads.explain_job` name these causes. The table is
made from the cases that every backend passes. Generated file. To regenerate it, run

    python -m nimburion.testing.contract.causes docs/reference/why.md

Several causes can hold at once. They are listed in this order, the decisive one first: a paused
queue comes before a missing worker.

| cause | when | what is said |
| --- | --- | --- |
"""


async def make_page() -> str:
    """Return the page."""
    rows = [
        f"| `{kind.value}` | {(situation.__doc__ or '').strip()} | {await say(situation)} |"
        for kind, situation in SITUATIONS
    ]
    return _HEAD + "\n".join(rows) + "\n"


async def say(situation: Situation) -> str:
    """Return the sentence of the first cause in a situation."""
    clock = FakeClock()
    harness = Harness(clock, [MemoryBackend(clock=clock)])
    facts = await harness.backend.reads.explain_job(await situation(harness))
    return find_causes(facts)[0].text


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(asyncio.run(make_page()), encoding="utf-8")
