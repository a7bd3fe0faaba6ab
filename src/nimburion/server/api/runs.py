"""Durable runs: show what a job did in steps and what it waits for, and send signals to it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from nimburion.core.ids import make_repeatable_id
from nimburion.core.job import State
from nimburion.core.runs import MAX_SIGNAL_NAME, SignalOutcome, StoredSignal
from nimburion.jobs.durable.timeline import (
    MAX_STEPS_READ,
    EntryKind,
    RunTimeline,
    TimelineEntry,
    read_run_timeline,
)
from nimburion.server.api.jobs import split_content
from nimburion.server.api.names import END, Name, ReasonText
from nimburion.server.api.operation import AnyOperation, ApiRequest, NoBody, NoQuery, Operation


class SignalView(msgspec.Struct, frozen=True, kw_only=True):
    """An unread signal."""

    name: str
    at: float
    """When it was sent, in epoch seconds."""
    size: int
    """The size of its value in bytes."""
    payload: Raw | None
    """Its value; None without the right `payloads`, and if it is not JSON."""
    payload_base64: str | None
    """The value, if it is not JSON."""


class RunWait(msgspec.Struct, frozen=True):
    """What a run waits for now."""

    kind: EntryKind
    key: str
    until: float | None
    """When the wait ends by itself, in epoch seconds."""


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """The timeline and the unread signals of a durable run."""

    id: str
    state: State
    now: float
    """The time of the read, in epoch seconds on the backend's clock."""
    why: str
    """Why the job is where it is, in a sentence."""
    steps: int
    """The number of stored steps that were read. An entry has up to a few of them."""
    complete: bool
    """False: the run has more steps, and its signals were not read."""
    unreadable: int
    """The number of steps that a newer version stored."""
    cancelling: bool
    """Whether the run was asked to end as cancelled, and has not ended."""
    entries: list[TimelineEntry]
    """In the order of their beginnings; those for which the run waits now are last. `value` is None
    without the right `payloads`."""
    waits: list[RunWait]
    """What the run waits for now. The first that comes wakes it up."""
    signals: list[SignalView]
    """The unread signals in their order."""


class RunQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of a run to read."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = MAX_STEPS_READ
    """The most steps and signals."""


class SignalBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signal to a durable run."""

    name: Annotated[str, Meta(pattern=rf"^[^/\x00-\x1f\x7f-\x9f]{{1,{MAX_SIGNAL_NAME}}}" + END)]
    """The name for which the handler waits."""
    payload: Raw = msgspec.field(default_factory=lambda: Raw(b"null"))
    """The value. The handler reads it in the type of its signal."""
    id: Name | None = None
    """The job gets each id once."""
    reason: ReasonText = ""


class SignalReport(msgspec.Struct, frozen=True):
    """What became of a signal."""

    job: str
    id: str
    """The id of the signal."""
    outcome: SignalOutcome
    """`exists`: the job has, or had, a signal with this id. `finished`: the job has ended. `full`:
    it has 1,000 unread signals. Nothing was stored then.
    """


async def show_run(request: ApiRequest[RunQuery, NoBody]) -> RunView:
    """Show what a durable run did, what it waits for now, and its unread signals. Values need the
    right `payloads`."""
    found = await read_run_timeline(
        request.services.backend, request.path["id"], limit=request.query.limit
    )
    return make_job_run(found, with_values="payloads" in request.caller.rights)


async def send_signal(request: ApiRequest[NoQuery, SignalBody]) -> SignalReport:
    """Send a signal to a durable run. With an `id` or an `Idempotency-Key`, a repeat sends no
    second one."""
    body, job_id, signal_id = request.body, request.path["id"], request.body.id
    if signal_id is None and request.idempotency_key is not None:
        signal_id = make_repeatable_id(request.caller.name, request.idempotency_key)
    sent = await request.actions.jobs.signal(
        job_id, body.name, bytes(body.payload), signal_id=signal_id, reason=body.reason
    )
    return SignalReport(job_id, sent.id, sent.outcome)


def make_job_run(found: RunTimeline, *, with_values: bool) -> RunView:
    """Return the timeline of a run for callers, with its values or only their sizes."""
    entries = found.entries
    if not with_values:
        entries = [msgspec.structs.replace(one, value=None) for one in entries]
    return RunView(
        id=found.job.id,
        state=found.job.state,
        now=found.now,
        why=found.why,
        steps=found.steps,
        complete=found.is_complete,
        unreadable=found.unreadable,
        cancelling=found.is_cancelling,
        entries=entries,
        waits=[RunWait(one.kind, one.key, one.until) for one in entries if one.is_open],
        signals=[_make_signal(one, with_values=with_values) for one in found.signals],
    )


def _make_signal(one: StoredSignal, *, with_values: bool) -> SignalView:
    payload, payload_base64 = split_content(one.payload if with_values else None)
    return SignalView(
        name=one.name,
        at=one.at,
        size=len(one.payload),
        payload=payload,
        payload_base64=payload_base64,
    )


OPERATIONS: tuple[AnyOperation, ...] = (
    Operation(method="GET", path="/jobs/{id}/run", handle=show_run, query=RunQuery, answer=RunView),
    Operation(
        method="POST",
        path="/jobs/{id}/signals",
        handle=send_signal,
        action="jobs.signal",
        body=SignalBody,
        answer=SignalReport,
        idempotency_key=True,
    ),
)
