"""Which durable functions have runs that have not ended, and whether a worker serves them.

Old names stay deployed until their runs have ended; this says when they have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.diagnosis.unserved import is_live
from nimburion.core.errors import JobNotFound
from nimburion.core.job import WAITING, JobRecord, State
from nimburion.core.queries import JobFilter

MAX_READ = 10_000
"""The most suspended jobs, and the most waiting ones, that are examined: the newest."""
_PAGE = 1_000
_MAX_PROBES = 3
"""The most waiting jobs of a name that are asked for steps."""
_MAX_PROBED_NAMES = 100


class OpenRuns(msgspec.Struct, frozen=True, kw_only=True):
    """The open runs of one name."""

    name: str
    suspended: int
    waiting: int
    """Those that wait for a worker, or for a later time, and have begun."""
    oldest: float
    """When the oldest was enqueued, in epoch seconds."""
    oldest_id: str
    workers: int
    """The live workers that know the name."""


class OpenRunList(msgspec.Struct, frozen=True):
    """The names with open runs, in their order."""

    names: list[OpenRuns]
    is_complete: bool
    """False: there are more suspended or waiting jobs than were examined."""


async def list_open_runs(backend: Backend) -> OpenRunList:
    """Return the names of the durable runs that are suspended or wait, with counts.

    Whether a waiting job is a run is asked for a few jobs of each name that began before.
    """
    found = _Found()
    async for record in found.iterate(backend, frozenset({State.SUSPENDED})):
        if record.started_at is not None:  # else it waits for other jobs of its flow
            found.add(record)
    waiting = [
        record async for record in found.iterate(backend, WAITING) if record.started_at is not None
    ]
    durable = await _find_durable(backend, waiting, set(found.oldest))
    for record in waiting:
        if record.name in durable:
            found.add(record)
    sessions = [one for one in await backend.reads.list_sessions() if is_live(one)]
    return OpenRunList(
        [
            OpenRuns(
                name=name,
                suspended=found.suspended[name],
                waiting=found.waiting[name],
                oldest=oldest.created_at,
                oldest_id=oldest.id,
                workers=sum(name in session.names for session in sessions),
            )
            for name, oldest in sorted(found.oldest.items())
        ],
        found.is_complete,
    )


class _Found:
    """The open runs that were found."""

    def __init__(self) -> None:
        self.suspended: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self.oldest: dict[str, JobRecord] = {}
        self.is_complete = True

    def add(self, record: JobRecord) -> None:
        """Count a run."""
        counts = self.suspended if record.state is State.SUSPENDED else self.waiting
        counts[record.name] += 1
        known = self.oldest.get(record.name)
        if known is None or record.created_at < known.created_at:
            self.oldest[record.name] = record

    async def iterate(self, backend: Backend, states: frozenset[State]) -> AsyncIterator[JobRecord]:
        """Iterate over the jobs in these states, up to `MAX_READ`."""
        after: str | None = None
        left = MAX_READ
        while left > 0:
            page = await backend.reads.list_jobs(
                JobFilter(states=states), limit=min(_PAGE, left), after=after
            )
            for record in page.jobs:
                yield record
            left -= max(page.examined, len(page.jobs), 1)
            after = page.next
            if after is None:
                return
        self.is_complete = False


async def _find_durable(backend: Backend, waiting: list[JobRecord], known: set[str]) -> set[str]:
    """Return the names of durable runs among those of waiting jobs."""
    durable, probes = set(known), Counter[str]()
    for record in waiting:
        is_new = record.name not in probes and len(probes) >= _MAX_PROBED_NAMES
        if record.name in durable or is_new or probes[record.name] >= _MAX_PROBES:
            continue
        probes[record.name] += 1
        try:
            page = await backend.reads.read_run(record.id, limit=1)
        except JobNotFound:
            continue
        if page.steps:
            durable.add(record.name)
    return durable
