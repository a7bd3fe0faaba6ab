"""Explain why a job is not running: the facts of one consistent read, and their consequences."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from nimburion.core.diagnosis.unserved import Unserved, find_unserved, is_live
from nimburion.core.fairness import TenantTurn
from nimburion.core.flows import FlowInfo, FlowState, On, SourceKind, WaitCondition
from nimburion.core.job import DEPENDENCY, NOT_NEEDED, JobRecord, State
from nimburion.core.limits import KeyUse, LimitInfo, get_limited_job, get_limited_queue
from nimburion.core.queries import Pause, QueueInfo
from nimburion.core.session import SessionInfo, WorkerCommand

MAX_UNMET = 10
"""The most conditions that are not met which `Facts` has."""
_MAX_NAMED = 3
"""Where a job waits for more than one above this, a sentence names this many sources."""


class Unmet(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that is not met, with the job or the flow for which it waits.

    The source of a durable run (`On.ANY`) can be a signal or a time, too.
    """

    condition: WaitCondition
    job: JobRecord | None = None
    """The job, without its payload."""
    flow: FlowInfo | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What decides whether a job can run, read in one consistent step."""

    now: float
    """Epoch seconds on the backend's clock."""
    job: JobRecord
    """Without its payload."""
    pause: Pause | None
    """The pause of its queue."""
    limits: list[LimitInfo] = msgspec.field(default_factory=list)
    """The limits that close its lane if they have no room, each with the rule of its name."""
    keys: list[KeyUse] = msgspec.field(default_factory=list)
    """The keys of its other limits that are in use."""
    parked_for: str | None = None
    """The name of the limit whose key has no room for the job; None: it is not parked."""
    turn: TenantTurn | None = None
    """Where the job stands in the turns of the tenants; None: it does not wait for a turn."""
    unmet: list[Unmet] = msgspec.field(default_factory=list)
    """Conditions of a suspended job that are not met, or those that became impossible and for which
    a job was cancelled, up to `MAX_UNMET`.
    """
    unmet_count: int = 0
    """The number of these conditions."""
    key_holder: str | None
    """The id of another job that holds its unique key. It prevents the replay of a dead letter."""
    sessions: list[SessionInfo]
    """Every session that has not ended."""
    usual: float | None = None
    """The seconds within which 95 % of the attempts of its name ended lately. `explain_job` leaves
    this field and the next one out; `read_facts` adds them for a running job.
    """
    cancel_requested_at: float | None = None
    """When an operator asked to cancel the running attempt; None if that is not known."""


class CauseKind(enum.StrEnum):
    """The kinds of causes, in the order in which `find_causes` returns them."""

    FINISHED = "finished"
    """The job completed, or was cancelled."""
    DEAD = "dead"
    """The job is a dead letter; it runs again only when it is replayed."""
    KEY_HELD = "key_held"
    """A replay is not possible now: another job holds the unique key."""
    RUNNING = "running"
    """A worker runs the job, or has reserved it."""
    SESSION_EXPIRED = "session_expired"
    """The session of its worker has expired; a rescue will take the job back."""
    SUSPENDED = "suspended"
    """The job waits for other jobs of its flow. A durable run waits for a flow, a signal or a time.
    """
    NOT_DUE = "not_due"
    RETRY_LATER = "retry_later"
    """The job failed, and the time of its next attempt has not come."""
    PAUSED = "paused"
    AT_LIMIT = "at_limit"
    OVER_RATE = "over_rate"
    """The rate limit of its name allows no job now."""
    KEY_FULL = "key_full"
    """The job is parked: its key of a limit has no room."""
    NO_WORKER = "no_worker"
    """No live worker, none that serves the queue, or none that knows the name."""
    WORKERS_QUIET = "workers_quiet"
    """Every worker that could run the job has been told to start no further job."""
    WORKERS_BUSY = "workers_busy"
    """Every worker that could run the job runs as many jobs as it may."""
    TENANT_TURN = "tenant_turn"
    """Other tenants, or other jobs of its tenant, come first."""
    READY = "ready"
    """Nothing prevents the job from running: jobs before it in the order run first."""


class Cause(msgspec.Struct, frozen=True):
    """One cause, with a sentence for people."""

    kind: CauseKind
    text: str


def find_causes(facts: Facts) -> list[Cause]:
    """Return why the job is not running now, the decisive cause first. There is at least one."""
    job = facts.job
    if job.state.finished:
        return list(_explain_finished(facts))
    if job.state is State.PROCESSING:
        return [_explain_processing(facts)]
    if job.state is State.SUSPENDED:
        return [Cause(CauseKind.SUSPENDED, _describe_unmet(facts))]
    return list(_explain_waiting(facts)) or [
        Cause(CauseKind.READY, "It is due and a worker can run it: jobs before it run first.")
    ]


def _explain_finished(facts: Facts) -> Iterable[Cause]:
    job = facts.job
    if job.state is not State.FAILED:
        reason = f", reason: {job.reason}" if job.reason else ""
        if job.reason in {DEPENDENCY, NOT_NEEDED} and facts.unmet:
            named = facts.unmet[:_MAX_NAMED]
            reason += f": {', '.join(describe_source(one, facts.now) for one in named)}"
        yield Cause(CauseKind.FINISHED, f"It is {job.state.value}{reason}.")
        return
    error = f": {job.error.type}" if job.error else ""
    yield Cause(
        CauseKind.DEAD,
        f"It is a dead letter, reason: {job.reason}{error}. It runs again only after a replay.",
    )
    if facts.key_holder is not None:
        yield Cause(
            CauseKind.KEY_HELD,
            f"It cannot be replayed while job {facts.key_holder} holds its unique key.",
        )


def _explain_processing(facts: Facts) -> Cause:
    job = facts.job
    holder = next((s for s in facts.sessions if s.id == job.session), None)
    if holder is None or holder.expires_in <= 0:
        return Cause(
            CauseKind.SESSION_EXPIRED,
            f"Its worker (session {job.session}) has stopped sending heartbeats. The next rescue "
            "takes the job back.",
        )
    since = _format_seconds(facts.now - (job.started_at or facts.now))
    usual = "" if facts.usual is None else f" (usually at most {_format_seconds(facts.usual)})"
    return Cause(
        CauseKind.RUNNING,
        f"A worker has held it for {since}{usual}: host {holder.host}, process {holder.pid}, "
        f"session {holder.id}.{_describe_cancel_request(facts) if job.cancel_requested else ''}",
    )


def _describe_cancel_request(facts: Facts) -> str:
    requested_at = facts.cancel_requested_at
    when = "" if requested_at is None else f" {_format_seconds(facts.now - requested_at)} ago"
    return (
        f" A cancel was requested{when}. If its handler runs in a thread, it cannot be "
        f"interrupted: `nimburion workers stop {facts.job.session}` ends its process."
    )


def _describe_unmet(facts: Facts) -> str:
    if not facts.unmet and not facts.job.options.conditions:
        return "It waits for nothing that could come: only a cancel ends its wait."
    if not facts.unmet:
        return "What it waited for has ended. The next step of a worker resumes it."
    unmet = facts.unmet if facts.unmet_count <= _MAX_NAMED + 1 else facts.unmet[:_MAX_NAMED]
    more = facts.unmet_count - len(unmet)
    others = f"for {more} others" if more > 0 else ""
    if unmet[0].condition.on is On.ANY:
        waits = [_describe_wait(one, facts.now) for one in unmet]
        *first, last = [*waits, others] if others else waits
        return f"It waits {', '.join([*first, f'or {last}'] if first else [last])}."
    named = [_WAITS[one.condition.on] + describe_source(one, facts.now) for one in unmet]
    return f"It waits for {'; for '.join(named)}{others and f'; and {others}'}."


def _describe_wait(unmet: Unmet, now: float) -> str:
    """Return one of the sources of which the first resumes a durable run, for people."""
    from nimburion.core.runs import read_time_source, split_signal_source  # rarely needed

    source, flow = unmet.condition.source, unmet.flow
    if source.kind is SourceKind.SIGNAL:
        return f"for the signal {split_signal_source(source.id)[1]!r}"
    if source.kind is SourceKind.TIME:
        end = read_time_source(source.id)
        return f"until {_format_time(end)} (in {_format_seconds(end - now)})"
    if flow is None or not flow.unfinished:
        return f"for the end of flow {source.id}"
    verb = "has" if flow.unfinished == 1 else "have"
    left = f"{flow.unfinished} of {flow.members} members {verb} not ended"
    return f"for the end of flow {source.id} ({left})"


_WAITS = {On.SUCCESS: "", On.FAILURE: "the failure of ", On.FINISHED: "the end of "}


def describe_source(unmet: Unmet, now: float) -> str:
    """Return the job or the flow of a condition with its state, for people."""
    source, job, flow = unmet.condition.source, unmet.job, unmet.flow
    if flow is not None:
        if not flow.unfinished:
            return f"{source.id}, which {_describe_state(flow.state)}"
        failed = f", and {flow.failed} failed" if flow.failed else ""
        return f"{flow.unfinished} of {flow.members} members of {source.id}{failed}"
    if job is None:
        return f"{source.kind} {source.id}"
    wait = ""
    if job.state in {State.SCHEDULED, State.RETRYING} and job.due > now:
        wait = f", next in {_format_seconds(job.due - now)}"
    return f"job {source.id}, which {_describe_state(job.state)}{wait}"


def _describe_state(state: State | FlowState) -> str:
    return "has failed" if state in {State.FAILED, FlowState.FAILED} else f"is {state}"


def _explain_waiting(facts: Facts) -> Iterable[Cause]:
    job = facts.job
    if job.due > facts.now:
        wait = _format_seconds(job.due - facts.now)
        if job.failures:
            failed = [error.attempt for error in job.history if error.kind != "lost"]
            number = failed[-1] if failed else job.failures
            text = f"Attempt {number} failed. The next one is due in {wait}."
            yield Cause(CauseKind.RETRY_LATER, text)
        else:
            yield Cause(CauseKind.NOT_DUE, f"It is due in {wait}.")
    if facts.pause is not None:
        yield Cause(CauseKind.PAUSED, _describe_pause(job.queue, facts.pause, facts.now))
    for limit in facts.limits:
        rule = limit.rules.get(job.name)
        maximum = limit.concurrency if rule is None else rule.concurrency
        if maximum is not None and limit.in_use >= maximum:
            yield Cause(CauseKind.AT_LIMIT, _describe_limit(limit, maximum))
        if limit.opens_at is not None:
            yield Cause(CauseKind.OVER_RATE, _describe_rate(limit, limit.opens_at - facts.now))
    if facts.parked_for is not None:
        yield Cause(CauseKind.KEY_FULL, _describe_parked(facts))
    yield from _explain_workers(facts)
    if facts.turn is not None and (facts.turn.tenants_before or facts.turn.jobs_before):
        yield Cause(CauseKind.TENANT_TURN, _describe_turn(facts.turn))


def _describe_pause(queue: str, pause: Pause, now: float) -> str:
    by = f" by {pause.by}" if pause.by else ""
    why = f", reason: {pause.reason}" if pause.reason else ""
    end = "" if pause.until is None else f" It ends in {_format_seconds(pause.until - now)}."
    return f"Queue {queue!r} is paused{by}{why}.{end}"


def list_named_holders(limits: Iterable[LimitInfo]) -> list[str]:
    """Return the jobs that the causes of limits name: those that hold each longest."""
    return [holder.job_id for limit in limits for holder in limit.holders[:3]]


def _name_limit(limit: str) -> str:
    """Return the name of a job or a queue with a limit of its own, or that of a shared limit."""
    job, queue = get_limited_job(limit), get_limited_queue(limit)
    return repr(job) if job is not None else limit if queue is None else f"queue {queue!r}"


def _describe_limit(limit: LimitInfo, maximum: int) -> str:
    name = _name_limit(limit.name)
    if maximum == 0:
        return (
            f"The concurrency limit of {name} is 0, so none of these jobs starts; "
            "`nimburion limits` says who changed it."
        )
    holders = ", ".join(list_named_holders([limit]))
    held = f", by {holders}" if holders else ""
    more = " and others" if limit.in_use > 3 else ""
    return (
        f"The concurrency limit of {name} is reached: {limit.in_use} of {maximum} in use"
        f"{held}{more}."
    )


def _describe_parked(facts: Facts) -> str:
    use = next((use for use in facts.keys if use.limit == facts.parked_for), None)
    if use is None:
        return f"It waits until its key of the limit {facts.parked_for!r} has room."
    text = f"The key {use.key!r} of the limit {use.limit!r} has no room: {use.in_use} in use"
    if use.opens_at is None:
        zero = "; if its maximum is 0, `nimburion limits` says who changed it"
        return f"{text}{zero if use.in_use == 0 else ''}."
    return f"{text}; its rate allows the next job in {_format_seconds(use.opens_at - facts.now)}."


def _describe_turn(turn: TenantTurn) -> str:
    own = "1 job" if turn.jobs_before == 1 else f"{turn.jobs_before} jobs"
    others = "1 tenant" if turn.tenants_before == 1 else f"{turn.tenants_before} tenants"
    return (
        f"It waits for the turn of tenant {turn.tenant!r}, which is {_format_seconds(turn.ahead)} "
        f"ahead. Before it: {others}, and {own} of its own tenant and name."
    )


def _describe_rate(limit: LimitInfo, wait: float) -> str:
    rate = limit.rate
    what = "" if rate is None else f" ({rate.rate}, burst {rate.burst})"
    return (
        f"The rate limit of {_name_limit(limit.name)}{what} allows the next job in "
        f"{_format_seconds(wait)}."
    )


def _explain_workers(facts: Facts) -> Iterable[Cause]:
    job = facts.job
    waiting = QueueInfo(
        name=job.queue,
        size=1,
        scheduled=0,
        processing=0,
        oldest_age=0.0,
        paused=False,
        names={job.name: 1},
    )
    for unserved in find_unserved([waiting], facts.sessions):
        yield Cause(CauseKind.NO_WORKER, _describe_unserved(unserved))
        return
    able = [
        session
        for session in facts.sessions
        if is_live(session) and job.queue in session.queues and job.name in session.names
    ]
    active = [session for session in able if session.command is None]
    if not active:
        command = able[0].command or WorkerCommand.QUIET
        yield Cause(
            CauseKind.WORKERS_QUIET,
            f"Every worker that could run it has the command {command.value!r}: none starts a job.",
        )
    elif job.due <= facts.now and all(_is_busy(session) for session in active):
        noun = "worker" if len(active) == 1 else "workers"
        yield Cause(
            CauseKind.WORKERS_BUSY,
            f"{len(active)} {noun} could run it, and every slot is taken.",
        )


def _describe_unserved(unserved: Unserved) -> str:
    reason = unserved.reason[0].upper() + unserved.reason[1:]
    if unserved.why == "worker":
        return f"{reason}."
    return f"{reason} (queue {unserved.queue!r}, name {unserved.name!r})."


def _is_busy(session: SessionInfo) -> bool:
    vitals = session.vitals
    return vitals is not None and vitals.slots > 0 and vitals.busy >= vitals.slots


def _format_time(at: float) -> str:
    try:
        moment = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):  # after the year 9999
        return f"{at:.0f} s after 1970"
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _format_seconds(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if 0.0 < seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
