"""The jobs of a flow in the backend's form, in batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple, Protocol

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.flows import NewFlow, SourceKind
from nimburion.core.job import NewJob
from nimburion.core.size_limits import SizeLimits
from nimburion.core.text.shortening import shorten
from nimburion.jobs.declaration.job import AnyJob, Declaration, require_declaration
from nimburion.jobs.flows.flow import Flow
from nimburion.jobs.flows.plan import FlowPlan, GraphPlace, PlannedJob
from nimburion.jobs.options.enqueue_options import ParsedOptions
from nimburion.jobs.payloads.codec import Codec


class MakeJob(Protocol):
    """Makes a job in the backend's form, as `enqueue` does."""

    def __call__(
        self, job: AnyJob, parsed: ParsedOptions, job_id: str, payload: bytes | None, /
    ) -> NewJob:
        """Return the job. `payload` is that of a job with arguments that are not known yet."""
        ...


class FlowBatch(NamedTuple):
    """The jobs of one call of the backend, with the flows that they name."""

    jobs: list[AnyJob]
    new: list[NewJob]
    """The same jobs in the backend's form."""
    flows: Sequence[NewFlow]


async def make_batches(
    flow: Flow, flow_id: str, members: MemberMaker, size: int
) -> AsyncIterator[FlowBatch]:
    """Yield the jobs of a flow in batches of this size: each job after those it waits for.

    `InvalidJob` names a member at fault before the first batch is yielded.
    """
    if not isinstance(flow, Flow):
        raise InvalidJob(f"enqueue_flow takes a Flow, not {shorten(repr(flow), 80)}")
    plan = FlowPlan(flow, flow_id)
    if plan.count <= size:
        yield _make_batch(list(plan.list_jobs()), members, [plan.flow, *plan.groups.values()])
        return
    # All are validated before the first is stored, without keeping them in memory.
    for some in _split(plan.list_jobs(), size):
        members.make(some)
        await asyncio.sleep(0)
    for number, some in enumerate(_split(plan.list_jobs(), size)):
        groups = plan.groups.values() if number == 0 else _list_groups(plan, some)
        yield _make_batch(some, members, [plan.flow, *groups])


class MemberMaker:
    """Makes the jobs of a flow in the backend's form.

    Args:
        make_job: makes each job.
        parsed: the options of the call, which apply to each job.
        sizes: the limits of the payloads.
    """

    def __init__(self, make_job: MakeJob, parsed: ParsedOptions, sizes: SizeLimits) -> None:
        self._make_job = make_job
        self._parsed = parsed
        self._sizes = sizes
        self._place: GraphPlace | None = None
        self._placed: ParsedOptions = parsed
        """The options of the call with the place of the previous job."""
        self._codecs: dict[tuple[Declaration, frozenset[str]], Codec] = {}
        """The codecs of payloads without the arguments that are results."""

    def make(self, jobs: Iterable[PlannedJob]) -> list[NewJob]:
        """Return jobs in the backend's form. `InvalidJob` names the member at fault."""
        return [self._make_one(job) for job in jobs]

    def _make_one(self, planned: PlannedJob) -> NewJob:
        place = planned.place
        if place is not self._place:  # the jobs of a group share theirs
            options = place.add_to_options(self._parsed.options)
            self._placed = msgspec.structs.replace(self._parsed, options=options)
            self._place = place
        try:
            payload = self._encode_without_results(planned) if place.results else None
            new = self._make_job(planned.job, self._placed, planned.id, payload)
        except InvalidJob as error:
            raise InvalidJob(f"member {planned.name!r}: {error}") from error
        if new.options.unique_key is not None and new.options.on_duplicate != "reject":
            raise InvalidJob(
                f"member {planned.name!r}: the unique key of job {new.name!r} has "
                f"on_duplicate={new.options.on_duplicate!r}, so another job could take its place; "
                'a member of a flow needs on_duplicate="reject", or no unique key'
            )
        return new

    def _encode_without_results(self, planned: PlannedJob) -> bytes:
        declaration = require_declaration(planned.job)
        missing = frozenset(planned.place.results)
        codec = self._codecs.get((declaration, missing))
        if codec is None:
            codec = self._codecs[declaration, missing] = declaration.make_partial_codec(missing)
        arguments = declaration.read_arguments(planned.job)
        known = {name: value for name, value in arguments.items() if name not in missing}
        return codec.encode(known, self._sizes)


def _make_batch(
    planned: Sequence[PlannedJob], members: MemberMaker, flows: Sequence[NewFlow]
) -> FlowBatch:
    return FlowBatch([one.job for one in planned], members.make(planned), flows)


def _split(jobs: Iterator[PlannedJob], size: int) -> Iterator[list[PlannedJob]]:
    """Yield the jobs in lists of this size."""
    while some := list(islice(jobs, size)):
        yield some


def _list_groups(plan: FlowPlan, jobs: Iterable[PlannedJob]) -> list[NewFlow]:
    """Return the groups that these jobs are in or depend on."""
    ids = chain.from_iterable(
        (
            place.group,
            *(one.source.id for one in place.conditions if one.source.kind is SourceKind.FLOW),
        )
        for place in {id(job.place): job.place for job in jobs}.values()
    )
    return [plan.groups[one] for one in dict.fromkeys(ids) if one and one != plan.id]
