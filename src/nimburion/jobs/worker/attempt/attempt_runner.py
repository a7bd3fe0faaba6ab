"""Runs one delivery: look up the handler, run it, and decide its settlement.

Every end of a handler (return, exception, timeout, interruption) results in exactly one settlement.
The result is None when the lease was lost: then nothing may be written.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from nimburion.core.errors import LeaseLost, RemoteError
from nimburion.core.job import AttemptError, ErrorKind, JobRecord
from nimburion.core.lease import SUSPECT_AFTER, Delivery, Lease, Token
from nimburion.core.result_errors import encode_result_error
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Released,
    Retried,
    Settlement,
    Spent,
)
from nimburion.core.size_limits import SizeLimits
from nimburion.core.timing.clock import Clock
from nimburion.jobs.declaration.registry import Handler, Registry
from nimburion.jobs.handling.attempt_record import (
    AttemptRecord,
    RecordStep,
    ReportSink,
    WorkerServices,
)
from nimburion.jobs.handling.context import CURRENT, Context
from nimburion.jobs.options.failure_hooks import FailureHooks
from nimburion.jobs.payloads.codec import UnstorableResult
from nimburion.jobs.worker.attempt import outcome as outcomes
from nimburion.jobs.worker.attempt.attempt import Attempt, AttemptTimeout, Interruption
from nimburion.jobs.worker.attempt.failure_hook_runner import FailureHookRunner
from nimburion.jobs.worker.attempt.forking import ForkGuard
from nimburion.jobs.worker.attempt.handler_chains import (
    HandlerChain,
    HandlerChains,
    HandlerCoroutine,
)
from nimburion.jobs.worker.attempt.outcome import (
    CANCELLED_ON_REQUEST,
    INTERRUPTED,
    NO_RESULT,
    AttemptFailed,
    CancelRequested,
    HandlerNotCalled,
    Outcome,
    Succeeded,
)
from nimburion.jobs.worker.attempt.reporter import (
    AttemptReporter,
    log_failure,
    log_safely,
    make_extra,
)
from nimburion.jobs.worker.attempt.retry_or_dead_letter import decide_settlement
from nimburion.jobs.worker.attempt.threads import HandlerThreads

if TYPE_CHECKING:
    from nimburion.core.metrics.counters import LaneCounters
    from nimburion.jobs.durable.run import DurableRun
    from nimburion.jobs.worker.attempt.member_results import MemberResults, ReadRecords

_log = logging.getLogger("nimburion.worker")

KeepsArguments = tuple[bool, Mapping[str, bool]]
"""Whether completed jobs keep their arguments, and for which queues that is otherwise."""

EXPIRED = "expired"
"""The reason of a job that did not start in time."""

RELEASE_DELAY_AFTER_ERROR = 5.0
"""Seconds until the next attempt of a job that an error inside nimburion kept from starting."""


class AttemptRunner:
    """Performs attempts: runs the handler, then decides the settlement by the retry policy.

    Independent of slots and backends.
    """

    def __init__(
        self,
        registry: Registry,
        chains: HandlerChains,
        services: WorkerServices,
        failure_hooks: FailureHooks,
        *,
        guard: ForkGuard,
        clock: Clock,
        random: Random,
        sizes: SizeLimits,
        reporter: AttemptReporter,
        keeps_arguments: KeepsArguments,
        read_records: ReadRecords,
    ) -> None:
        self.guard: ForkGuard = guard
        self._registry = registry
        self._chains = chains
        self._clock = clock
        self._monotonic = clock.monotonic
        self._random = random
        self._sizes = sizes
        self._services = services
        self._failure_hooks = failure_hooks
        self._failure_hook_runner = FailureHookRunner(guard)
        self._keep_default, self._keep_by_queue = keeps_arguments
        self.reporter: AttemptReporter = reporter
        self.is_worker_aborted: Callable[[], bool] = lambda: False
        """Returns whether code in this process ends the worker: what it interrupts is lost."""
        self._host = socket.gethostname()
        self._read_records = read_records
        self._member_results: MemberResults | None = None

    async def perform(  # noqa: C901 - no call more for each attempt
        self, attempt: Attempt
    ) -> Settlement | None:
        """Run the handler and return its settlement; None if the lease is lost."""
        delivery = attempt.delivery
        chain = self._chains.known.get(delivery.name) or self._chains.find(delivery.name)
        if chain is None or attempt.interruption is not None:
            return self._settle_unstarted(attempt)
        if delivery.lost >= SUSPECT_AFTER:
            chain = self._chains.isolate(chain)
        if delivery.options.flow is not None:
            chain = self._prepare_member(attempt, chain)
        handler, run, lanes, context_type, _ = chain
        expires = delivery.options.expires or handler.policy.expires
        if expires is not None and self._is_expired(attempt, expires):
            return self._settle_expired(attempt, handler, lanes)
        keep = self._keep_by_queue
        attempt.keep_payload = (
            keep.get(delivery.queue, self._keep_default) if keep else self._keep_default
        )
        reporter = self.reporter
        timeout = delivery.options.timeout or handler.policy.timeout
        deadline = None if timeout is None else self._monotonic() + timeout
        attempt.handler = handler
        attempt.context = context = context_type(attempt, self._services, deadline)
        CURRENT.set(context)
        reporter.begin(attempt, lanes.get(delivery.queue) or reporter.find_lane(lanes, delivery))
        try:
            if timeout is None:
                result = await run(context)
            else:
                result = await self._run_with_timeout(attempt, context, run, timeout)
            if (
                result is None
                and attempt.result is None
                and not attempt.keeps_none
                and not attempt.completed
                and attempt.interruption is not Interruption.LOST
            ):
                # Nearly all attempts end here. `_make_settlement` says the same.
                settlement: Settlement | None
                settlement = Completed(delivery.lease, None, attempt.keep_payload)
                reporter.end(attempt, settlement)
                return settlement
            outcome: Outcome = self._make_success(attempt, context, handler, result)
        except BaseException as raised:  # noqa: BLE001 - each end of a handler is an outcome
            if attempt.run is not None and (suspended := attempt.run.settle_suspension(raised)):
                reporter.end(attempt, suspended)
                return suspended
            outcome = self._classify(attempt, context, handler, raised)
        if attempt.run is None:
            settlement = self._make_settlement(attempt, outcome, handler)
            error = outcome.error.type if type(outcome) is AttemptFailed else None
        else:
            settlement = await self._end_run(attempt, attempt.run, outcome, handler)
            error = settlement.error.type if isinstance(settlement, Retried | Failed) else None
        reporter.end(attempt, settlement, error)
        if error is not None and isinstance(settlement, Retried | Failed):
            return await self._run_failure_hooks(attempt, settlement, handler)
        return settlement

    async def _end_run(
        self, attempt: Attempt, run: DurableRun, outcome: Outcome, handler: Handler
    ) -> Settlement | None:
        from nimburion.jobs.worker.attempt.run_end import end_run_attempt

        raised = attempt.raised
        settlement = self._make_settlement(attempt, outcome, handler)

        def describe(error: BaseException) -> AttemptError:
            return self._add_place(attempt, self._describe_failure(attempt, error))

        return await end_run_attempt(attempt, run, settlement, raised, describe)

    async def settle_after_error(
        self, attempt: Attempt, raised: BaseException
    ) -> Settlement | None:
        """Return the settlement after an error inside nimburion: `perform` itself raised.

        If the handler may have started, this counts as a failure of kind `internal`, so that a
        repeated error ends as a dead letter. Otherwise the job is released.
        """
        if _is_closing(raised):
            raise raised
        # A future that fails with GeneratorExit closes the coroutines that await it, one by one.
        from_handler = issubclass(type(raised), GeneratorExit)
        if not from_handler:
            log_safely(
                logging.ERROR,
                "an error inside nimburion while it ran job %s",
                attempt.delivery.lease.job_id,
                raised=raised,
            )
        settlement, error = self._decide_after_error(
            attempt, raised, "failure" if from_handler else "internal"
        )
        self.reporter.end(attempt, settlement, error)
        handler = self._registry.get(attempt.delivery.name)
        if handler is not None and isinstance(settlement, Retried | Failed):
            return await self._run_failure_hooks(attempt, settlement, handler)
        return settlement

    async def report_dead(self, job: JobRecord) -> None:
        """Call the hooks for a job that became a dead letter because its workers were lost."""
        handler = self._registry.get(job.name)
        hooks = self._failure_hooks.select_for_dead(handler.policy if handler else None)
        if not hooks or job.error is None:
            return
        record = AttemptRecord(_make_last_delivery(job), "")
        record.is_decided = True
        context = Context(record, self._services)
        if handler is not None:
            _decode_if_missing(context, handler)
        await self._failure_hook_runner.run(hooks, context, job.error, lambda: True)

    async def _run_failure_hooks(
        self, attempt: Attempt, settlement: Retried | Failed, handler: Handler
    ) -> Settlement | None:
        """Call the hooks for a failed attempt and return its settlement.

        None: the lease is lost, or a transaction of a hook has stored the outcome.

        The lease stays valid meanwhile. A cancel request that comes now changes nothing: the
        outcome is decided.
        """
        hooks = self._failure_hooks.select(settlement, handler.policy)
        if hooks and attempt.context is not None:
            attempt.is_decided = True
            record = _make_hook_record(attempt, settlement)
            context = Context(record, self._services, attempt.context.deadline)
            context.payload, context.job = attempt.context.payload, attempt.context.job
            _decode_if_missing(context, handler)
            await self._failure_hook_runner.run(
                hooks, context, settlement.error, lambda: attempt.must_end
            )
            if record.failure is None:  # stored; another worker may have the next attempt by now
                attempt.settled = True
                return None
            record.failure = None
        return None if attempt.lease_is_lost else settlement

    def _decide_after_error(
        self, attempt: Attempt, raised: BaseException, kind: ErrorKind
    ) -> tuple[Settlement | None, str | None]:
        """Return the settlement, and the name of the exception's type if it counts as a failure."""
        delivery = attempt.delivery
        handler = self._registry.get(delivery.name)
        if attempt.context is None or handler is None:
            return Released(delivery.lease, RELEASE_DELAY_AFTER_ERROR, unstarted=True), None
        if attempt.interruption is Interruption.LOST:
            return None, None
        if attempt.completed:
            return Completed(delivery.lease), None
        error = outcomes.describe_exception(raised, delivery.attempt, kind, self._sizes.error)
        failed = AttemptFailed(self._add_place(attempt, error))
        policy, now = handler.policy, self._read_backend_time()
        return decide_settlement(delivery, failed, policy, self._random, now), error.type

    def _make_settlement(
        self, attempt: Attempt, outcome: Outcome, handler: Handler
    ) -> Settlement | None:
        raised, attempt.raised = attempt.raised, None
        if attempt.completed:
            return _settle_completed(attempt, outcome, raised)
        if attempt.lease_is_lost:
            return None
        if type(outcome) is Succeeded:  # `decide_settlement` says the same
            return Completed(attempt.delivery.lease, outcome.result, attempt.keep_payload)
        if isinstance(outcome, AttemptFailed):
            outcome = outcome._replace(error=self._add_place(attempt, outcome.error))
        delivery = attempt.delivery
        if attempt.run is not None and attempt.run.recorder.has_recorded:
            delivery = msgspec.structs.replace(delivery, failures=0)
        settlement = decide_settlement(
            delivery, outcome, handler.policy, self._random, self._read_backend_time()
        )
        if attempt.run is not None:
            from nimburion.jobs.worker.attempt.run_end import cancel_instead

            settlement = cancel_instead(attempt, attempt.run, settlement, raised)
        if isinstance(settlement, Retried | Failed):
            log_failure(attempt.delivery, settlement, raised)
        return settlement

    def _prepare_member(self, attempt: Attempt, chain: HandlerChain) -> HandlerChain:
        """Prepare the attempt at a member of a flow, and return the chain for it."""
        options = attempt.delivery.options
        attempt.keeps_none = options.counted_flow is not None
        if not options.results:
            return chain
        return self._chains.fill_in_results(chain, self._require_member_results())

    def _require_member_results(self) -> MemberResults:
        """Return what reads results of members of flows. Made for the first job that needs it."""
        if self._member_results is None:
            from nimburion.jobs.worker.attempt.member_results import MemberResults

            self._member_results = MemberResults(self._read_records, self._sizes.payload)
        return self._member_results

    def _is_expired(self, attempt: Attempt, expires: float) -> bool:
        """Return whether it is too late to start a job.

        Only the first lease of a job is checked. A job that a worker gave back may have started:
        an attempt that is interrupted or refused counts no failure and no loss.
        """
        delivery = attempt.delivery
        is_first_lease = delivery.lease.token.fence == 1
        return is_first_lease and self._read_backend_time() > delivery.due + expires

    def _settle_expired(
        self, attempt: Attempt, handler: Handler, lanes: dict[str, LaneCounters]
    ) -> Cancelled:
        """Count an expired job as cancelled, and give back the units of rates that it took."""
        delivery = attempt.delivery
        units = handler.policy.find_units(delivery.options.cost)
        if units:
            self._services.report(Spent(delivery.lease, -units))
        self.reporter.count_expired(delivery, lanes)
        return Cancelled(delivery.lease, EXPIRED)

    def settle_cancelled(self, delivery: Delivery) -> Cancelled | Released:
        """Return the settlement of a job that is cancelled before its handler was called.

        A durable run is released: the backend ends it, unless a worker must undo what it did.
        """
        handler = self._registry.get(delivery.name)
        if handler is not None and handler.is_durable:
            return Released(delivery.lease, unstarted=True)
        return Cancelled(delivery.lease, CANCELLED_ON_REQUEST)

    def _settle_unstarted(self, attempt: Attempt) -> Settlement | None:
        lease = attempt.delivery.lease
        match attempt.interruption:
            case Interruption.LOST:
                return None
            case Interruption.CANCEL:
                return self.settle_cancelled(attempt.delivery)
            case Interruption.STOP | None:
                return Released(lease, unstarted=True)

    def _read_backend_time(self) -> float:
        """Return the time of the backend's clock, as this worker knows it."""
        return self._monotonic() + self.reporter.backend_time_offset

    def _add_place(self, attempt: Attempt, error: AttemptError) -> AttemptError:
        """Return the error with the session, the host and the start of the attempt."""
        return msgspec.structs.replace(
            error,
            session=attempt.session_id,
            host=self._host,
            started_at=attempt.started + self.reporter.backend_time_offset,
        )

    def _describe_failure(self, attempt: Attempt, raised: BaseException) -> AttemptError:
        return outcomes.describe_exception(
            raised, attempt.delivery.attempt, "failure", self._sizes.error
        )

    def _make_success(
        self, attempt: Attempt, context: Context, handler: Handler, result: object
    ) -> Succeeded:
        if result is not None:
            return self._encode_success(handler, result, context)
        encoded = None if attempt.completed else attempt.encode_result()
        return NO_RESULT if encoded is None else Succeeded(encoded)

    def _classify(
        self, attempt: Attempt, context: Context, handler: Handler, raised: BaseException
    ) -> Outcome:
        kind = type(raised)
        if kind is _TimedOut:
            late = cast("_TimedOut", raised)
            attempt.raised = late.__cause__
            return outcomes.make_timeout_failure(late.seconds, context.attempt)
        if self.is_worker_aborted() and _is_interrupted(attempt):
            _log.warning(
                "job %s (%s) was interrupted by the end of its worker, and counts a loss",
                attempt.delivery.lease.job_id,
                attempt.delivery.name,
                extra=make_extra(attempt.delivery),
            )
            attempt.interruption = Interruption.LOST
            return INTERRUPTED
        if attempt.run is not None:
            from nimburion.jobs.worker.attempt.run_end import read_run_outcome

            outcome = read_run_outcome(attempt, attempt.run, raised)
            if outcome is not None:
                return outcome
        if issubclass(kind, asyncio.CancelledError):
            return self._classify_cancellation(attempt, cast("asyncio.CancelledError", raised))
        if issubclass(kind, LeaseLost):
            return self._classify_lease_loss(attempt, cast("LeaseLost", raised))
        if _is_closing(raised):
            raise raised
        return self._classify_exception(attempt, handler, raised)

    async def _run_with_timeout(
        self, attempt: Attempt, context: Context, run: HandlerCoroutine, seconds: float
    ) -> object:
        """Return the handler's result. Raises `_TimedOut` if `seconds` pass first."""
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                attempt.timeout = AttemptTimeout(limit, seconds, self._clock.monotonic)
                return await run(context)
        except TimeoutError as error:
            if limit.expired():
                attempt.cancel_requested = True
                raise _TimedOut(seconds) from error
            raise

    def _encode_success(self, handler: Handler, result: object, context: Context) -> Succeeded:
        """Encode the result of a handler.

        If it cannot be stored, log a warning and complete the job with the reason in its place.
        """
        try:
            return Succeeded(handler.encode_result(result))
        except UnstorableResult as error:
            _log.warning("the result of job %s is not stored: %s", context.job_id, error)
            return Succeeded(encode_result_error(str(error)))

    def _classify_cancellation(self, attempt: Attempt, raised: asyncio.CancelledError) -> Outcome:
        match attempt.interruption:
            case Interruption.CANCEL:
                return CancelRequested(CANCELLED_ON_REQUEST)
            case Interruption.STOP | Interruption.LOST:
                return INTERRUPTED
            case None:  # code inside the handler cancelled it: an ordinary failure
                attempt.raised = raised
                return AttemptFailed(self._describe_failure(attempt, raised))

    def _classify_lease_loss(self, attempt: Attempt, lost: LeaseLost) -> Outcome:
        """Return the outcome of a handler that raised LeaseLost.

        If nimburion raised it inside the handler's transaction, the lease is lost and nothing is
        written. If the handler raised it itself, it is an ordinary failure.
        """
        if lost is attempt.lease_lost:
            _log.warning("%s", lost)
            attempt.interruption = Interruption.LOST
            return INTERRUPTED
        attempt.raised = lost
        return AttemptFailed(self._describe_failure(attempt, lost))

    def _classify_exception(
        self, attempt: Attempt, handler: Handler, raised: BaseException
    ) -> Outcome:
        if issubclass(type(raised), HandlerNotCalled):
            _log.error("job %s is released for a while: %s", attempt.delivery.lease.job_id, raised)
            attempt.no_answer = str(raised)
            return outcomes.Snoozed(RELEASE_DELAY_AFTER_ERROR)
        attempt.raised = raised
        if type(raised) is RemoteError:  # the child has classified it
            return AttemptFailed(raised.failure, raised.after)
        if issubclass(type(raised), KeyboardInterrupt) and _may_be_ctrl_c(attempt, raised):
            attempt.keyboard_interrupt = cast("KeyboardInterrupt", raised)
        number = attempt.delivery.attempt
        if attempt.run is not None and issubclass(type(raised), BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", raised)
            outcome = outcomes.classify_group(group, number, handler.policy, self._sizes.error)
            if outcome is not None:
                return outcome
        return outcomes.classify_exception(raised, number, handler.policy, self._sizes.error)


def _is_interrupted(attempt: Attempt) -> bool:
    """Return whether the task of the handler was cancelled, and not because of its job alone."""
    task = attempt.task
    is_cancelled = task is not None and task.cancelling() > 0
    return is_cancelled and attempt.interruption is not Interruption.CANCEL


def _make_hook_record(attempt: Attempt, failure: Retried | Failed) -> AttemptRecord:
    """Return the record of the hooks for a failed attempt.

    It is not that of the attempt: a handler that runs on in its thread must not store the failure
    with its rows.
    """
    record = AttemptRecord(attempt.delivery, attempt.session_id)
    record.is_decided, record.failure = True, failure
    record.cancel_requested = attempt.cancel_requested
    record.task = asyncio.current_task()
    return record


def _make_last_delivery(job: JobRecord) -> Delivery:
    """Return the delivery of the last attempt of a job that lost its worker; its lease is over."""
    return Delivery(
        Lease(job.id, Token(0, bytes(16))),
        job.name,
        job.queue,
        job.payload or b"",
        priority=job.priority,
        failures=job.failures,
        lost=job.lost - 1,
        due=job.due,
        created_at=job.created_at,
        options=job.options,
    )


def _decode_if_missing(context: Context, handler: Handler) -> None:
    """Decode the arguments for a hook, if no handler in this process has done so."""
    if context.job is None:
        with suppress(Exception):  # the hook finds None, as the payload is unreadable
            context.job = handler.decode(context.payload)


def raise_keyboard_interrupt(attempt: Attempt) -> None:
    """Raise a Ctrl-C that arrived inside the handler out of the event loop.

    Call this after the attempt is settled.
    """
    if attempt.keyboard_interrupt is not None:
        asyncio.get_running_loop().call_soon(_raise, attempt.keyboard_interrupt)
        attempt.keyboard_interrupt = None


def _raise(error: BaseException) -> None:
    raise error


def _may_be_ctrl_c(attempt: Attempt, raised: BaseException) -> bool:
    """Return whether Python may have raised this exception in the handler because of a SIGINT.

    This happens only on the main thread, and only while Python's own signal handler is installed.
    `run()` and `asyncio.run` replace that handler. The exception of a `def` handler comes from
    another thread.
    """
    from_thread = attempt.call is not None and attempt.call.error is raised
    return (
        not from_thread
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def _is_closing(raised: BaseException) -> bool:
    """Return whether the coroutine is closed outside of any task, so that no task awaits it."""
    if not issubclass(type(raised), GeneratorExit):
        return False
    try:
        return asyncio.current_task() is None
    except RuntimeError:  # no loop runs
        return True


def _settle_completed(
    attempt: Attempt, outcome: Outcome, raised: BaseException | None
) -> Settlement:
    """Return the settlement of a job that the handler's own transaction has completed.

    The backend answers this repeated completion with `already` and writes nothing.
    """
    delivery = attempt.delivery
    if isinstance(outcome, Succeeded):
        if outcome.result is not None and not attempt.has_result:
            _log.warning(
                "job %s was completed by its own transaction: the return value of its handler is "
                "not stored. Call ctx.set_result(...) inside the block",
                delivery.lease.job_id,
            )
    else:
        _log.warning(
            "job %s was completed by its own transaction; its handler ended otherwise afterwards "
            "(%s), which changes nothing",
            delivery.lease.job_id,
            outcome.error.message if isinstance(outcome, AttemptFailed) else type(outcome).__name__,
            exc_info=raised,
            extra=make_extra(delivery),
        )
    return Completed(delivery.lease)


class _TimedOut(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class MakeAttemptRunner(Protocol):
    """Makes the attempt runner of a worker or of an inline runner."""

    def __call__(
        self,
        threads: HandlerThreads,
        report: ReportSink,
        state: object,
        guard: ForkGuard | None = None,
        /,
        *,
        record: RecordStep,
        hold: float,
    ) -> AttemptRunner:
        """Return an attempt runner that uses these threads and this report of progress.

        `state` is what the lifespan yielded. Without `guard`, the runner watches for forks itself.
        `record` stores the steps of durable runs, and `hold` is the longest sleep for which a run
        keeps its slot, in seconds.
        """
        ...
