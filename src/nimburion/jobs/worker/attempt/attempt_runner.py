"""Runs one delivery: look up the handler, run it, and decide its settlement.

Every end of a handler (return, exception, timeout, interruption) results in exactly one settlement.
The result is None when the lease was lost: then nothing may be written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from nimburion.core.job import ErrorKind, JobRecord
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
from nimburion.jobs.worker.attempt.attempt import Attempt, AttemptTimeout, Interruption
from nimburion.jobs.worker.attempt.attempt_end import (
    RELEASE_DELAY_AFTER_ERROR,
    AttemptEnd,
    TimedOut,
    is_closing,
)
from nimburion.jobs.worker.attempt.failure_hook_runner import FailureHookRunner
from nimburion.jobs.worker.attempt.forking import ForkGuard
from nimburion.jobs.worker.attempt.handler_chains import (
    HandlerChain,
    HandlerChains,
    HandlerCoroutine,
)
from nimburion.jobs.worker.attempt.outcome import CANCELLED_ON_REQUEST, AttemptFailed
from nimburion.jobs.worker.attempt.reporter import AttemptReporter, log_safely
from nimburion.jobs.worker.attempt.threads import HandlerThreads

if TYPE_CHECKING:
    from nimburion.core.metrics.counters import LaneCounters
    from nimburion.jobs.worker.attempt.member_results import MemberResults, ReadRecords

_log = logging.getLogger("nimburion.worker")

KeepsArguments = tuple[bool, Mapping[str, bool]]
"""Whether completed jobs keep their arguments, and for which queues that is otherwise."""

EXPIRED = "expired"
"""The reason of a job that did not start in time."""


_OTHERWISE_DECIDED = (type(None), Completed)
"""The types of settlements after which a failure changes nothing: the lease is lost, or a
transaction of the handler has completed the job.
"""


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
        end: AttemptEnd,
        guard: ForkGuard,
        clock: Clock,
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
        self.end: AttemptEnd = end
        """The end policy of ordinary handlers."""
        self._sizes = sizes
        self._services = services
        self._failure_hooks = failure_hooks
        self._failure_hook_runner = FailureHookRunner(guard)
        self._keep_default, self._keep_by_queue = keeps_arguments
        self.reporter: AttemptReporter = reporter
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
        handler, call, lanes, context_type, _, end = chain
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
        settlement: Settlement | None
        try:
            if timeout is None:
                result = await call(context)
            else:
                result = await self._call_with_timeout(attempt, context, call, timeout)
            if (
                result is None
                and attempt.result is None
                and not attempt.keeps_none
                and not attempt.completed
                and attempt.interruption is not Interruption.LOST
            ):  # nearly all attempts: as `_settle_success`, without its call
                settlement = Completed(delivery.lease, None, attempt.keep_payload)
            else:
                settlement = self._settle_success(attempt, handler, result)
            reporter.end(attempt, settlement)
            return settlement
        except BaseException as raised:  # noqa: BLE001 - each end of a handler is an outcome
            outcome = end.classify(attempt, handler, raised)
        settlement = await end.settle(attempt, handler, outcome)
        error: str | None = None
        if isinstance(settlement, Retried | Failed):
            error = settlement.error.type
        elif type(outcome) is AttemptFailed and type(settlement) in _OTHERWISE_DECIDED:
            error = outcome.error.type
        reporter.end(attempt, settlement, error)
        if isinstance(settlement, Retried | Failed):
            return await self._run_failure_hooks(attempt, settlement, handler)
        return settlement

    async def settle_after_error(
        self, attempt: Attempt, raised: BaseException
    ) -> Settlement | None:
        """Return the settlement after an error inside nimburion: `perform` itself raised.

        If the handler may have started, this counts as a failure of kind `internal`, so that a
        repeated error ends as a dead letter. Otherwise the job is released.
        """
        if is_closing(raised):
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
        error = self.end.describe(attempt, raised, kind)
        failed = AttemptFailed(error)
        return self.end.decide(attempt, handler, failed, delivery), error.type

    def _settle_success(
        self, attempt: Attempt, handler: Handler, result: object
    ) -> Completed | None:
        """Return the settlement of an attempt whose handler has returned; None if its lease is
        lost.
        """
        lease = attempt.delivery.lease
        encoded: bytes | None = None
        if result is not None:
            encoded = _encode_result(attempt, handler, result)
        elif not attempt.completed:
            encoded = attempt.encode_result()
        if attempt.completed:  # by its own transaction: the backend answers `already`
            if encoded is not None and not attempt.has_result:
                _log.warning(
                    "job %s was completed by its own transaction: the return value of its handler "
                    "is not stored. Call ctx.set_result(...) inside the block",
                    lease.job_id,
                )
            return Completed(lease)
        return None if attempt.lease_is_lost else Completed(lease, encoded, attempt.keep_payload)

    def _prepare_member(self, attempt: Attempt, chain: HandlerChain) -> HandlerChain:
        """Prepare the attempt at a member of a flow, and return the chain for it."""
        options = attempt.delivery.options
        attempt.keeps_none = options.keeps_none
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
        return is_first_lease and self.end.read_backend_time() > delivery.due + expires

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

    async def _call_with_timeout(
        self, attempt: Attempt, context: Context, call: HandlerCoroutine, seconds: float
    ) -> object:
        """Return the handler's result. Raises `TimedOut` if `seconds` pass first."""
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                attempt.timeout = AttemptTimeout(limit, seconds, self._clock.monotonic)
                return await call(context)
        except TimeoutError as error:
            if limit.expired():
                attempt.cancel_requested = True
                raise TimedOut(seconds) from error
            raise


def _encode_result(attempt: Attempt, handler: Handler, result: object) -> bytes | None:
    """Return the bytes to store for what a handler returned.

    If it cannot be stored, log a warning and complete the job with the reason in its place.
    """
    try:
        return handler.encode_result(result)
    except UnstorableResult as error:
        job_id = attempt.delivery.lease.job_id
        _log.warning("the result of job %s is not stored: %s", job_id, error)
        return encode_result_error(str(error))


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
