"""The page of one job: why it does not run, its data, attempts, errors, and runs of its name."""

from __future__ import annotations

import asyncio

import msgspec

from nimburion.actions.search import format_qualifier
from nimburion.core.diagnosis.explanations import (
    Cause,
    Facts,
    find_causes,
    list_named_holders,
)
from nimburion.core.diagnosis.running_jobs import complete_facts
from nimburion.core.job import FINISHED, AttemptError, AttemptInfo, JobRecord, State
from nimburion.core.queries import JobFilter
from nimburion.core.runs import RunPage, SignalOutcome
from nimburion.core.stacks import HandlerStack, get_stack
from nimburion.jobs.durable.timeline import make_run_timeline, read_stored
from nimburion.server.api import dead_letters as dead_letter_operations
from nimburion.server.api import jobs as job_operations
from nimburion.server.api import runs as run_operations
from nimburion.server.api.jobs import (
    CancelledJob,
    JobStack,
    JobSummary,
    RunNowJob,
    summarize_job,
)
from nimburion.server.api.operation import NoQuery
from nimburion.server.api.runs import RunView, SignalReport, make_job_run
from nimburion.server.dashboard.charts import TimelineSpan
from nimburion.server.dashboard.flows.waits import JobFlow, read_job_flow
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)
from nimburion.server.dashboard.pages.jobs.job_contents import (
    ContentsShape,
    ShownContents,
    TracebackPart,
    describe_contents_shape,
    make_command,
    read_contents,
    split_traceback,
)
from nimburion.server.dashboard.pages.jobs.job_list import describe_purge, describe_replay
from nimburion.server.dashboard.readings import SIDE_AGE, PageReadings
from nimburion.server.dashboard.run_picture import draw_run

MAX_ERRORS = 20
MAX_RUNS = 60
RUNS_BUDGET = 2_000
"""The records that are examined for the latest runs of a name."""
MAX_ENTRIES = 100
"""The most entries of the timeline of a durable run that the page shows: the latest."""
_USUAL_AGE = 30.0
"""Seconds for which the usual time of a running job counts."""
_ENDED_AGE = 60.0
"""Seconds for which the steps of a job that has ended count."""


class ErrorGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Errors of consecutive attempts with the same fingerprint."""

    first_attempt: int
    last_attempt: int
    count: int
    kind: str
    type: str
    message: str
    """The message of the latest."""
    at: float
    """When the latest happened, in epoch seconds."""
    traceback: list[TracebackPart]
    """That of the latest; empty without the right `payloads`."""


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
    """A finished job of the same name."""

    id: str
    state: str
    seconds: float | None
    """How long its last attempt took; None if it never started."""


class JobData(msgspec.Struct, frozen=True, kw_only=True):
    """One job."""

    now: float
    """The time of the read, in epoch seconds on the backend's clock."""
    causes: list[Cause]
    """Why the job is where it is, the decisive cause first."""
    job: JobSummary
    attempts: list[AttemptInfo]
    timeline: list[TimelineSpan]
    errors: list[ErrorGroup]
    """The latest first."""
    runs: list[PastRun]
    """The latest finished jobs of the same name, the latest first."""
    key_holder: str | None
    """The id of another job that holds its unique key."""
    flow: JobFlow | None
    """Its place in its flow; None: it is in no flow, or the flow is not kept any more."""
    limit_holders: list[str]
    """The jobs that hold its limits, as far as a cause names them."""
    run: RunView | None
    """What it did in steps, and what it waits for; None if it has no steps and waits for nothing of
    a run. It is made from the first `MAX_STEPS_READ` steps.
    """
    stack: HandlerStack | None
    """Where its handler is, if somebody asked in the last minute. It needs the right `stacks`."""
    stack_parts: list[TracebackPart]
    data: ShownContents | None
    """None without the right `payloads`."""
    shape: ContentsShape | None
    """What the data looks like; None with that right."""


async def read_job(request: PageRequest[NoQuery]) -> JobData:
    """Read a job, what decides whether it runs, and the latest runs of its name."""
    readings, job_id = request.readings, request.path["id"]
    facts = await _read_facts(readings, job_id)
    job = facts.job
    contents, is_shown = await read_contents(request, job), "payloads" in request.caller.rights
    command = make_command(job.name, job.queue, contents.payload)
    run, stack = await _read_attempt(request, facts)
    return JobData(
        now=facts.now,
        causes=find_causes(facts),
        job=summarize_job(job),
        attempts=job.attempts,
        timeline=make_timeline(job, facts.now),
        errors=group_errors(contents.errors, with_tracebacks=is_shown),
        runs=await _read_runs(request, job.name),
        key_holder=facts.key_holder,
        flow=await read_job_flow(readings, job, facts.now),
        limit_holders=list_named_holders(facts.limits),
        run=run,
        stack=stack,
        stack_parts=split_traceback(stack.text) if stack and stack.text else [],
        data=ShownContents(contents=msgspec.structs.replace(contents, errors=[]), command=command)
        if is_shown
        else None,
        shape=None if is_shown else describe_contents_shape(contents),
    )


async def _read_facts(readings: PageReadings, job_id: str) -> Facts:
    """Read what decides whether the job can run. The usual time of its name changes slowly."""
    facts: Facts = await readings.read(
        f"job {job_id}", lambda: readings.backend.reads.explain_job(job_id)
    )
    job = facts.job
    if job.state is not State.PROCESSING:
        return facts
    complete = await readings.read(
        f"facts {job_id} {job.attempt} {job.cancel_requested}",
        lambda: complete_facts(readings.backend, facts),
        _USUAL_AGE,
    )
    return msgspec.structs.replace(
        facts, usual=complete.usual, cancel_requested_at=complete.cancel_requested_at
    )


async def _read_attempt(
    request: PageRequest[NoQuery], facts: Facts
) -> tuple[RunView | None, HandlerStack | None]:
    """Read the steps of a job that began, and the stack of one that runs, at the same time. A job
    that has ended gets no more of them, so what was read after its end counts for long.
    """
    job, readings = facts.job, request.readings
    if job.started_at is None:
        return None, None

    async def read() -> tuple[RunPage, HandlerStack | None]:
        if job.state is not State.PROCESSING:
            return await read_stored(readings.backend, job.id), None
        return await asyncio.gather(
            read_stored(readings.backend, job.id),
            get_stack(readings.backend, job.id, readings.now),
        )

    age = _ENDED_AGE if job.state.finished else SIDE_AGE
    stored, stack = await readings.read(f"attempt {job.id} {job.state} {job.attempt}", read, age)
    rights, run = request.caller.rights, None
    if stored.steps or job.state is State.SUSPENDED:  # others did nothing in steps
        found = make_run_timeline(facts, stored)
        if found.steps or found.entries:
            run = make_job_run(found, with_values="payloads" in rights)
    return run, stack if "stacks" in rights else None


async def _read_runs(request: PageRequest[NoQuery], name: str) -> list[PastRun]:
    readings = request.readings

    async def read() -> list[PastRun]:
        page = await readings.backend.reads.list_jobs(
            JobFilter(name=name, states=FINISHED), limit=MAX_RUNS, budget=RUNS_BUDGET
        )
        return [
            PastRun(id=job.id, state=job.state.value, seconds=measure_run(job)) for job in page.jobs
        ]

    return await readings.read(f"runs {name}", read, 20.0)


def measure_run(job: JobRecord) -> float | None:
    """Return how long the last attempt of a finished job took."""
    if job.started_at is None or job.finished_at is None:
        return None
    return max(0.0, job.finished_at - job.started_at)


def group_errors(history: list[AttemptError], *, with_tracebacks: bool) -> list[ErrorGroup]:
    """Return the errors of a job with repeats joined, the latest first."""
    repeats: list[list[AttemptError]] = []
    last_key: tuple[str, ...] | None = None
    for error in history:
        key = (error.kind, error.fingerprint or f"{error.type}: {error.message}")
        if key != last_key:
            repeats.append([])
        repeats[-1].append(error)
        last_key = key
    return [
        ErrorGroup(
            first_attempt=errors[0].attempt,
            last_attempt=errors[-1].attempt,
            count=len(errors),
            kind=errors[-1].kind,
            type=errors[-1].type,
            message=errors[-1].message,
            at=errors[-1].at,
            traceback=split_traceback(errors[-1].traceback)
            if with_tracebacks and errors[-1].traceback
            else [],
        )
        for errors in repeats[: -MAX_ERRORS - 1 : -1]
    ]


def make_timeline(job: JobRecord, now: float) -> list[TimelineSpan]:
    """Return when the job waited and ran, from its enqueue until its end or now."""
    spans: list[TimelineSpan] = []
    at = job.created_at
    for attempt in job.attempts:
        if attempt.started_at is None:
            continue
        end = now if attempt.ended_at is None else attempt.ended_at
        spans.append(TimelineSpan("waiting", at, max(at, attempt.started_at)))
        spans.append(TimelineSpan(attempt.outcome, attempt.started_at, end))
        at = max(at, end)
    if not job.state.finished and job.session is None:
        spans.append(TimelineSpan("waiting", at, max(at, now)))
    return spans


JOB = DashboardPage(
    path="/jobs/{id}",
    title="Job {id}",
    section="Jobs",
    read=read_job,
    template="jobs/job.html",
    tables=("attempts", "errors", "runs", "run.entries", "run.signals"),
    constants={
        "format_qualifier": format_qualifier,
        "draw_run": draw_run,
        "max_entries": MAX_ENTRIES,
    },
)


def describe_cancelled(cancelled: CancelledJob) -> str:
    """Return what happened to the job that was to be cancelled."""
    return {
        "cancelled": "The job is cancelled.",
        "requested": "The job runs. Its worker is asked to end it.",
        "finished": "The job had finished already.",
    }.get(cancelled.outcome, "There is no such job.")


def describe_run_now(job: RunNowJob) -> str:
    """Return what happened to the job that was to run now."""
    if job.outcome == "due":
        return "The job is due now. A worker starts it in the order of its queue."
    return "The job was due already, runs or has ended."


def describe_stack(answer: JobStack) -> str:
    """Return what came of a request for the stack of a job."""
    return {
        "shown": "The worker has answered: the stack is on the page of the job.",
        "not running": "The job does not run now.",
        "no answer": "The worker has not answered yet. If it does within a minute, the page shows "
        "the stack.",
    }[answer.outcome]


def describe_signal(report: SignalReport) -> str:
    """Return what became of a signal."""
    return {
        SignalOutcome.STORED: "The signal is sent.",
        SignalOutcome.EXISTS: "The job has, or had, a signal with this id. Nothing was sent.",
        SignalOutcome.FINISHED: "The job has ended. Nothing was sent.",
    }.get(report.outcome, "The job has too many unread signals. Nothing was sent.")


ACTIONS = (
    DashboardAction(
        path="/jobs/{id}/signals",
        operation=find_operation(run_operations.OPERATIONS, "send_signal"),
        done="The signal is sent.",
        back="/jobs/{id}",
        describe=describe_signal,
    ),
    DashboardAction(
        path="/jobs/{id}/stack",
        operation=find_operation(job_operations.OPERATIONS, "show_stack"),
        done="The worker is asked for the stack.",
        back="/jobs/{id}",
        describe=describe_stack,
    ),
    DashboardAction(
        path="/jobs/{id}/run-now",
        operation=find_operation(job_operations.OPERATIONS, "run_job_now"),
        done="The job is due now, if it waited for a later time.",
        back="/jobs/{id}",
        describe=describe_run_now,
    ),
    DashboardAction(
        path="/jobs/{id}/cancel",
        operation=find_operation(job_operations.OPERATIONS, "cancel_job"),
        done="The job is cancelled, or its worker is asked to end it.",
        back="/jobs/{id}",
        describe=describe_cancelled,
    ),
    DashboardAction(
        path="/jobs/{id}/replay",
        operation=find_operation(dead_letter_operations.OPERATIONS, "replay_dead_letters"),
        done="The job is replayed, if it was a dead letter and no other job holds its unique key.",
        back="/jobs/{id}",
        describe=describe_replay,
        body_from_path={"ids": "id"},
    ),
    DashboardAction(
        path="/jobs/{id}/purge",
        operation=find_operation(dead_letter_operations.OPERATIONS, "purge_dead_letters"),
        done="The dead letter is deleted.",
        back="/jobs",
        describe=describe_purge,
        body_from_path={"ids": "id"},
    ),
)
