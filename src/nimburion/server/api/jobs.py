"""Jobs: list, show, explain, enqueue and cancel."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from nimburion.actions.jobs import StackOutcome
from nimburion.core.diagnosis.explanations import Cause, find_causes
from nimburion.core.diagnosis.running_jobs import read_facts
from nimburion.core.errors import InvalidJob, JobNotFound
from nimburion.core.ids import make_repeatable_id
from nimburion.core.job import (
    UNFINISHED,
    AttemptError,
    AttemptInfo,
    JobRecord,
    OnDuplicate,
    Progress,
    Reason,
    State,
)
from nimburion.core.limits import KeyUse, LimitInfo
from nimburion.core.queries import JobFilter, Page, Pause
from nimburion.core.result_errors import decode_result_error
from nimburion.core.stacks import HandlerStack
from nimburion.jobs.client.client import enqueue_raw_or_get
from nimburion.jobs.options.enqueue_options import EnqueueOptions
from nimburion.jobs.options.uniqueness import Unique
from nimburion.server.api.body_rules import exclude, need, require_one, select_jobs
from nimburion.server.api.names import (
    END,
    MAX_SECONDS,
    JobCursor,
    JsonObject,
    Name,
    PageSize,
    PositiveSeconds,
    Text,
    Time,
    to_epoch,
)
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation
from nimburion.server.problems import Problem


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
    ended_by: str | None
    """The session of the worker that ended the job."""
    host: str
    """The host of that session; empty if it is not known any more."""
    fingerprint: str | None
    """What the dead letters of one failure group share."""
    tenant: str | None
    correlation_id: str | None
    tags: tuple[str, ...]
    flow: str | None
    """The flow of which the job is a member, or which calls it at its end."""
    group: str | None
    """The group of the flow that counts it; None: the flow counts it, or it is a callback."""
    unique_mode: str | None
    """What its enqueue did on a duplicate, and how long it holds its unique key; None without one.
    The key itself is among the data of the job: it may be made of the arguments.
    """
    max_retries: int | None
    timeout: float | None
    expires: float | None


class JobDetail(JobSummary, frozen=True, kw_only=True):
    """A job, without its data, with all attempts and the errors of those that failed."""

    attempts: list[AttemptInfo]
    errors: list[ErrorSummary]


class JobPage(msgspec.Struct, frozen=True):
    """A page of jobs, most recently enqueued first.

    It may have fewer jobs than `limit`, even none, and still have a `next`: a request examines at
    most 10,000 jobs.
    """

    jobs: list[JobSummary]
    next: str | None
    examined: int
    """The number of jobs examined."""


class JobContents(msgspec.Struct, frozen=True, kw_only=True):
    """The data of a job. Payload and result are the stored text itself, not a copy of its value."""

    id: str
    payload: msgspec.Raw | None
    """None after the job is completed or cancelled, and if it is not JSON."""
    payload_base64: str | None
    """The payload, if it is not JSON."""
    result: msgspec.Raw | None
    result_base64: str | None
    result_error: str | None
    """Why the result could not be stored, if so."""
    headers: dict[str, str]
    unique_key: str | None
    """What no two jobs of the name may share. It lists the arguments that `unique` names."""
    errors: list[AttemptError]
    """The errors of all failed attempts, with their tracebacks."""


class JobExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job is not running: the causes, and the facts that they follow from."""

    causes: list[Cause]
    """The decisive cause first. There is at least one."""
    now: float
    """The time of the read, in epoch seconds on the backend's clock."""
    job: JobSummary
    pause: Pause | None
    """The pause of its queue."""
    limits: list[LimitInfo]
    """The limits that close its lane if they have no room: that of its name."""
    keys: list[KeyUse]
    """The keys of its other limits that are in use."""
    parked_for: str | None
    """The name of the limit whose key has no room for the job."""
    key_holder: str | None
    """The id of another job that holds its unique key."""


class JobSearch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The filters of jobs, apart from their state. A job must match all that are set."""

    queue: Name | None = None
    name: Name | None = None
    reason: Reason | None = None
    """Why a job failed."""
    created_from: Time | None = None
    created_to: Time | None = None
    """Created before this time."""
    finished_from: Time | None = None
    finished_to: Time | None = None
    """Finished before this time."""
    tenant: Text | None = None
    correlation_id: Text | None = None
    tag: Name | None = None
    flow: Name | None = None
    """The id of the flow of which a job is a member."""
    fingerprint: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}" + END)] | None = None
    """Of a failure group; matches dead letters only."""
    min_failures: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None

    def make_filter(self, states: frozenset[State] | None) -> JobFilter:
        """Return the filter of jobs in these states."""
        return JobFilter(
            states=states,
            queue=self.queue,
            name=self.name,
            reason=self.reason,
            created_from=to_epoch(self.created_from),
            created_to=to_epoch(self.created_to),
            finished_from=to_epoch(self.finished_from),
            finished_to=to_epoch(self.finished_to),
            tenant=self.tenant,
            correlation_id=self.correlation_id,
            tag=self.tag,
            flow=self.flow,
            fingerprint=self.fingerprint,
            min_failures=self.min_failures,
        )


class SearchQuery(JobSearch, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The filters of a list of jobs, and the part of it to return."""

    limit: PageSize = 100
    after: JobCursor | None = None
    """The `next` of the previous page; without it, the list begins."""


class JobQuery(SearchQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The jobs to list."""

    state: tuple[State, ...] = ()
    """May be repeated."""


class UniqueBody(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"while_": "while", "for_": "for"},
):
    """How long the job holds its unique key, and what the request does if another job holds it."""

    while_: Literal["waiting", "unfinished"] | tuple[State, ...] | None = None
    for_: PositiveSeconds | None = None
    on_duplicate: OnDuplicate | None = None
    debounce: PositiveSeconds | None = None
    max_wait: PositiveSeconds | None = None
    throttle: PositiveSeconds | None = None

    def make_unique(self) -> Unique:
        """Return the value that `enqueue` takes in Python."""
        return Unique(**msgspec.structs.asdict(self))


class NewJobBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job to enqueue. A worker that knows the name validates the payload."""

    name: Name
    payload: JsonObject = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    """A JSON object. Its text is stored byte for byte."""
    id: Name | None = None
    queue: Name | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] | None = None
    at: Time | None = None
    after: Annotated[float, Meta(ge=0, le=MAX_SECONDS)] | None = None
    """Seconds from now until the job is due."""
    unique_key: Text | None = None
    unique: UniqueBody | None = None
    headers: dict[str, str] | None = None
    tenant: Text | None = None
    correlation_id: Text | None = None
    max_retries: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    timeout: PositiveSeconds | None = None
    expires: PositiveSeconds | None = None
    """Seconds after the job is due until which it must have started; later, it is cancelled."""
    tags: tuple[Name, ...] = ()


class JobReference(msgspec.Struct, frozen=True):
    """A stored job."""

    id: str


class EnqueuedJob(msgspec.Struct, frozen=True):
    """A stored job, and how the request found it."""

    id: str
    outcome: Literal["created", "existing", "replaced"]
    """`existing`: a job with this id was stored before, or this job holds the unique key.
    `replaced`: this job holds the unique key and waited; it has the new payload and due time.
    """


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
    after: JobCursor | None = None


class CancelReport(msgspec.Struct, frozen=True):
    """What happened to each job. `next`: pass it as `after` to continue; None: that was all."""

    jobs: list[CancelledJob]
    next: str | None = None


class RunNowJob(msgspec.Struct, frozen=True):
    """What happened to a job that was to run now."""

    id: str
    outcome: Literal["due", "unchanged", "not found"]
    """`unchanged`: it was due already, runs or has ended."""


class JobStack(msgspec.Struct, frozen=True):
    """Where the handler of a job was: files, lines of code and functions, and no values."""

    id: str
    outcome: StackOutcome
    """`no answer`: the worker did not answer within ten seconds."""
    stack: HandlerStack | None


class RunNowBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The jobs to run now. For jobs that match a filter, start a bulk operation."""

    ids: Annotated[tuple[Name, ...], Meta(max_length=100)] = ()


class RunNowReport(msgspec.Struct, frozen=True):
    """What happened to each job."""

    jobs: list[RunNowJob]


async def list_jobs(request: ApiRequest[JobQuery, NoBody]) -> JobPage:
    """List jobs, most recently enqueued first."""
    query = request.query
    which = query.make_filter(frozenset(query.state) or None)
    page = await request.services.backend.reads.list_jobs(
        which, limit=query.limit, after=query.after
    )
    return summarize_page(page)


async def get_job(request: ApiRequest[NoQuery, NoBody]) -> JobDetail:
    """Show a job without its data."""
    record = await request.services.backend.reads.get_job(request.path["id"])
    return JobDetail(
        **msgspec.structs.asdict(summarize_job(record)),
        attempts=record.attempts,
        errors=[_summarize_error(error) for error in record.history],
    )


async def explain_job(request: ApiRequest[NoQuery, NoBody]) -> JobExplanation:
    """Say why a job is not running, the decisive cause first."""
    facts = await read_facts(request.services.backend, request.path["id"])
    return JobExplanation(
        causes=find_causes(facts),
        now=facts.now,
        job=summarize_job(facts.job),
        pause=facts.pause,
        limits=facts.limits,
        keys=facts.keys,
        parked_for=facts.parked_for,
        key_holder=facts.key_holder,
    )


async def get_job_contents(request: ApiRequest[NoQuery, NoBody]) -> JobContents:
    """Show the data of a job: payload, result, headers and tracebacks."""
    record = await request.services.backend.reads.get_job(request.path["id"])
    payload, payload_base64 = split_content(record.payload)
    result_error = decode_result_error(record.result)
    result, result_base64 = split_content(None if result_error else record.result)
    return JobContents(
        id=record.id,
        payload=payload,
        payload_base64=payload_base64,
        result=result,
        result_base64=result_base64,
        result_error=result_error,
        headers=record.options.headers,
        unique_key=record.options.unique_key,
        errors=record.history,
    )


async def enqueue_job(request: ApiRequest[NoQuery, NewJobBody]) -> EnqueuedJob:
    """Store a job. With an `id` or an `Idempotency-Key`, a repeat stores no second job."""
    body = request.body
    options: dict[str, Any] = {
        name: value
        for name, value in msgspec.structs.asdict(body).items()
        if value is not None and name not in {"name", "payload"}
    }
    if body.unique is not None:
        options["unique"] = body.unique.make_unique()
    if body.id is None and request.idempotency_key is not None:
        options["id"] = make_repeatable_id(request.caller.name, request.idempotency_key)
    payload = check_payload(body.payload, request.services.config.jobs.sizes.nesting)
    client = request.services.client
    async with request.operator.record(
        client.backend, "jobs.enqueue", name=body.name, queue=body.queue
    ) as change:
        stored = await enqueue_raw_or_get(
            client, body.name, payload, **cast("EnqueueOptions", options)
        )
        change.target, change.count = stored.id, 1
    return EnqueuedJob(stored.id, stored.outcome)


async def cancel_job(request: ApiRequest[NoQuery, NoBody]) -> CancelledJob:
    """Cancel a job, or ask its worker to end it."""
    job_id = request.path["id"]
    done = await request.actions.jobs.cancel(JobFilter(ids=(job_id,)))
    if done.outcomes[job_id] == "not found":
        raise JobNotFound(job_id)
    return CancelledJob(job_id, done.outcomes[job_id])


async def cancel_jobs(request: ApiRequest[NoQuery, CancelBody]) -> CancelReport:
    """Cancel several jobs, by id or by filter."""
    body = request.body
    check_selection(
        body.ids, body.state or body.queue is not None or body.name is not None, body.all
    )
    states = frozenset(State(state) for state in body.state) or UNFINISHED
    which = JobFilter(states=states, queue=body.queue, name=body.name)
    if body.ids:
        which = JobFilter(ids=body.ids)
    done = await request.actions.jobs.cancel(which, limit=body.limit, after=body.after)
    found = [CancelledJob(job_id, outcome) for job_id, outcome in done.outcomes.items()]
    return CancelReport(found, done.next)


async def run_job_now(request: ApiRequest[NoQuery, NoBody]) -> RunNowJob:
    """Make a job due that is scheduled or waits for a retry. A worker then starts it."""
    job_id = request.path["id"]
    outcome = (await request.actions.jobs.run_now(job_id))[job_id]
    if outcome == "not found":
        raise JobNotFound(job_id)
    return RunNowJob(job_id, outcome)


async def show_stack(request: ApiRequest[NoQuery, NoBody]) -> JobStack:
    """Ask the worker of a running job where its handler is. The job continues."""
    answer = await request.actions.jobs.show_stack(request.path["id"])
    return JobStack(request.path["id"], answer.outcome, answer.stack)


async def run_jobs_now(request: ApiRequest[NoQuery, RunNowBody]) -> RunNowReport:
    """Make several jobs due that are scheduled or wait for a retry."""
    if not request.body.ids:
        raise Problem(422, "invalid-body", "say which jobs: ids")
    outcomes = await request.actions.jobs.run_now(*request.body.ids)
    return RunNowReport([RunNowJob(job_id, outcome) for job_id, outcome in outcomes.items()])


def check_selection(ids: tuple[str, ...], filtered: object, everything: bool) -> None:  # noqa: FBT001
    """Raise `Problem` unless exactly one of ids, filters and `all` selects the jobs."""
    if ids and (filtered or everything):
        raise Problem(422, "invalid-body", "give either ids, or filters, or all; not both")
    if not ids and not filtered and not everything:
        raise Problem(422, "invalid-body", "say which jobs: ids, a filter, or `all: true`")


def summarize_page(page: Page) -> JobPage:
    """Return a page of jobs without their data."""
    return JobPage([summarize_job(record) for record in page.jobs], page.next, page.examined)


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
        ended_by=record.ended_by,
        host=record.host,
        fingerprint=record.fingerprint,
        tenant=options.tenant,
        correlation_id=options.correlation_id,
        tags=options.tags,
        flow=options.flow,
        group=options.group or None,
        unique_mode=options.unique_mode,
        max_retries=options.max_retries,
        timeout=options.timeout,
        expires=options.expires,
    )


def _summarize_error(error: AttemptError) -> ErrorSummary:
    return ErrorSummary(error.attempt, error.kind, error.type, error.message, error.at)


def split_content(content: bytes | None) -> tuple[msgspec.Raw | None, str | None]:
    """Return stored bytes as JSON text, or as base64 if they are not JSON."""
    if content is None:
        return None, None
    try:
        content.decode()
        msgspec.json.decode(content)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None, base64.b64encode(content).decode()
    return msgspec.Raw(content), None


def check_payload(payload: msgspec.Raw, nesting: int) -> bytes:
    """Return the text of a payload. Raises `InvalidJob` unless it is a JSON object."""
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
        handle=list_jobs,
        query=JobQuery,
        answer=JobPage,
    ),
    Operation(
        method="POST",
        path="/jobs",
        handle=enqueue_job,
        action="jobs.enqueue",
        body=NewJobBody,
        rules=(
            exclude("at", "after"),
            exclude("unique.throttle", "unique.debounce", "unique.for", "unique.while"),
            exclude("unique.debounce", "unique.for", "at", "after"),
            need("unique.max_wait", "unique.debounce"),
            *(need(f"unique.{part}", "unique_key") for part in UniqueBody.__struct_encode_fields__),
        ),
        answer=EnqueuedJob,
        status=201,
        idempotency_key=True,
    ),
    Operation(
        method="POST",
        path="/jobs/cancel",
        handle=cancel_jobs,
        action="jobs.cancel",
        body=CancelBody,
        rules=(select_jobs("state", "queue", "name"),),
        answer=CancelReport,
    ),
    Operation(
        method="POST",
        path="/jobs/run-now",
        handle=run_jobs_now,
        action="jobs.run_now",
        body=RunNowBody,
        rules=(require_one("ids"),),
        answer=RunNowReport,
    ),
    Operation(method="GET", path="/jobs/{id}", handle=get_job, answer=JobDetail),
    Operation(
        method="GET",
        path="/jobs/{id}/why",
        handle=explain_job,
        answer=JobExplanation,
    ),
    Operation(
        method="GET",
        path="/jobs/{id}/contents",
        read_right="payloads",
        handle=get_job_contents,
        answer=JobContents,
    ),
    Operation(
        method="POST",
        path="/jobs/{id}/run-now",
        handle=run_job_now,
        action="jobs.run_now",
        answer=RunNowJob,
    ),
    Operation(
        method="POST",
        path="/jobs/{id}/stack",
        handle=show_stack,
        action="jobs.stack",
        answer=JobStack,
    ),
    Operation(
        method="POST",
        path="/jobs/{id}/cancel",
        handle=cancel_job,
        action="jobs.cancel",
        answer=CancelledJob,
    ),
)
