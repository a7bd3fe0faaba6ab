"""Jobs: list, show, enqueue and cancel."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from nimburion.core.errors import InvalidJob, JobNotFound
from nimburion.core.job import FINISHED, AttemptError, JobRecord, Progress, State
from nimburion.core.queries import JobFilter
from nimburion.jobs.declaration.options import EnqueueOptions
from nimburion.server.api.names import Cursor, JsonObject, Name, PageQuery, get_name, make_id
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation
from nimburion.server.problems import Problem

UNFINISHED = tuple(state for state in State if state not in FINISHED)


class ErrorSummary(msgspec.Struct, frozen=True):
    """The error of one attempt, without its traceback."""

    attempt: int
    kind: str
    type: str
    message: str
    at: float


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A job, without its data. Times are epoch seconds on the backend's clock."""

    id: str
    name: str
    queue: str
    state: State
    priority: int
    attempt: int
    failures: int
    lost: int
    due: float
    created_at: float
    started_at: float | None
    finished_at: float | None
    reason: str | None
    """Why the job failed or was cancelled."""
    error: ErrorSummary | None
    """The latest error."""
    progress: Progress | None
    cancel_requested: bool
    session: str | None
    """The session of the worker that runs the job."""
    tenant: str | None
    correlation_id: str | None
    unique_key: str | None
    max_retries: int | None
    timeout: float | None


class JobDetail(JobSummary, frozen=True, kw_only=True):
    """A job, without its data, with the errors of all failed attempts."""

    errors: list[ErrorSummary]


class JobPage(msgspec.Struct, frozen=True):
    """A page of jobs, most recently enqueued first."""

    jobs: list[JobSummary]
    next: str | None


class JobContents(msgspec.Struct, frozen=True, kw_only=True):
    """The data of a job. Payload and result are the stored text itself, not a copy of its value."""

    id: str
    payload: msgspec.Raw | None
    """None after the job is completed or cancelled, and if it is not JSON."""
    payload_base64: str | None
    """The payload, if it is not JSON."""
    result: msgspec.Raw | None
    result_base64: str | None
    headers: dict[str, str]
    errors: list[AttemptError]
    """The errors of all failed attempts, with their tracebacks."""


class JobQuery(PageQuery, frozen=True, forbid_unknown_fields=True):
    """The jobs to list. A job must match all filters."""

    state: tuple[State, ...] = ()
    """May be repeated."""
    queue: Name | None = None
    name: Name | None = None


class NewJobBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job to enqueue. A worker that knows the name validates the payload."""

    name: Name
    payload: JsonObject = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    """A JSON object. Its text is stored byte for byte."""
    id: Name | None = None
    queue: Name | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] | None = None
    at: Annotated[datetime, Meta(tz=True)] | None = None
    after: Annotated[float, Meta(ge=0)] | None = None
    """Seconds from now until the job is due."""
    unique_key: Name | None = None
    unique_for: float | None = None
    on_duplicate: Literal["reject", "existing"] | None = None
    headers: dict[str, str] | None = None
    tenant: Name | None = None
    correlation_id: Name | None = None
    max_retries: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    timeout: float | None = None


class JobReference(msgspec.Struct, frozen=True):
    """A stored job."""

    id: str


class CancelledJob(msgspec.Struct, frozen=True):
    """What happened to a job that was to be cancelled."""

    id: str
    outcome: Literal["cancelled", "requested", "finished", "not found"]
    """`requested`: it runs, and its worker is asked to end it. `finished`: too late."""


class CancelBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The jobs to cancel: `ids`, or filters, or `all` unfinished jobs."""

    ids: Annotated[tuple[Name, ...], Meta(max_length=100)] = ()
    state: tuple[Literal["pending", "scheduled", "processing", "retrying"], ...] = ()
    queue: Name | None = None
    name: Name | None = None
    all: bool = False
    limit: Annotated[int, Meta(ge=1, le=500)] = 100
    """The maximum number of jobs that this request cancels."""
    after: Cursor | None = None


class CancelReport(msgspec.Struct, frozen=True):
    """What happened to each job. `next`: pass it as `after` to continue; None: that was all."""

    jobs: list[CancelledJob]
    next: str | None = None


async def list_jobs(request: ApiRequest[JobQuery, NoBody]) -> JobPage:
    """List jobs, most recently enqueued first."""
    query = request.query
    which = JobFilter(states=frozenset(query.state) or None, queue=query.queue, name=query.name)
    page = await request.services.backend.list_jobs(which, limit=query.limit, after=query.after)
    return JobPage([summarize_job(record) for record in page.jobs], page.next)


async def get_job(request: ApiRequest[NoQuery, NoBody]) -> JobDetail:
    """Show a job without its data."""
    record = await request.services.backend.get(get_name(request.path, "id"))
    errors = [_summarize_error(error) for error in record.history]
    return JobDetail(**msgspec.structs.asdict(summarize_job(record)), errors=errors)


async def get_job_contents(request: ApiRequest[NoQuery, NoBody]) -> JobContents:
    """Show the data of a job: payload, result, headers and tracebacks."""
    record = await request.services.backend.get(get_name(request.path, "id"))
    payload, payload_base64 = _split_content(record.payload)
    result, result_base64 = _split_content(record.result)
    return JobContents(
        id=record.id,
        payload=payload,
        payload_base64=payload_base64,
        result=result,
        result_base64=result_base64,
        headers=record.options.headers,
        errors=record.history,
    )


async def enqueue_job(request: ApiRequest[NoQuery, NewJobBody]) -> JobReference:
    """Store a job. With an `id` or an `Idempotency-Key`, a repeat stores no second job."""
    body = request.body
    options: dict[str, Any] = {
        name: value
        for name, value in msgspec.structs.asdict(body).items()
        if value is not None and name not in {"name", "payload"}
    }
    if body.id is None and request.idempotency_key is not None:
        options["id"] = make_id(request.caller.name, request.idempotency_key)
    payload = _check_payload(body.payload, request.services.config.jobs.limits.nesting)
    client = request.services.client
    job_id = await client.enqueue_raw(body.name, payload, **cast("EnqueueOptions", options))
    return JobReference(job_id)


async def cancel_job(request: ApiRequest[NoQuery, NoBody]) -> CancelledJob:
    """Cancel a job, or ask its worker to end it."""
    job_id = get_name(request.path, "id")
    outcome = await request.services.backend.cancel(job_id)
    return CancelledJob(job_id, outcome.value)


async def cancel_jobs(request: ApiRequest[NoQuery, CancelBody]) -> CancelReport:
    """Cancel several jobs, by id or by filter."""
    body = request.body
    check_selection(
        body.ids, body.state or body.queue is not None or body.name is not None, body.all
    )
    backend = request.services.backend
    ids, following = body.ids, None
    if not ids:
        states = frozenset(State(state) for state in body.state) or frozenset(UNFINISHED)
        which = JobFilter(states=states, queue=body.queue, name=body.name)
        page = await backend.list_jobs(which, limit=body.limit, after=body.after)
        ids, following = tuple(record.id for record in page.jobs), page.next
    found: list[CancelledJob] = []
    for job_id in dict.fromkeys(ids):
        try:
            found.append(CancelledJob(job_id, (await backend.cancel(job_id)).value))
        except JobNotFound:
            found.append(CancelledJob(job_id, "not found"))
    return CancelReport(found, following)


def check_selection(ids: tuple[str, ...], filtered: object, everything: bool) -> None:  # noqa: FBT001
    """Raise `Problem` unless exactly one of ids, filters and `all` selects the jobs."""
    if ids and (filtered or everything):
        raise Problem(422, "invalid-body", "give either ids, or filters, or all; not both")
    if not ids and not filtered and not everything:
        raise Problem(422, "invalid-body", "say which jobs: ids, a filter, or `all: true`")


def summarize_job(record: JobRecord) -> JobSummary:
    """Return a job without its data."""
    options = record.options
    return JobSummary(
        id=record.id,
        name=record.name,
        queue=record.queue,
        state=record.state,
        priority=record.priority,
        attempt=record.attempt,
        failures=record.failures,
        lost=record.lost,
        due=record.due,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        reason=record.reason,
        error=None if record.error is None else _summarize_error(record.error),
        progress=record.progress,
        cancel_requested=record.cancel_requested,
        session=record.session,
        tenant=options.tenant,
        correlation_id=options.correlation_id,
        unique_key=options.unique_key,
        max_retries=options.max_retries,
        timeout=options.timeout,
    )


def _summarize_error(error: AttemptError) -> ErrorSummary:
    return ErrorSummary(error.attempt, error.kind, error.type, error.message, error.at)


def _split_content(content: bytes | None) -> tuple[msgspec.Raw | None, str | None]:
    """Return stored bytes as JSON text, or as base64 if they are not JSON."""
    if content is None:
        return None, None
    try:
        content.decode()
        msgspec.json.decode(content)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None, base64.b64encode(content).decode()
    return msgspec.Raw(content), None


def _check_payload(payload: msgspec.Raw, nesting: int) -> bytes:
    content = bytes(payload)
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidJob(f"payload: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidJob("payload: expected a JSON object")
    if _measure_depth(found) > nesting:
        raise InvalidJob(f"payload: nested deeper than {nesting} levels")
    return content


def _measure_depth(value: object) -> int:
    """Return the number of levels of lists and maps in a JSON value."""
    depth, level = 0, [value]
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
    return depth


OPERATIONS = (
    Operation(
        method="GET",
        path="/jobs",
        right="read",
        handle=list_jobs,
        query=JobQuery,
        answer=JobPage,
    ),
    Operation(
        method="POST",
        path="/jobs",
        right="admin",
        handle=enqueue_job,
        body=NewJobBody,
        answer=JobReference,
        status=201,
        idempotency_key=True,
    ),
    Operation(
        method="POST",
        path="/jobs/cancel",
        right="operate",
        handle=cancel_jobs,
        body=CancelBody,
        answer=CancelReport,
    ),
    Operation(method="GET", path="/jobs/{id}", right="read", handle=get_job, answer=JobDetail),
    Operation(
        method="GET",
        path="/jobs/{id}/contents",
        right="payloads",
        handle=get_job_contents,
        answer=JobContents,
    ),
    Operation(
        method="POST",
        path="/jobs/{id}/cancel",
        right="operate",
        handle=cancel_job,
        answer=CancelledJob,
    ),
)
