"""Add members to a flow that is stored: `processor.flows.add` and `ctx.flow.add`."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

from nimburion.actions.flows import FlowActions
from nimburion.core.errors import InvalidJob, NotOpen, NotSupported
from nimburion.core.flows import Growth, NewFlow
from nimburion.core.ids import compute_digest
from nimburion.core.size_limits import NAME_PATTERN, check_name, check_text
from nimburion.jobs.declaration.job import AnyJob, JobId, JobReturning, require_declaration
from nimburion.jobs.flows.flow import find_results, list_jobs
from nimburion.jobs.flows.plan import GraphPlace, PlannedJob
from nimburion.jobs.handling.attempt_record import AttemptRecord
from nimburion.jobs.handling.loop_calls import find_running_loop

if TYPE_CHECKING:
    from nimburion.jobs.client.client import Client

R = TypeVar("R")


class Flows(FlowActions):
    """The flows of a processor: `processor.flows`."""

    def __init__(self, client: Client) -> None:
        super().__init__(client.backend, client.operator, client.clock)
        self._client = client

    async def add(
        self,
        flow_id: str | UUID,
        jobs: JobReturning[Any] | Iterable[JobReturning[Any]],
        *,
        name: str | None = None,
    ) -> list[str]:
        """Add jobs to a flow that has not ended, and return their ids.

        ```python
        await processor.flows.add("import-1", [count_rows.job(n) for n in range(3)], name="late")
        ```

        The ids are `FLOW_ID.NAME.0` and so on. `name` differs from those of the members and of
        other additions. With it, the call is safe to repeat: it adds nothing twice. Without it,
        each call adds new jobs. More than `sizes.batch` jobs (10,000; on Redis 500) are added in
        batches of this size.

        Inside a handler that is itself a member, use `ctx.flow.add`. Errors:

        - `FlowNotFound`: the flow is unknown. Nothing was stored.
        - `InvalidJob`: the flow has ended, or an argument is not valid. Of the flow that ended
          between two batches, the earlier batches were stored; otherwise nothing was.
        - `JobConflict`: another job has one of the ids, such as a job of an earlier call with other
          arguments. Nothing of its batch was stored; the other batches were.
        - `DuplicateJob` and `BackendUnavailable`: see `enqueue_flow`.
        """
        flow = check_name("flow id", str(flow_id))
        if name is not None and "." in check_name("the name of an addition", name):
            raise InvalidJob(f"the name of an addition has no dot: {name!r}")
        several = list_jobs(jobs) if isinstance(jobs, Iterable) else [jobs]
        from nimburion.jobs.client.client import add_members

        return await add_members(self._client, flow, None, name, several)


class MemberFlow:
    """The flow of the job that runs: `ctx.flow`."""

    def __init__(self, record: AttemptRecord, client: Client | None) -> None:
        options = record.delivery.options
        if options.flow is None or options.counted_flow is None:
            job_id = record.delivery.lease.job_id
            raise InvalidJob(
                f"job {job_id} is not a member of a flow, so it has no `ctx.flow`; a callback gets "
                "the id of its flow as an argument"
            )
        self.id: str = options.flow
        """The id of the flow."""
        self.group: str | None = options.group
        """The id of the group inside the flow that has this job; None: it is in no group."""
        self._record = record
        self._client = client

    def __repr__(self) -> str:
        return f"<flow {self.id} of job {self._record.delivery.lease.job_id}>"

    def add(self, job: JobReturning[R], *, key: str | None = None) -> Coroutine[Any, Any, JobId[R]]:
        """Add a job to the flow, and return its id.

        If the job that runs is in a group, the new one is in it too: what waits for the group waits
        for both. The flow does not end before the new job.

        The call is safe to repeat: another attempt of the job that runs adds nothing twice. The id
        of the new job is made of that of this job and `key`. Without a key, it is the position
        among the calls of the attempt: then each attempt must make the same calls in the same
        order. To repeat a call within an attempt, after an error, pass a key.

        Errors: `JobConflict` if another attempt added another job at this place; the others are
        those of `processor.flows.add`.
        """
        self._check_can_await()
        name = self._make_name(key)

        async def add() -> JobId[R]:
            (job_id,) = await self._add(name, [job])
            return cast("JobId[R]", job_id)

        return add()

    def add_all(
        self, jobs: Iterable[JobReturning[Any]], *, key: str | None = None
    ) -> Coroutine[Any, Any, list[str]]:
        """Add several jobs, and return their ids. See `add`. Many are added in batches."""
        self._check_can_await()
        return self._add(self._make_name(key), list_jobs(jobs))

    async def _add(self, name: str, jobs: Sequence[JobReturning[Any]]) -> list[str]:
        if self._client is None:
            raise NotOpen("this context has no processor to add members with")
        from nimburion.jobs.client.client import add_members

        return await add_members(self._client, self.id, self.group, name, jobs)

    def _check_can_await(self) -> None:
        if find_running_loop() is None:  # the coroutine would never run, and the job would be lost
            raise NotSupported(
                "`ctx.flow.add` needs `await`, and this handler is a `def`: write "
                "`processor.sync.flows.add(ctx.flow.id, …, name=…)`"
            )

    def _make_name(self, key: str | None) -> str:
        """Return the name of what the next call adds: the same in each attempt."""
        if key is None:
            place = f"#{self._record.added_members}"
            self._record.added_members += 1
        else:
            place = f"={check_text('key', key)}"
        return compute_digest(self._record.delivery.lease.job_id, place.encode()).hex()


def plan_additions(
    flow_id: str, group: str | None, name: str, jobs: Sequence[JobReturning[Any]]
) -> list[PlannedJob]:
    """Return the members that jobs become in a stored flow, or in a group inside it."""
    planned, place = [], GraphPlace(flow_id, group)
    for number, job in enumerate(jobs):
        member, job_id = f"{name}.{number}", f"{flow_id}.{name}.{number}"
        if find_results(job):
            raise InvalidJob(
                f"job {require_declaration(job).name!r}: a job that is added to a stored flow "
                "takes no results of members; pass values that are known"
            )
        if NAME_PATTERN.fullmatch(job_id) is None:
            raise InvalidJob(
                f"member {member!r}: its id {job_id!r} would have {len(job_id)} characters, over "
                "the limit of 128; use a shorter name"
            )
        planned.append(PlannedJob(job_id, member, cast("AnyJob", job), place))
    return planned


def list_grown_flows(flow_id: str, group: str | None) -> list[NewFlow]:
    """Return what gets members: a flow, or a group inside it."""
    flows = [NewFlow(id=flow_id, growth=Growth.ADD)]
    if group is not None:
        flows.append(NewFlow(id=group, parent=flow_id, growth=Growth.ADD))
    return flows
