"""A cluster of three nodes that all take writes, and slots that move between them."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from tests.servers.binaries import Binary
from tests.servers.server import Server
from tests.waiting import block_until

SLOTS = 16_384


class Cluster:
    """Nodes that share the slots evenly; no replicas. The first holds the lowest slots.

    A node that is away for `node_timeout` (seconds) counts as failed, and with it the cluster.
    """

    def __init__(
        self,
        binary: Binary,
        *lines: str,
        nodes: int = 3,
        appendonly: bool = False,
        node_timeout: float = 1.5,
    ) -> None:
        self.binary = binary
        own = (
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-node-timeout {node_timeout * 1000:.0f}",
        )
        self.nodes = [Server(binary, *own, *lines, appendonly=appendonly) for _ in range(nodes)]

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"{self.binary.name} as a cluster"

    @property
    def url(self) -> str:
        """The URL for `RedisBackend`: every node."""
        return f"redis+cluster://{','.join(node.address for node in self.nodes)}"

    def start(self) -> None:
        """Start the nodes and make them one cluster that takes writes."""
        for node in self.nodes:
            node.start()
        share = -(-SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            slots = range(number * share, min((number + 1) * share, SLOTS))
            node.ask("CLUSTER", "ADDSLOTS", *slots)
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port)
        self.settle()

    def settle(self) -> None:
        """Wait until every node says that the cluster is whole (2 s after a node's start)."""
        block_until(lambda: all(map(self._is_complete, self.nodes)), f"{self.name} is whole")

    def close(self) -> None:
        """End the nodes and remove their folders."""
        with ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.close)

    def __enter__(self) -> Self:
        """Start it."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it and remove its folders."""
        self.close()

    # --- keys, slots and their owners -------------------------------------------------------------

    def compute_slot(self, key: str) -> int:
        """The slot of a key."""
        return int(self.nodes[0].ask("CLUSTER", "KEYSLOT", key))

    def find_owner(self, slot: int) -> Server:
        """The node that the cluster says a slot belongs to."""
        for first, last, (_, port, *_), *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(f"nobody owns slot {slot}")

    def find_other(self, owner: Server) -> Server:
        """A node that is not this one."""
        return next(node for node in self.nodes if node is not owner)

    def ask(self, *command: str | bytes | float) -> Any:
        """Send a command to the first node; for a key there is `find_owner(compute_slot(key))`."""
        return self.nodes[0].ask(*command)

    def empty(self) -> None:
        """Delete all data."""
        for node in self.nodes:
            node.empty()

    # --- moving a slot, whole or step by step -----------------------------------------------------

    def move_slot(self, slot: int, target: Server) -> int:
        """Move a slot with its keys to another node, while both serve; return how many keys."""
        source = self.find_owner(slot)
        self.open_slot(slot, source, target)
        moved = 0
        while some := self.move_keys(slot, source, target):
            moved += some
        self.assign_slot(slot, source, target)
        return moved

    def open_slot(self, slot: int, source: Server, target: Server) -> None:
        """First step: keys that the source lacks are asked for at the target (ASK)."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))

    def move_keys(self, slot: int, source: Server, target: Server, count: int = 100) -> int:
        """Second step, again and again: move up to `count` keys; return how many there were."""
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def assign_slot(self, slot: int, source: Server, target: Server) -> None:
        """Last step: the target owns the slot, and every node knows (MOVED)."""
        others = [node for node in self.nodes if node not in {source, target}]
        for node in (target, source, *others):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", node_id(target))

    def _is_complete(self, node: Server) -> bool:
        reply = node.ask("CLUSTER", "INFO").decode()
        wanted = ("cluster_state:ok", "cluster_slots_ok:16384", f"cluster_size:{len(self.nodes)}")
        return all(line in reply.splitlines() for line in wanted)


def node_id(node: Server) -> str:
    """The name of a node within its cluster."""
    reply: bytes = node.ask("CLUSTER", "MYID")
    return reply.decode()
