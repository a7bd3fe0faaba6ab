"""pg-boss, in Node.

Default: one job every 2 s for each kind. Best: 500 at once, woken by NOTIFY, no wait
while batches are full. Done: its table.
"""

from __future__ import annotations

from benchmarks.peers.node_peer import NodePeer


class PgBoss(NodePeer):
    """Enqueues many with `insert`, here 1,000 a call."""

    script = "pgboss_peer.js"

    async def open(self) -> None:
        await self.produce("prepare")

    async def left(self) -> int:
        return self.postgres.number("SELECT count(*) FROM pgboss.job WHERE state < 'completed'")


PEER = PgBoss
