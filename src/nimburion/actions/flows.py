"""Flows: list, show, wait for, close, cancel and replay them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from uuid import UUID

import msgspec

from nimburion.actions.bulk import BulkPreview, preview_jobs
from nimburion.actions.dead_letters import Ids
from nimburion.actions.jobs import STEP, ReportProgress
from nimburion.actions.operator import Operator, SubjectActions
from nimburion.core.backend import Backend, Reading
from nimburion.core.bulk_operations import BulkAction, narrow_to_action
from nimburion.core.errors import FlowNotFound, InvalidJob, WaitTimeout
from nimburion.core.flows import FlowInfo, FlowState, Growth, NewFlow
from nimburion.core.job import DEPENDENCY, FAILED_ONLY, PROCESSING_ONLY, State
from nimburion.core.paging import change_matching, iterate_items
from nimburion.core.queries import JobFilter
from nimburion.core.size_limits import check_name
from nimburion.core.timing.clock import Clock, SystemClock
from nimburion.core.timing.durations import Duration, to_seconds
from nimburion.core.timing.pauses import iterate_pauses

MAX_SEARCHED = 1_000
"""The most flows that are read to find those of a state or a name."""
_PAGE = 100
"""How many of them are read at once."""
_FIRST_PAUSE = 0.01
"""Seconds between the first two reads of `wait`."""
_MAX_PAUSE = 1.0
"""The longest time in seconds between two reads of `wait`."""


class FlowTree(FlowInfo, frozen=True, kw_only=True):
    """A flow with the groups inside it."""

    groups: tuple[FlowTree, ...] = ()
    """The groups, in the order of their ids. Each counts as one member of the flow."""


class FoundFlows(msgspec.Struct, frozen=True, kw_only=True):
    """The flows that a search found."""

    flows: list[FlowInfo]
    next: str | None
    """The cursor with which the search continues; None: it is complete."""
    examined: int
    """The number of flows that were read."""


class ReplayPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What the replay of a flow would do now."""

    failed: BulkPreview
    """The members that failed: they run again."""
    cancelled: BulkPreview
    """The members that were cancelled because others did not complete: those whose dependencies
    run again wait for them again.
    """


class FlowActions(SubjectActions):
    """The flows of a backend: `processor.flows`."""

    def __init__(self, backend: Backend, operator: Operator, clock: Clock | None = None) -> None:
        super().__init__(backend, operator)
        self._clock = clock

    def list(self, *, running: bool = False) -> AsyncIterator[FlowInfo]:
        """Iterate over the flows, newest first; with `running`, over those that have
        not ended. Groups are not listed. Use it with `async for`.
        """
        reads = self._backend.reads
        return iterate_items(
            lambda after: reads.list_flows(running=running, after=after), lambda page: page.flows
        )

    async def get(self, flow_id: str | UUID) -> FlowTree:
        """Return a flow with its counts and its groups.

        ```python
        flow = await processor.flows.get("import-2026-11-30")
        print(flow.state, flow.unfinished, [group.failed for group in flow.groups])
        ```

        Raises `FlowNotFound`.
        """
        return await read_tree(self._backend, check_name("flow id", str(flow_id)))

    async def wait(self, flow_id: str | UUID, timeout: Duration | None = None) -> FlowTree:
        """Wait until a flow has ended, and return it. Its `state` says how it ended.

        `timeout` is a number of seconds or a timedelta; None waits without a limit. The backend is
        read at growing intervals, up to one second. The callbacks of the flow may still run then.

        Raises `FlowNotFound`, and `WaitTimeout` if the flow did not end in time; it continues.
        """
        clock = self._clock or SystemClock()
        seconds = math.inf if timeout is None else to_seconds(timeout)
        deadline = clock.monotonic() + seconds
        pauses = iterate_pauses(_FIRST_PAUSE, _MAX_PAUSE, factor=1.5)
        while True:
            flow = await self.get(flow_id)
            if flow.state is not FlowState.RUNNING:
                return flow
            left = deadline - clock.monotonic()
            if left <= 0:
                raise WaitTimeout(
                    f"flow {flow.id} still runs after {seconds:g} s of waiting: {flow.unfinished} "
                    f"of {flow.members} members have not ended"
                )
            await clock.sleep(min(next(pauses), left))

    async def close(self, flow_id: str | UUID) -> None:
        """Close an open flow: it ends with its last member. Closing it again changes nothing.

        Raises `FlowNotFound`, and `InvalidJob` for the id of a group.
        """
        flow = await self._get_whole(flow_id)
        async with self._operator.record(self._backend, "flows.close", flow.id):
            await self._close(flow)

    async def cancel(
        self,
        flow_id: str | UUID,
        *,
        reason: str = "",
        report: ReportProgress = lambda _: None,
    ) -> Ids:
        """Cancel all members that have not ended, and return the ids of those that were changed.

        The audit log keeps `reason`.

        An open flow is closed first. A member that runs is cancelled by its worker. The members
        are cancelled in bounded steps, most recently stored first. The flow ends as `cancelled`,
        or as `failed` if a member has failed, and its callbacks `on_failure` and `on_finished`
        run. It completes if those that were cancelled are not more than it tolerates.

        A flow of which only a part is stored does not end: the members that are not stored count
        as not ended. Repeat `enqueue_flow` with its id and the same jobs, then cancel it again.

        Raises `FlowNotFound`, and `InvalidJob` for the id of a group.
        """
        from nimburion.actions.flow_members import read_members  # for a cancel only

        flow = await self._get_whole(flow_id)
        start = (await read_members(self._backend, flow)).start
        async with self._operator.record(
            self._backend, "flows.cancel", flow.id, reason=reason
        ) as change:

            def count(changed: int) -> None:  # the record of a cancel that fails has it too
                change.count = (change.count or 0) + changed
                report(changed)

            if flow.is_open:
                await self._close(flow)
            ids, is_complete = await self._cancel_from(flow.id, start, count)
            if not is_complete and start is not None:  # members that were added later are newer
                more, _ = await self._cancel_from(flow.id, None, count)
                ids = list(dict.fromkeys([*ids, *more]))  # running ones are asked again
            change.count = len(ids)
            return ids

    async def _get_whole(self, flow_id: str | UUID) -> FlowTree:
        flow = await self.get(flow_id)
        check_is_whole(flow)
        return flow

    async def _close(self, flow: FlowInfo) -> None:
        await self._backend.producing.enqueue([], [NewFlow(id=flow.id, growth=Growth.CLOSE)])

    async def _cancel_from(
        self, flow_id: str, after: str | None, report: ReportProgress
    ) -> tuple[Ids, bool]:
        """Cancel members from a cursor on. Return their ids, and whether none is left."""
        which = narrow_to_action(JobFilter(flow=flow_id), BulkAction.CANCEL)
        ids: Ids = []
        running: Ids = []
        while True:
            page = await self._backend.reads.list_jobs(which, limit=STEP, after=after)
            if page.jobs:
                members = [record.id for record in page.jobs]
                changes = await self._backend.maintenance.change_jobs(
                    BulkAction.CANCEL, members, states=which.states
                )
                ids += changes.ids
                running += [one.id for one in page.jobs if one.state is State.PROCESSING]
                report(len(changes.ids))
            is_complete = await self._is_cancelled(flow_id, running)
            after = page.next
            if is_complete or after is None:
                return ids, is_complete

    async def _is_cancelled(self, flow_id: str, asked: Ids) -> bool:
        """Return whether no member is left but running ones that were asked to end."""
        left = count_unfinished_jobs(await self.get(flow_id))
        if not left or not left <= len(asked) <= STEP:
            return not left
        # Read after the count: a job that runs now had not ended then.
        which = JobFilter(ids=tuple(asked), states=PROCESSING_ONLY)
        page = await self._backend.reads.list_jobs(which, limit=STEP)
        return left <= len(page.jobs)

    async def preview_replay(self, flow_id: str | UUID) -> ReplayPreview:
        """Return what `replay` would do now. Raises `FlowNotFound`, and `InvalidJob` for the id of
        a group.

        The cancelled members are searched among the jobs that were stored with the flow.
        """
        from nimburion.actions.flow_members import read_members  # for a preview only

        flow = await self._get_whole(flow_id)
        members = await read_members(self._backend, flow)
        failed = JobFilter(flow=flow.id, states=FAILED_ONLY)
        cancelled = JobFilter(flow=flow.id, states=frozenset({State.CANCELLED}), reason=DEPENDENCY)
        return ReplayPreview(
            failed=await preview_jobs(self._backend, BulkAction.REPLAY, failed),
            cancelled=await preview_jobs(
                self._backend, BulkAction.DELETE, cancelled, members.start
            ),
        )

    async def replay(
        self,
        flow_id: str | UUID,
        *,
        reason: str = "",
        report: ReportProgress = lambda _: None,
    ) -> Ids:
        """Run the failed part of a flow again, and return the ids of the members replayed.

        The audit log keeps `reason`.

        The members that failed become pending again. The members that were cancelled only because
        of them wait again, under their ids. Those that completed stay as they are. A callback that
        was called is not called a second time.

        Raises `FlowNotFound`, and `InvalidJob` for the id of a group.
        """
        flow = await self._get_whole(flow_id)
        which = JobFilter(flow=flow.id)
        changed: Ids = []
        async with self._operator.record(
            self._backend, "flows.replay", flow.id, reason=reason
        ) as change:
            after: str | None = None
            while True:
                step = await change_matching(self._backend, BulkAction.REPLAY, which, STEP, after)
                changed += step.ids
                change.count = len(changed)
                report(len(step.ids) + len(step.held))
                after = step.next
                if after is None:
                    return changed


def check_is_whole(flow: FlowInfo) -> None:
    """Raise `InvalidJob` for a group: the members are found by the id of the whole flow."""
    if flow.parent is not None:
        raise InvalidJob(f"{flow.id!r} is a group: pass the id of its flow, {flow.parent!r}")


def count_unfinished_jobs(tree: FlowTree) -> int:
    """Return how many jobs of a flow have not ended, or are not stored yet."""
    groups = sum(group.unfinished > 0 for group in tree.groups)
    inside = sum(map(count_unfinished_jobs, tree.groups))
    return tree.unfinished - tree.is_open - groups + inside


def count_failed_jobs(tree: FlowTree) -> int:
    """Return how many jobs of a flow are dead letters."""
    groups = sum(group.has_failed and group.failed > 0 for group in tree.groups)
    return tree.failed - groups + sum(map(count_failed_jobs, tree.groups))


async def read_tree(backend: Backend, flow_id: str) -> FlowTree:
    """Return a flow with its counts and its groups. Raises `FlowNotFound`."""
    found = await backend.reads.get_flow(flow_id)
    if not found:
        raise FlowNotFound(flow_id)
    groups: dict[str | None, list[FlowInfo]] = {}
    for one in found[1:]:
        groups.setdefault(one.parent, []).append(one)
    return _make_tree(found[0], groups)


async def search_flows(
    reads: Reading,
    *,
    state: FlowState | None = None,
    name: str = "",
    limit: int,
    after: str | None = None,
) -> FoundFlows:
    """Return up to `limit` flows in a state and with a name, the one stored last first.

    `name` is the name of a flow, or the beginning of its id. The search ends after `MAX_SEARCHED`
    flows, because backends have no index for it, except for the flows that run.
    """
    running = state is FlowState.RUNNING
    all_match = not name and (running or state is None)

    def matches(flow: FlowInfo) -> bool:
        return state in (None, flow.state) and (name == flow.name or flow.id.startswith(name))

    found: list[FlowInfo] = []
    examined = 0
    while True:
        size = limit if all_match else _PAGE
        page = await reads.list_flows(running=running, limit=size, after=after)
        places = [place for place, flow in enumerate(page.flows) if matches(flow)]
        if len(places) > limit - len(found):  # read up to the last one, for its cursor
            size = places[limit - len(found) - 1] + 1
            page = await reads.list_flows(running=running, limit=size, after=after)
        found += filter(matches, page.flows)
        examined += len(page.flows)
        after = page.next
        if after is None or len(found) >= limit or examined >= MAX_SEARCHED:
            return FoundFlows(flows=found, next=after, examined=examined)


def _make_tree(flow: FlowInfo, groups: Mapping[str | None, Sequence[FlowInfo]]) -> FlowTree:
    inside = tuple(_make_tree(one, groups) for one in groups.get(flow.id, ()))
    return FlowTree(**msgspec.structs.asdict(flow), groups=inside)
