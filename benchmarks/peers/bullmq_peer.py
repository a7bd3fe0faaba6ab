"""BullMQ, in Node.

Default: one job at once, completed jobs kept. Best: 100 at once, nothing kept. Done: the lists of
waiting and active jobs.
"""

from __future__ import annotations

from benchmarks.peers.node_peer import NodePeer


class BullMQ(NodePeer):
    """Enqueues many with `addBulk`, here 1,000 a call."""

    script = "bullmq_peer.js"

    async def left(self) -> int:
        return sum(
            int(self.wire.ask("LLEN", f"bull:bench:{which}")) for which in ("wait", "active")
        )


PEER = BullMQ
