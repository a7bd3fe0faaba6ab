"""Metrics of the backend: queues, sessions, limits. The same for every process of the fleet.

Export them from few processes (the management server), because each asks the backend. A scrape
makes two reads, `list_queues` and `list_sessions`. Limits, running flows and the number of dead
letters, which change slowly, are read apart from the scrapes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.diagnosis.unserved import find_unserved, is_live
from nimburion.core.errors import BackendError
from nimburion.core.fairness import TenantUse
from nimburion.core.flows import FlowState
from nimburion.core.job import State
from nimburion.core.limits import LimitInfo, get_limited_job
from nimburion.core.metrics.counters import OTHER
from nimburion.core.queries import JobFilter, QueueInfo
from nimburion.core.session import SessionInfo
from nimburion.telemetry.families import NO_LABELS, Family, Labels, Sample

_log = logging.getLogger("nimburion.telemetry")

_FLOWS_PAGE = 1_000
READ_TIMEOUT = 5.0
"""Seconds after which a backend that has not answered counts as down."""
MAX_QUEUES = 1_000
"""The maximum number of queues with series of their own; the others are added up as `other`."""
MAX_TENANTS = 1_000
"""The maximum number of tenants that are read. None of them has series of its own."""
MAX_FLOWS = 10_000
"""The maximum number of running flows that are read, the ones that were stored last."""
MAX_SUSPENDED = 1_000
"""The maximum number of suspended jobs whose names are read, the newest. The others count as
`other`.
"""
MAX_NAMES = 500
"""The maximum number of job names with series of their own."""


class BackendMetrics:
    """The metrics of a backend. `refresh` reads them, `collect` returns what was read last."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._families: list[Family] = []
        self._limits: list[LimitInfo] = []
        self._tenants: list[TenantUse] = []
        self._dead: int | None = None
        self._suspended: dict[str, int] | None = None
        self._flows: _FlowCounts | None = None
        self._slow_readings_work = True
        self._labels: dict[tuple[str, str], Labels] = {}

    async def refresh(self) -> None:
        """Read queues and sessions.

        If the backend does not answer, `backend_up` is 0, and the other metrics of the backend are
        left out until the next reading that succeeds.
        """
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                queues = await self._backend.reads.list_queues(budget=None)
                sessions = await self._backend.reads.list_sessions()
        except (BackendError, TimeoutError) as error:
            _log.debug("the metrics of the backend could not be read: %r", error)
            self._families = [_make_up(0)]
            self._limits, self._tenants, self._suspended = [], [], None
            self._dead, self._flows = None, None
            return
        self._families = [_make_up(1), *self._describe(queues, sessions)]

    async def refresh_slow_readings(self) -> None:
        """Read what changes slowly: limits, tenants, running flows, suspended jobs, and the number
        of dead letters.

        The numbers of flows, suspended jobs and dead letters are left out when they cannot be read.
        The first failure is logged.
        """
        dead = suspended = flows = None
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                self._limits = await self._backend.reads.list_limits(fullest=1, holders=0)
                self._tenants = (await self._backend.reads.list_tenants(MAX_TENANTS)).tenants
                counts = await self._backend.reads.count_jobs(budget=None)
                dead = counts[State.FAILED]
                suspended = await _count_suspended(self._backend, counts[State.SUSPENDED])
                flows = await _count_flows(self._backend)
        except (BackendError, TimeoutError) as error:
            _log.log(
                logging.WARNING if self._slow_readings_work else logging.DEBUG,
                "the metrics of limits, flows and dead letters are incomplete: they could not be "
                "read within %g s (%r)",
                READ_TIMEOUT,
                error,
            )
        self._dead, self._suspended, self._flows = dead, suspended, flows
        self._slow_readings_work = flows is not None

    def collect(self) -> Iterable[Family]:
        """Return the families of the last `refresh`, with those of `refresh_slow_readings`."""
        return [*self._families, *self._describe_slow_readings()]

    def _describe(
        self, queues: Sequence[QueueInfo], sessions: Sequence[SessionInfo]
    ) -> Iterable[Family]:
        shown, rest = _split_overflow(queues)
        servers: dict[str, int] = {}
        for session in filter(is_live, sessions):
            for queue in session.queues:
                servers[queue] = servers.get(queue, 0) + 1
        own = {info.name for info in shown}
        unserved: dict[str, int] = {}
        for jobs in find_unserved(queues, sessions):
            queue = jobs.queue if jobs.queue in own else OTHER
            unserved[queue] = unserved.get(queue, 0) + jobs.count
        if rest:
            overflow = {info.name for info in rest}
            servers[OTHER] = sum(
                not overflow.isdisjoint(session.queues) for session in filter(is_live, sessions)
            )
            shown.append(_add_up(rest))
        idle = [queue for queue in servers if queue not in own and queue != OTHER]
        names: dict[str, int] = {}
        for info in queues:
            for name, count in info.names.items():
                names[name] = names.get(name, 0) + count
        for metric, text, read in _QUEUE_GAUGES:
            yield self._gauge(metric, text, {info.name: read(info) for info in shown})
        yield self._gauge(
            "queue_servers",
            "Live workers that serve the queue.",
            {info.name: servers.get(info.name, 0) for info in shown}
            | {queue: servers[queue] for queue in idle[: max(0, MAX_QUEUES - len(shown))]},
        )
        yield self._gauge(
            "jobs_unserved",
            "Waiting jobs that no live worker takes: none serves the queue or knows the name.",
            {info.name: unserved.get(info.name, 0) for info in shown},
        )
        yield self._gauge(
            "jobs_waiting",
            "Waiting jobs by name, due or not.",
            _bound_names(names),
            label="name",
        )
        yield self._gauge("sessions", "Sessions of workers.", _count_states(sessions), "state")

    def _describe_slow_readings(self) -> Iterable[Family]:
        durable = int(self._backend.capabilities.durable)
        yield Family(
            name="backend_durable",
            kind="gauge",
            help="1 if jobs survive the death of every process that uses the backend.",
            samples=[Sample(NO_LABELS, durable)],
        )
        if self._dead is not None:
            yield Family(
                name="jobs_dead",
                kind="gauge",
                help="Dead letters that are kept.",
                samples=[Sample(NO_LABELS, self._dead)],
            )
        if self._suspended is not None:
            text = "Jobs that wait for other jobs, a signal or a time."
            yield self._gauge("jobs_suspended", text, self._suspended, "name")
        if self._flows is not None:
            yield from self._describe_flows(self._flows)
        yield from self._describe_limits()
        if self._tenants:
            yield from self._describe_tenants()

    def _describe_flows(self, flows: _FlowCounts) -> Iterable[Family]:
        for name, text, values in (
            ("flows_running", "Flows that have not ended.", flows.running),
            ("flows_failing", "Those of them that are certain to fail.", flows.failing),
            ("flows_failed", "Failed flows among those that were stored last.", flows.failed),
        ):
            yield self._gauge(name, text, _bound_names(values), "name")
        yield Family(
            name="oldest_flow_seconds",
            kind="gauge",
            help="Seconds since the oldest flow that has not ended was stored.",
            samples=[Sample(NO_LABELS, flows.oldest_age)],
        )

    def _describe_tenants(self) -> Iterable[Family]:
        live: dict[str, set[str]] = {}
        most: dict[str, int] = {}
        for use in self._tenants:
            live.setdefault(use.queue, set()).add(use.tenant)
            most[use.queue] = max(most.get(use.queue, 0), use.waiting)
        yield self._gauge(
            "tenants",
            "Tenants with jobs that wait for a turn or run.",
            {queue: len(tenants) for queue, tenants in live.items()},
        )
        yield self._gauge(
            "tenant_jobs_waiting_max",
            "Jobs of the tenant that has the most jobs waiting for a turn.",
            most,
        )

    def _describe_limits(self) -> Iterable[Family]:
        of_jobs = {
            job: limit for limit in self._limits if (job := get_limited_job(limit.name)) is not None
        }
        others = [limit for limit in self._limits if get_limited_job(limit.name) is None]
        rooms = {job: limit.room for job, limit in of_jobs.items() if limit.room is not None}
        if rooms:
            yield self._gauge(
                "rate_room",
                "Jobs that the rate of a job name allows to start now.",
                dict(list(rooms.items())[:MAX_NAMES]),
                "name",
            )
        changes = sum(len(limit.changes) for limit in self._limits)
        if changes:
            yield Family(
                name="limit_changes",
                kind="gauge",
                help="Limits and keys that operators changed at run time.",
                samples=[Sample(NO_LABELS, changes)],
            )
        if others:
            for name, text, read in _KEY_GAUGES:
                values = {limit.name: read(limit) for limit in others[:MAX_NAMES]}
                yield self._gauge(name, text, values, "name")
        maxima = {
            job: (limit.in_use, limit.concurrency)
            for job, limit in of_jobs.items()
            if limit.concurrency is not None
        }
        if not maxima:
            return
        shown = dict(list(maxima.items())[:MAX_NAMES])
        yield self._gauge(
            "limit_in_use",
            "Jobs that count against the maximum of a job name.",
            {job: in_use for job, (in_use, _) in shown.items()},
            "name",
        )
        yield self._gauge(
            "limit_max",
            "The maximum of a job name.",
            {job: maximum for job, (_, maximum) in shown.items()},
            "name",
        )

    def _gauge(
        self, name: str, text: str, values: Mapping[str, float], label: str = "queue"
    ) -> Family:
        samples = [Sample(self._label(label, key), value) for key, value in values.items()]
        return Family(name=name, kind="gauge", help=text, samples=samples)

    def _label(self, label: str, value: str) -> Labels:
        key = (label, value)
        labels = self._labels.get(key)
        if labels is None:
            if len(self._labels) > 4 * MAX_QUEUES:
                self._labels.clear()
            labels = self._labels[key] = Labels({label: value})
        return labels


async def _count_suspended(backend: Backend, total: int) -> dict[str, int]:
    """Return the number of suspended jobs by name; those beyond `MAX_SUSPENDED` are `other`."""
    if not total:
        return {}
    which = JobFilter(states=frozenset({State.SUSPENDED}))
    page = await backend.reads.list_jobs(which, limit=MAX_SUSPENDED)
    names = _bound_names(Counter(record.name for record in page.jobs))
    rest = total - len(page.jobs)
    return {**names, OTHER: names.get(OTHER, 0) + rest} if rest > 0 else names


class _FlowCounts(msgspec.Struct, frozen=True):
    """How many flows have not ended, and how many have failed."""

    running: dict[str, int]
    """Their number by name."""
    failing: dict[str, int]
    """How many of them have more failed or cancelled members than they tolerate, by name."""
    failed: dict[str, int]
    """How many of the newest flows have failed, by name."""
    oldest_age: float
    """The age of the oldest in seconds; 0 if there is none."""


async def _count_flows(backend: Backend) -> _FlowCounts:
    """Count the flows that have not ended, up to `MAX_FLOWS`, and the failed ones among the newest
    `_FLOWS_PAGE`.
    """
    running: dict[str, int] = {}
    failing: dict[str, int] = {}
    oldest = math.inf
    after: str | None = None
    for _ in range(MAX_FLOWS // _FLOWS_PAGE):
        page = await backend.reads.list_flows(running=True, limit=_FLOWS_PAGE, after=after)
        for flow in page.flows:
            running[flow.name] = running.get(flow.name, 0) + 1
            failing[flow.name] = failing.get(flow.name, 0) + flow.has_failed
            oldest = min(oldest, flow.created_at)
        after = page.next
        if after is None:
            break
    failed: dict[str, int] = {}
    for flow in (await backend.reads.list_flows(limit=_FLOWS_PAGE)).flows:
        failed[flow.name] = failed.get(flow.name, 0) + (flow.state is FlowState.FAILED)
    age = await backend.now() - oldest if running else 0.0
    return _FlowCounts(running, failing, failed, age)


_QUEUE_GAUGES: tuple[tuple[str, str, Callable[[QueueInfo], float]], ...] = (
    ("jobs_queue_size", "Jobs that are due and not processing.", lambda info: info.size),
    ("jobs_scheduled", "Jobs that are not due yet.", lambda info: info.scheduled),
    ("jobs_processing", "Jobs that workers hold.", lambda info: info.processing),
    (
        "jobs_oldest_ready_seconds",
        "Seconds that the first due job of a queue has been due.",
        lambda info: info.oldest_age,
    ),
    ("queue_paused", "1 if the queue is paused.", lambda info: int(info.paused)),
)
"""The gauges that a queue alone decides: name, help, and how to read them."""


_KEY_GAUGES: tuple[tuple[str, str, Callable[[LimitInfo], float]], ...] = (
    ("limit_keys", "Keys of a limit that are in use or for which jobs wait.", lambda one: one.keys),
    ("limit_keys_in_use", "Running jobs of all keys of a limit.", lambda one: one.in_use),
    ("limit_keys_parked", "Jobs that wait for their key to have room.", lambda one: one.parked),
    (
        "limit_key_fullest",
        "Running and waiting jobs of the fullest key of a limit.",
        lambda one: max((use.in_use + use.parked for use in one.fullest), default=0),
    ),
)
"""The gauges of all limits but those of job names. They have no series for a single key: keys are
not bounded.
"""


def _bound_names(counts: dict[str, int]) -> dict[str, int]:
    """Return the largest `MAX_NAMES` counts, and the sum of the others as `other`."""
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    bounded = dict(by_count[:MAX_NAMES])
    rest = sum(count for _, count in by_count[MAX_NAMES:])
    if rest:
        bounded[OTHER] = bounded.get(OTHER, 0) + rest
    return bounded


def _make_up(value: int) -> Family:
    return Family(
        name="backend_up",
        kind="gauge",
        help="1 if the backend answered the last read.",
        samples=[Sample(NO_LABELS, value)],
    )


def _count_states(sessions: Sequence[SessionInfo]) -> dict[str, int]:
    states = {"live": 0, "expired": 0, "left": 0}
    for session in sessions:
        state = "left" if session.left else "live" if session.expires_in > 0 else "expired"
        states[state] += 1
    return states


def _split_overflow(queues: Sequence[QueueInfo]) -> tuple[list[QueueInfo], list[QueueInfo]]:
    """Return the queues with series of their own, the largest ones, and the others."""
    if len(queues) <= MAX_QUEUES:
        return list(queues), []
    by_size = sorted(queues, key=lambda info: (-info.size, info.name))
    return by_size[:MAX_QUEUES], by_size[MAX_QUEUES:]


def _add_up(queues: Sequence[QueueInfo]) -> QueueInfo:
    """Return the sums of several queues as a queue named `other`."""
    return QueueInfo(
        name=OTHER,
        size=sum(info.size for info in queues),
        scheduled=sum(info.scheduled for info in queues),
        processing=sum(info.processing for info in queues),
        oldest_age=max(info.oldest_age for info in queues),
        paused=False,
    )
