"""Read the members of a flow within bounds: for pictures of it, and to export it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from nimburion.actions.flows import FlowTree
from nimburion.backends.planning.flows import Transition, find_change, judge
from nimburion.core.backend import Backend
from nimburion.core.diagnosis.explanations import Unmet
from nimburion.core.flows import FlowInfo, On, SourceKind, WaitCondition
from nimburion.core.job import JobRecord
from nimburion.core.queries import JobFilter, move_cursor

MAX_RECORDS = 1_000
"""The most jobs that a search for members returns, and the most that are read by their ids."""
MAX_GROUPS = 500
"""The most groups of which a job is read."""
_CALLBACKS = ("on_success", "on_failure", "on_finished")
_NEWER = 2_000
"""How many jobs before the newest one that was found a search begins."""
_ROUNDS = 20
"""How often the dependencies of what was read are read in turn."""


class Dependency(Unmet, frozen=True, kw_only=True):
    """A condition of a job, with the job or the flow that it names, if that is kept."""

    is_met: bool | None
    """None: its source has not ended, or is not kept. False: it cannot be met any more."""


class FlowMembers(msgspec.Struct, frozen=True, kw_only=True):
    """A flow, and those of its jobs that were found."""

    tree: FlowTree
    records: dict[str, JobRecord]
    """The jobs by id, without payloads: single members, some of each group, and the callbacks."""
    examined: int
    """The number of jobs of the backend that were searched for members."""
    start: str | None
    """The cursor at which a search for members begins; None: with the newest job."""
    missing: int
    """How many members that are in no group were not found."""

    @property
    def groups(self) -> list[FlowTree]:
        """All groups, at any depth."""
        return list(iterate_groups(self.tree))

    def list_waiters(self, record: JobRecord) -> list[JobRecord]:
        """Return the jobs that were found and that wait, or waited, for a job or for its group."""
        own = {record.id, record.options.group or record.id}
        return [
            one
            for one in self.records.values()
            if any(condition.source.id in own for condition in one.options.conditions)
        ]


def iterate_groups(tree: FlowTree) -> Iterator[FlowTree]:
    """Iterate over the groups of a flow, at any depth."""
    for group in tree.groups:
        yield group
        yield from iterate_groups(group)


async def read_members(backend: Backend, tree: FlowTree) -> FlowMembers:
    """Read the members of a flow, as far as they are found.

    Backends have no index of the members. Some jobs of each group and the callbacks are read by
    their ids, and so are members with the names of jobs that workers know. The others are found
    among the jobs that were stored shortly before and after these, or because another one waits for
    them.
    """
    search = _Search(backend, tree)
    groups = list(iterate_groups(tree))[:MAX_GROUPS]
    ends = [f"{group.id}.{number}" for group in groups for number in (0, group.members - 1)]
    await search.read_ids([*ends, *(f"{tree.id}.{name}" for name in _CALLBACKS)])
    await search.follow_dependencies()
    if search.missing:
        await search.read_names()
        await search.follow_dependencies()
    await search.find_start()
    if search.missing:
        await search.scan()
        await search.follow_dependencies()
    return FlowMembers(
        tree=tree,
        records=search.records,
        examined=search.examined,
        start=search.start,
        missing=search.missing,
    )


async def read_dependencies(
    backend: Backend, members: FlowMembers, records: Iterable[JobRecord], limit: int
) -> dict[str, list[Dependency]]:
    """Return for what each of these jobs waits, or waited, by the id of the job.

    At most `limit` conditions of each are returned. Jobs that `members` does not have are read, at
    most `MAX_RECORDS`.
    """
    conditions = {record.id: record.options.conditions[:limit] for record in records}
    flows: dict[str, FlowInfo] = {group.id: group for group in members.groups}
    flows[members.tree.id] = members.tree
    jobs = dict(members.records)
    unread = {
        one.source.id
        for some in conditions.values()
        for one in some
        if one.source.kind is SourceKind.JOB and one.source.id not in jobs
    }
    if unread:
        ids = tuple(sorted(unread)[:MAX_RECORDS])
        page = await backend.reads.list_jobs(JobFilter(ids=ids), limit=len(ids))
        jobs.update({record.id: record for record in page.jobs})

    def make(condition: WaitCondition) -> Dependency:
        is_flow = condition.source.kind is SourceKind.FLOW
        job = None if is_flow else jobs.get(condition.source.id)
        flow = flows.get(condition.source.id) if is_flow else None
        ended = job.state if job is not None else flow
        change = None if ended is None else find_change(ended)
        is_open = change is None or (change is Transition.FAILING and condition.on is On.FINISHED)
        is_met = None if change is None or is_open else judge(condition.on, change)
        return Dependency(condition=condition, job=job, flow=flow, is_met=is_met)

    return {job_id: [make(one) for one in some] for job_id, some in conditions.items()}


class _Search:
    """The members of one flow that were found so far."""

    def __init__(self, backend: Backend, tree: FlowTree) -> None:
        self._reads = backend.reads
        self._tree = tree
        self._asked: set[str] = set()
        """The ids that were read, whether there is such a job or not."""
        self.records: dict[str, JobRecord] = {}
        self.examined = 0
        self.start: str | None = None

    @property
    def missing(self) -> int:
        """How many members that are in no group were not found."""
        tree = self._tree
        single = tree.members - len(tree.groups) - tree.is_open
        found = sum(record.options.group is None for record in self.records.values())
        return max(0, single - found)

    async def read_ids(self, ids: Iterable[str]) -> None:
        """Read the jobs with these ids that were not read before."""
        wanted = tuple(job_id for job_id in ids if job_id not in self._asked)[:MAX_RECORDS]
        if wanted:
            self._asked.update(wanted)
            page = await self._reads.list_jobs(JobFilter(ids=wanted), limit=len(wanted))
            self._keep(page.jobs)

    async def read_names(self) -> None:
        """Read the members that are named after a job that a worker knows."""
        sessions = await self._reads.list_sessions()
        names = sorted({name.replace(".", "_") for session in sessions for name in session.names})
        await self.read_ids(
            f"{self._tree.id}.{name}{repeat}" for name in names for repeat in ("", "-2", "-3")
        )

    async def follow_dependencies(self) -> None:
        """Read the jobs for which those that were found wait, and so on."""
        for _ in range(_ROUNDS):
            sources = {
                condition.source.id
                for record in self.records.values()
                for condition in record.options.conditions
                if condition.source.kind is SourceKind.JOB
            }
            unread = sources - self._asked
            if not unread or len(self._asked) > 2 * MAX_RECORDS:
                return
            await self.read_ids(sorted(unread))

    async def find_start(self) -> None:
        """Set `start` to a place before the newest job that was found."""
        ids = tuple(self.records)[:MAX_RECORDS]
        if len(ids) > 1:
            newest = await self._reads.list_jobs(JobFilter(ids=ids), limit=1)
            if newest.next is not None:
                self.start = move_cursor(newest.next, _NEWER)

    async def scan(self) -> None:
        """Search the jobs from `start` on."""
        which = JobFilter(flow=self._tree.id)
        page = await self._reads.list_jobs(which, limit=MAX_RECORDS, after=self.start)
        self.examined = page.examined
        self._asked.update(record.id for record in page.jobs)
        self._keep(page.jobs)

    def _keep(self, records: Iterable[JobRecord]) -> None:
        for record in records:
            if record.options.flow == self._tree.id:
                self.records[record.id] = record


async def list_group(
    backend: Backend, group: FlowInfo, which: JobFilter, start: int, limit: int
) -> tuple[list[JobRecord], int | None]:
    """Return jobs of a group from number `start` on, in their order, and where the next part
    starts; None: the group ends.

    At most `MAX_RECORDS` jobs are read, so there may be fewer than `limit` before the end.
    """
    numbers = range(start, min(group.members, start + (MAX_RECORDS if which.states else limit)))
    ids = tuple(f"{group.id}.{number}" for number in numbers)
    if not ids:
        return [], None
    wanted = msgspec.structs.replace(which, ids=ids)
    page = await backend.reads.list_jobs(wanted, limit=len(ids))
    order = dict(zip(ids, numbers, strict=True))
    found = sorted(page.jobs, key=lambda record: order[record.id])
    if len(found) > limit:
        return found[:limit], order[found[limit].id]
    return found, numbers.stop if numbers.stop < group.members else None
