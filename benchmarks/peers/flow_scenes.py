"""Flows and durable functions of a peer: `python -m benchmarks.peers.flow_scenes NAME SCENE ...`.

The scenes, of which a peer offers those that it can:

- `chain`: jobs one after another.
- `fan_in`: jobs at once, then one that gets their results.
- `steps`: one durable function that stores steps one after another.
- `children`: one durable function that runs jobs at once and gets their results.

One worker process is there and has run one flow. The time is from before the first enqueue until
the last job of the last flow begins, which writes it down.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Awaitable
from importlib import import_module
from pathlib import Path

from benchmarks.peers.peer import Peer, settled
from benchmarks.peers.scenes import connected, read
from benchmarks.peers.workers import Workers, spent, tree

SCENES = ("chain", "fan_in", "steps", "children")
STUCK_AFTER = 120.0
"""Seconds in which a flow must end."""
LOOK_EVERY = 0.05


class FlowPeer(Peer):
    """A job system that has flows, durable functions, or both."""

    def enqueue_flow(self, scene: str, size: int, sent: float) -> Awaitable[object] | object:
        """Start one flow of this many jobs or steps. Its last job notes the time since `sent`."""
        raise NotImplementedError


def count_parts(scene: str, size: int) -> int:
    """Count the jobs and steps of one flow."""
    return size if scene in ("chain", "steps") else size + 1


async def measure(peer: FlowPeer, scene: str, flows: int, size: int) -> dict[str, float]:
    """Run flows; return the jobs or steps a second, and the CPU time of each in microseconds."""
    server = peer.setting.server
    async with connected(peer):
        with Workers(peer.workers(1)) as workers:
            await settled(peer.enqueue_flow(scene, size, time.monotonic()))
            await wait_for_notes(peer, 1, workers)
            clients, of_server = workers.cpu() + time.process_time(), spent_by(server)
            sent = time.monotonic()
            for _ in range(flows):
                await settled(peer.enqueue_flow(scene, size, sent))
            stored = time.monotonic()
            noted = await wait_for_notes(peer, 1 + flows, workers)
            clients = workers.cpu() + time.process_time() - clients
            of_server = spent_by(server) - of_server
    parts = flows * count_parts(scene, size)
    return {
        "rate": parts / (max(noted[1:]) / 1e3),
        "enqueue_seconds": stored - sent,
        "client_us": clients / parts * 1e6,
        "server_us": of_server / parts * 1e6,
    }


def spent_by(server: int) -> float:
    """Return the seconds of processor time of the server's processes."""
    return sum(spent(pid) for pid in tree(server))


async def wait_for_notes(peer: Peer, many: int, workers: Workers) -> list[float]:
    """Return what the last jobs noted, once this number of flows have ended."""
    path = Path(peer.setting.notes)
    progress, seen = time.monotonic(), 0
    while len(noted := read(path)) < many:
        if len(noted) > seen:
            progress, seen = time.monotonic(), len(noted)
        if time.monotonic() > progress + STUCK_AFTER:
            raise RuntimeError(f"{len(noted)} of {many} flows have ended")
        workers.check()
        await asyncio.sleep(LOOK_EVERY)
    if len(noted) > many:
        raise RuntimeError(f"{len(noted)} ends of {many} flows")
    return noted


def main() -> None:
    """`python -m benchmarks.peers.flow_scenes NAME SCENE FLOWS SIZE`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the workers go with us
    name, scene, flows, size = sys.argv[1:]
    peer = import_module(f"benchmarks.peers.{name}_flows").PEER()
    print(json.dumps(asyncio.run(measure(peer, scene, int(flows), int(size)))))


if __name__ == "__main__":
    main()
