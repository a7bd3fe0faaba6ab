"""What happens on the stage, act by act."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nimburion.cli.demo.crew import Crew
from nimburion.cli.demo.plan import Plan, enqueue_all
from nimburion.cli.demo.services import GONE_PATH, WebService
from nimburion.cli.demo.view import View
from nimburion.cli.demo.watch import NOTHING, Snapshot, changes, look
from nimburion.cli.endings import Failed
from nimburion.core.job import JobRecord, State
from nimburion.jobs import Processor

BETWEEN_LOOKS = 0.1
EXPORT = "export_archive"


class Demo:
    """The acts, and what all of them need."""

    def __init__(
        self,
        processor: Processor,
        crew: Crew,
        web: WebService,
        plan: Plan,
        view: View,
        *,
        ttl: int,
    ) -> None:
        self.processor = processor
        self.crew = crew
        self.web = web
        self.plan = plan
        self.view = view
        self.ttl = ttl
        self.snapshot: Snapshot = NOTHING

    async def play(self) -> None:
        """All acts in their order."""
        await self.enqueue()
        await self.start_workers()
        lost = await self.kill_one()
        await self.see_the_rescue(lost)
        await self.finish()
        await self.repair_and_replay()
        await self.stop_workers()

    async def enqueue(self) -> None:
        """Store all jobs before any worker is there."""
        await enqueue_all(self.processor, self.plan)
        self.snapshot = await look(self.processor.backend)
        same = "the same id" if self.plan.duplicate_is_same else "TWO IDS"
        self.tell(f"{len(self.plan.ids)} jobs enqueued in {self.processor.backend.describe()}")
        self.tell(f"one was asked for twice under one unique key: it got {same}")
        self.tell("one, due in an hour, is cancelled before it ever ran")

    async def start_workers(self) -> None:
        """Two real processes."""
        pids = [await self.crew.start(), await self.crew.start()]
        self.tell(f"two workers started: processes {pids[0]} and {pids[1]}")

    async def kill_one(self) -> list[JobRecord]:
        """SIGKILL for the first worker that is in the middle of an export; what it held."""
        await self.until(lambda: self.busy_worker() is not None)
        pid = self.busy_worker()
        if pid is None:
            raise Failed("no worker holds a job")
        held = self.snapshot.held_by(pid)
        await self.crew.kill(pid)
        self.tell(
            f"worker {self.crew.numbers[pid]} (process {pid}) holds {len(held)} jobs: kill -9"
        )
        self.tell(
            f"now nobody does anything: its session ends {self.ttl} s after its last beat "
            "(30 s by default)"
        )
        return held

    async def see_the_rescue(self, held: list[JobRecord]) -> None:
        """Wait until the other worker has taken back what the dead one held."""

        def taken_back() -> bool:
            dead = {record.session for record in held}
            alive = {session.id for session in self.snapshot.sessions}
            return not dead & alive

        await self.until(taken_back)
        self.tell("the other worker has rescued its jobs; each of them is run again from its start")

    async def finish(self) -> None:
        """Wait for the end of every job."""
        await self.until(lambda: not self.snapshot.unfinished())
        failed = [r for r in self.snapshot.jobs.values() if r.state is State.FAILED]
        self.tell(f"all have ended; {len(failed)} of them failed and are kept as dead letters")

    async def repair_and_replay(self) -> None:
        """The web service is put right, and the dead letter of that fault is replayed."""
        self.web.repaired = True
        self.tell(f"{GONE_PATH} is back; its dead letter is replayed")
        await self.processor.dead.replay(self.plan.gone)
        await self.until(lambda: self.snapshot.jobs[self.plan.gone].state is State.COMPLETED)

    async def stop_workers(self) -> None:
        """SIGTERM: they finish what they have and leave."""
        codes = await self.crew.stop()
        ended = " and ".join(map(str, codes))
        self.tell(f"what workers are left were told to stop; exit code {ended}")
        await self.look_again()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Look at the store and tell what changed, until something is so."""
        while True:
            await self.look_again()
            if reached():
                return
            if ended := self.crew.ended():
                raise Failed(f"worker {ended[0]} has ended; see worker-{ended[0]}.log")
            await asyncio.sleep(BETWEEN_LOOKS)

    async def look_again(self) -> None:
        """One more look."""
        before, self.snapshot = self.snapshot, await look(self.processor.backend)
        for line in changes(before, self.snapshot):
            self.view.tell(line)
        self.view.update(self.snapshot)

    def busy_worker(self) -> int | None:
        """The process that holds at least two exports which have begun."""
        for pid in self.crew.numbers:
            held = [r for r in self.snapshot.held_by(pid) if r.name == EXPORT and r.progress]
            if len(held) >= 2:
                return pid
        return None

    def tell(self, line: str) -> None:
        """What the demo itself does."""
        self.view.tell(line, loud=True)

    def unfinished(self) -> str:
        """The jobs that have not ended, in a few words."""
        waiting = self.snapshot.unfinished()
        return ", ".join(f"{record.name} {record.id} {record.state}" for record in waiting[:3])
