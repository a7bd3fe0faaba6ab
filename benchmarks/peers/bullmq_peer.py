"""BullMQ, in Node: `bullmq_peer.js` enqueues and works, this module drives it.

Default: one job at once, completed jobs kept. Best: 100 at once, nothing kept. Done: the lists of
waiting and active jobs.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

from benchmarks.payload import PAYLOAD
from benchmarks.peers.peer import Peer, Spent

SCRIPT = str(Path(__file__).with_suffix(".js"))


class BullMQ(Peer):
    """Enqueues many with `addBulk`, here 1,000 a call."""

    def __init__(self) -> None:
        super().__init__()
        os.environ["BENCH_PAYLOAD"] = json.dumps(PAYLOAD)

    async def one_by_one(self, kind: str, jobs: int) -> Spent:
        return await produce("one", kind, str(jobs))

    async def in_bulk(self, kind: str, jobs: int) -> Spent:
        return await produce("bulk", kind, str(jobs))

    async def paced(self, jobs: int, every: float) -> None:
        await produce("paced", str(jobs), str(every))

    async def left(self) -> int:
        return sum(
            int(self.wire.ask("LLEN", f"bull:bench:{which}")) for which in ("wait", "active")
        )

    def workers(self, processes: int) -> list[list[str]]:
        return [[node(), SCRIPT, "worker"]] * processes


PEER = BullMQ


async def produce(*words: str) -> Spent:
    """Run the script to its end; what it says of its time."""
    process = await asyncio.create_subprocess_exec(
        node(), SCRIPT, *words, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"node {SCRIPT} {' '.join(words)} ended with {process.returncode}")
    return Spent(**json.loads(printed)) if printed else Spent()


def node() -> str:
    """Node's path."""
    found = shutil.which("node")
    if found is None:
        raise RuntimeError("BullMQ needs Node: install it, or leave it out with --peers")
    return found
