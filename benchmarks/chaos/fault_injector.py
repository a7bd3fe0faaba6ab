"""Carries out the plan of a run, and logs each fault with the workers that it hit."""

from __future__ import annotations

import asyncio

from benchmarks.chaos.event_log import EventWriter, Fault, now
from benchmarks.chaos.fault_plan import PlannedFault
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.progress import MAX_STANDSTILL, Progress
from benchmarks.chaos.targets import Target

LOOK_AGAIN = 0.02
"""Seconds between two looks for a worker that is ready."""
IDLE_AFTER = 3.0
LOST_REPLY_SECONDS = 0.05
"""A reply that is to be lost comes within this time."""


class FaultInjector:
    """The faults of one run, from its plan."""

    def __init__(
        self,
        target: Target,
        fleet: Fleet,
        writer: EventWriter,
        progress: Progress,
        least_alive: int = 1,
    ) -> None:
        self._target = target
        self._fleet = fleet
        self._writer = writer
        self._progress = progress
        self._least_alive = least_alive
        self._server_faults = asyncio.Lock()
        """Held by a fault of the network or the server: one at a time."""

    async def run(self, plan: list[PlannedFault]) -> None:
        """Carry out the whole plan. Faults of workers overlap those of the network."""
        async with asyncio.TaskGroup() as group:
            for fault in plan:
                await self._progress.wait_for(fault.at)
                if fault.kind == "kill":
                    await self._kill(fault)
                elif fault.kind == "rolling restart":
                    await self._restart_workers(fault)
                elif fault.kind == "pause":
                    pid = await self._choose_worker(fault)
                    self._fleet.pause(pid)  # now: the next fault may choose its worker first
                    group.create_task(self._resume_later(fault, pid, now()))
                else:
                    group.create_task(self._disturb(fault))

    # Workers

    async def _choose_worker(self, fault: PlannedFault) -> int:
        """Return the pid of a worker that has received jobs and is not paused.

        Waits until there is one. After `IDLE_AFTER` seconds, one without jobs will do: perhaps
        there are none left.
        """
        began = now()
        async with asyncio.timeout(MAX_STANDSTILL):
            while True:
                self._fleet.restart_ended()
                workers = self._fleet.find_workers(idle=now() - began > IDLE_AFTER)
                ready = sorted({*workers} - self._fleet.paused)
                if len(ready) >= self._least_alive:
                    return ready[int(fault.draw * len(ready))]
                await asyncio.sleep(LOOK_AGAIN)

    async def _kill(self, fault: PlannedFault) -> None:
        pid = await self._choose_worker(fault)
        at = now()
        self._fleet.kill(pid)
        self._writer.write(Fault(at, "kill", now(), [pid]))

    async def _restart_workers(self, fault: PlannedFault) -> None:
        """Restart all workers. They lose nothing by it, so the log names none of them."""
        at = now()
        async with asyncio.timeout(MAX_STANDSTILL):
            await self._fleet.restart_one_by_one()
        self._writer.write(Fault(at, fault.kind, now(), []))

    async def _resume_later(self, fault: PlannedFault, pid: int, paused_at: float) -> None:
        await asyncio.sleep(fault.seconds)
        self._fleet.resume(pid)
        self._writer.write(Fault(paused_at, "pause", now(), [pid]))

    # Network and server

    async def _disturb(self, fault: PlannedFault) -> None:
        async with self._server_faults:
            number = int(fault.draw * len(self._target.proxies))
            proxy = self._target.proxies[number]
            before = self._find_members(number)
            down = None
            at = now()
            match fault.kind:
                case "cut":
                    proxy.cut()
                case "black hole":
                    proxy.hold_up()
                    await asyncio.sleep(fault.seconds)
                    proxy.heal()
                case "lost reply":
                    proxy.reset_after(0)
                    await asyncio.sleep(LOST_REPLY_SECONDS)
                case _:
                    before = self._fleet.find_workers()
                    down = await self._target.restart()
            after = before if fault.kind != "restart" else self._fleet.find_workers()
            self._writer.write(Fault(at, fault.kind, now(), [*{*before, *after}], down))

    def _find_members(self, proxy: int) -> dict[int, int]:
        """Return the workers whose connections pass this proxy."""
        shared = len(self._target.proxies)
        return {p: n for p, n in self._fleet.find_workers().items() if n % shared == proxy}
