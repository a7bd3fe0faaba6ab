"""The half of the Redis store that no worker calls: what operators, readers and schedulers do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from nimburion.backends.packing import asked_id
from nimburion.backends.redis import inspecting, maintaining, scheduling
from nimburion.backends.redis.line import Part
from nimburion.backends.redis.records import asked_text
from nimburion.backends.redis.seeking import FEW, LETTERS, STEP, Walk, fields_of
from nimburion.core.job import FINISHED, JobRecord, NewJob, State
from nimburion.core.reading import (
    EVERY_JOB,
    Cancellation,
    Fired,
    JobFilter,
    Overlap,
    Page,
    Promoted,
    QueueInfo,
    Replayed,
    Retention,
    ScheduleRecord,
)
from nimburion.core.session import SessionInfo


class Operating(ABC):
    """Operations of `Maintaining`, `Inspecting` and `Scheduling`, and `cancel`."""

    __slots__ = ()

    @abstractmethod
    async def _run(self, name: str, *arguments: Part) -> Any:  # noqa: ANN401 - a script's reply
        """Run a script."""

    @abstractmethod
    async def _write(self, script: str, arguments: Sequence[Part]) -> Any:  # noqa: ANN401
        """Run a script that stores new jobs."""

    @abstractmethod
    async def promote(self, limit: int) -> Promoted:
        """See `Backend.promote`."""

    # --- operators ---

    async def cancel(self, job_id: str) -> Cancellation:
        """See `Backend.cancel`."""
        answer = await self._run("cancel", asked_id(job_id))
        return maintaining.cancellation_of(answer, job_id)

    async def replay(self, which: JobFilter, limit: int, after: str | None = None) -> Replayed:
        """See `Backend.replay`. Looks at 500 dead letters a step, until `limit` are found and it
        is known whether there are more."""
        walk = await self._walk(which, maintaining.failed_of(which), after)
        answers: list[list[Any]] = []
        while not walk.ended:
            answer = await self._run("replay", *walk.step(limit))
            answers.append(answer)
            walk.go_on(*answer[:2])
            limit -= len(answer[2]) + len(answer[3])
            if answer[5]:
                break
        return maintaining.replayed_of(answers)

    async def delete(self, which: JobFilter, limit: int) -> list[str]:
        """See `Backend.delete`. Looks at 500 finished jobs a step."""
        walk = await self._walk(which, maintaining.finished_of(which), deletes=True)
        ids: list[str] = []
        while len(ids) < limit and not walk.ended:
            on, last, found = await self._run("delete", *walk.step(limit - len(ids)))
            walk.go_on(on, last)
            ids += inspecting.ids_of(found)
        return ids

    async def pause(self, queue: str, *, paused: bool) -> None:
        """See `Backend.pause`."""
        await self._run("pause", queue, b"1" if paused else b"")

    async def prune(self, keep: Retention, limit: int) -> int:
        """See `Backend.prune`. Forgets 500 a step."""
        asked, pruned, more = maintaining.pruning_of(keep), 0, 1
        while pruned < limit and more:
            step = min(limit - pruned, STEP)
            count, more = await self._run("prune", step, *asked)
            more = more or count == step
            pruned += count
        return pruned

    async def _walk(
        self,
        which: JobFilter,
        states: frozenset[State] | None,
        after: str | None = None,
        *,
        deletes: bool = False,
    ) -> Walk:
        """The way through the jobs of a filter: those that it names, or the unfinished ones where
        only these are meant and they are few, or all."""
        given: Iterable[bytes] | None = None
        if which.ids is not None:
            given = await self._find(which.ids)
        elif states and states.isdisjoint(FINISHED):
            letters = "".join(LETTERS[state] for state in states)
            given = fields_of(await self._run("unfinished", letters, FEW))
        return Walk(which, states, after, given=given, deletes=deletes)

    async def _find(self, ids: Collection[str]) -> list[bytes]:
        """Where jobs lie, those that there are."""
        asked, found = sorted({asked_id(one) for one in ids}), []
        for at in range(0, len(asked), STEP):
            found += await self._run("find", *asked[at : at + STEP])
        return [field for field in found if field is not None]

    # --- readers ---

    async def get(self, job_id: str) -> JobRecord:
        """See `Backend.get`."""
        answer = await self._run("get", asked_id(job_id))
        return inspecting.record_of(answer, job_id)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
    ) -> Page:
        """See `Backend.list_jobs`. Looks at 500 jobs a step: a page of a filter that few jobs fit
        takes as many steps as there are jobs before them."""
        walk = await self._walk(which, which.states, after)
        answers, left = [], limit + 1
        while left > 0 and not walk.ended:
            answer = await self._run("list", *walk.step(left), b"1" if payloads else b"")
            answers.append(answer)
            walk.go_on(*answer[:2])
            left -= len(answer[3])
        return inspecting.page_of(answers, limit)

    async def counts(self, queue: str | None = None) -> dict[State, int]:
        """See `Backend.counts`."""
        asked = [] if queue is None else [asked_text(queue)]
        return inspecting.counts_of(await self._promoted("counts", *asked))

    async def queues(self) -> list[QueueInfo]:
        """See `Backend.queues`."""
        return inspecting.queues_of(await self._promoted("queues"))

    async def sessions(self) -> list[SessionInfo]:
        """See `Backend.sessions`."""
        return inspecting.sessions_of(await self._run("sessions"))

    async def _promoted(self, name: str, *arguments: Part) -> list[Any]:
        """What a script answers that counts. It takes up to 500 jobs that are due and not yet
        promoted for what they are; where there are more, they are promoted first."""
        while not (answer := await self._run(name, *arguments)):
            await self.promote(STEP)
        return answer  # type: ignore[no-any-return]

    # --- schedules ---

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        """See `Backend.put_schedule`."""
        await self._run("put_schedule", *scheduling.schedule_of(schedule))

    async def list_schedules(self) -> list[ScheduleRecord]:
        """See `Backend.list_schedules`."""
        return scheduling.schedules_of(await self._run("schedules"))

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """See `Backend.pause_schedule`."""
        flag = b"1" if paused else b"0"
        return bool(await self._run("pause_schedule", asked_text(name), flag))

    async def delete_schedule(self, name: str) -> bool:
        """See `Backend.delete_schedule`."""
        return bool(await self._run("delete_schedule", asked_text(name)))

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        """See `Backend.fire`."""
        asked = scheduling.firing_of(name, (expected_last, tick), job, overlap)
        return scheduling.fired_of(await self._write("fire", asked))
