"""Requests for the stack of a running handler, and the answers of workers.

A request is a record of the kind `stack` with the id of the job. The worker that runs the job
writes the stack into it: files, lines and functions, and no values. Both count for `KEEP` seconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.records import NewRecord, Record, encode_body
from nimburion.core.text.shortening import clean_text

KEEP = 60.0
"""Seconds for which a request and its answer count."""
MAX_REQUESTS = 20
"""The requests that are kept. A further one replaces the oldest."""
MAX_STACK_BYTES = 64_000
"""A longer stack is cut in the middle."""

Place = Literal["thread", "event loop", "child process"]
"""Where a handler runs."""


class HandlerStack(msgspec.Struct, frozen=True, kw_only=True):
    """Where the handler of a running job was."""

    place: Place
    text: str
    """Its frames as in a traceback, the innermost last; empty if it had just ended."""
    at: float
    """When the stack was requested, in epoch seconds on the backend's clock."""


class StackRequest(msgspec.Struct, frozen=True):
    """A request that its worker has not answered."""

    job_id: str
    version: int


class _Body(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    session: str
    place: Place | None = None
    """None: not answered yet."""
    text: str = ""


_decode = msgspec.json.Decoder(_Body).decode


async def request_stack(backend: Backend, job_id: str, session: str) -> None:
    """Store a request to the worker of a session. An earlier one for the job is deleted."""
    await delete_old_stacks(backend, job_id)
    new = NewRecord(kind="stack", id=job_id, body=encode_body(_Body(session=session)))
    await backend.maintenance.put_record(new, keep=MAX_REQUESTS)


async def delete_old_stacks(backend: Backend, job_id: str | None = None) -> None:
    """Delete the requests and answers that no longer count, and those for this job."""
    page = await backend.reads.list_records("stack", limit=MAX_REQUESTS)
    for record in page.records:
        if record.id == job_id or is_over(record, page.now):
            await backend.maintenance.delete_record("stack", record.id)


async def list_stack_requests(backend: Backend, session: str) -> list[StackRequest]:
    """Return the requests to a session that are not answered."""
    page = await backend.reads.list_records("stack", limit=MAX_REQUESTS)
    return [
        StackRequest(record.id, record.version)
        for record in page.records
        for body in (_decode(record.body),)
        if body.session == session and body.place is None and not is_over(record, page.now)
    ]


async def answer_stack_request(
    backend: Backend, request: StackRequest, session: str, place: Place, text: str
) -> None:
    """Write the stack into its request, unless that was deleted or repeated meanwhile."""
    body = _Body(session=session, place=place, text=clean_text(text, MAX_STACK_BYTES))
    record = NewRecord(kind="stack", id=request.job_id, body=encode_body(body))
    await backend.maintenance.put_record(record, version=request.version)


async def get_stack(backend: Backend, job_id: str, now: float) -> HandlerStack | None:
    """Return the answer to the latest request; None without one, and `KEEP` seconds after it."""
    record = await backend.reads.get_record("stack", job_id)
    if record is None or is_over(record, now):
        return None
    body = _decode(record.body)
    if body.place is None:
        return None
    return HandlerStack(place=body.place, text=body.text, at=record.created_at)


def is_over(record: Record, now: float) -> bool:
    """Return whether a request or its answer no longer counts."""
    return now > record.created_at + KEEP
