"""Graphile Worker, in Node.

Default: one job at once. Best: 24 at once, 2,000 fetched at once, completions written every 50 ms.
Done: its table, which completed jobs leave.
"""

from __future__ import annotations

from benchmarks.peers.node_peer import NodePeer


class Graphile(NodePeer):
    """Enqueues many with `addJobs`, here 1,000 a call."""

    script = "graphile_peer.js"

    async def open(self) -> None:
        await self.produce("prepare")

    async def left(self) -> int:
        return self.postgres.number("SELECT count(*) FROM graphile_worker._private_jobs")


PEER = Graphile
