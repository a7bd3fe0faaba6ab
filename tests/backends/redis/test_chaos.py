"""Everything at once, drawn from a seed: a server, its network and workers fail for a minute."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.crash.flow import MAX_SECONDS, Account, Flow, Record, run_flow
from tests.servers import Binary, Proxy, Server

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]

TTL = 2.0
FAILURES = 60


class Chaos:
    """Lets one thing after another go wrong, and notes what and when."""

    def __init__(self, flow: Flow, server: Server, proxy: Proxy, luck: random.Random) -> None:
        self._flow = flow
        self._server = server
        self._proxy = proxy
        self._luck = luck
        self.counts: Counter[str] = Counter()
        self.deaths: list[float] = []
        """When the server was killed."""
        self.victims: set[int] = set()
        """Workers that were killed or stopped."""

    async def run(self) -> None:
        """So many faults, with a moment between."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            *(self.server_dies, self.server_hangs, self.scripts_are_forgotten, self.clients_go),
            *(self.network_drops, self.network_cuts, self.network_resets),
            *(self.worker_dies, self.worker_stops),
        ]
        for _ in range(FAILURES):
            fault = self._luck.choice(kinds)
            self.counts[fault.__name__] += 1
            await fault()
            await self._flow.pass_time(self._luck.uniform(0.1, 1.0))

    async def server_dies(self) -> None:
        """And comes back."""
        await asyncio.to_thread(self._server.kill)
        self.deaths.append(time.monotonic())
        await self._flow.pass_time(self._luck.uniform(0, 1.5 * TTL))
        await asyncio.to_thread(self._server.start)

    async def server_hangs(self) -> None:
        """For less than a session lives, or for more."""
        self._server.pause()
        await self._flow.pass_time(self._luck.uniform(0.2, 1.5 * TTL))
        self._server.resume()

    async def scripts_are_forgotten(self) -> None:
        await asyncio.to_thread(self._server.ask, "SCRIPT", "FLUSH")

    async def clients_go(self) -> None:
        for kind in ("normal", "pubsub"):
            await asyncio.to_thread(self._server.ask, "CLIENT", "KILL", "TYPE", kind)

    async def network_drops(self) -> None:
        self._proxy.hold_up()
        await self._flow.pass_time(self._luck.uniform(0.2, 1.5 * TTL))
        self._proxy.heal()

    async def network_cuts(self) -> None:
        self._proxy.cut()

    async def network_resets(self) -> None:
        self._proxy.reset_after(self._luck.randrange(3_000), "requests")
        self._proxy.reset_after(self._luck.randrange(3_000), "replies")

    async def worker_dies(self) -> None:
        pid = await self._victim()
        os.kill(pid, signal.SIGKILL)

    async def worker_stops(self) -> None:
        """For longer than its session lives; then it finds its jobs with others."""
        pid = await self._victim()
        os.kill(pid, signal.SIGSTOP)
        await self._flow.pass_time(1.5 * TTL)
        os.kill(pid, signal.SIGCONT)

    async def _victim(self) -> int:
        """A third worker, in the middle of its work."""
        worker = self._flow.harness.start_worker(session_ttl=TTL, concurrency=10)
        self.victims.add(worker.pid)
        await self._flow.wait_until(
            lambda: bool(self._flow.harness.find_events("start", pid=worker.pid)), "it works"
        )
        return worker.pid

    def make_excuse_filter(self, account: Account) -> Callable[[str], bool]:
        """What may be lost: that was acknowledged just before the server's death. What may have
        been begun twice: that, and what a worker held that died or gave its session up."""

        def forgotten(at: float) -> bool:
            return any(death - MAX_SECONDS < at <= death + 0.5 for death in self.deaths)

        ends = [connection for connection in account.diary if connection["what"] == "SessionEnded"]

        def given_up(start: dict[str, object]) -> bool:
            return start["pid"] in self.victims or any(
                end["pid"] == start["pid"] and end["at"] > start["at"] for end in ends
            )

        def is_forgiven(job_id: str) -> bool:
            if job_id in account.lost:
                return forgotten(account.acknowledged[job_id])
            earlier = account.starts[job_id][:-1]
            return all(given_up(start) or forgotten(start["at"]) for start in earlier)

        return is_forgiven


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_chaos(
    seed: int, tmp_path: Path, redis_binary: Binary, record_property: Record
) -> None:
    with Server(redis_binary, "appendfsync everysec", appendonly=True) as server:
        async with Proxy(server.port) as proxy:
            url = f"{proxy.url}?timeout=1"
            async with run_flow(tmp_path, url, jobs=20_000, per_second=500, ttl=TTL) as flow:
                storm = Chaos(flow, server, proxy, random.Random(seed))
                await storm.run()
    account = flow.result
    account.record_counts(record_property, f"storm on {redis_binary.name}")
    for name, number in storm.counts.items():
        record_property(f"storm: {name}, in total", number)
    record_property("storm: outcomes refused as too late, in total", account.settled_too_late)
    assert len(storm.counts) == 9, "something never happened"
    account.check(storm.make_excuse_filter(account))
