"""Run the function of a step, try it again if it fails, and store its value."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from nimburion.core.errors import (
    BackendError,
    BackendUnavailable,
    DefinitionError,
    InvalidStep,
    JobSignal,
    LeaseLost,
    PermanentError,
    Retry,
    StepFailed,
)
from nimburion.core.settlement import Recorded
from nimburion.core.timing.durations import Duration, require_seconds
from nimburion.core.transactions import Transaction
from nimburion.jobs.durable.branches import Wait
from nimburion.jobs.durable.handler import get_policy
from nimburion.jobs.durable.journal import (
    RetryEntry,
    StepEntry,
    StoredEntry,
    StoredError,
    UndoEntry,
    encode_entry,
)
from nimburion.jobs.durable.phase import WORKING
from nimburion.jobs.durable.run import CallSite, DurableRun
from nimburion.jobs.durable.stored_errors import decode_error, encode_error, format_message
from nimburion.jobs.durable.values import (
    StepFunction,
    compute_arguments_digest,
    decode_value,
    encode_value,
    read_step_function,
)
from nimburion.jobs.options.backoff import (
    Backoff,
    BackoffFunction,
    Delays,
    compute_delay,
    parse_delays,
)
from nimburion.jobs.payloads.codec import UnreadablePayload

if TYPE_CHECKING:
    from nimburion.jobs.worker.attempt.attempt import Attempt

_log = logging.getLogger("nimburion.worker")


class StepOptions(Struct, frozen=True, gc=False):
    """The options of an operation: what `ctx.options(…)` was given."""

    key: str | None = None
    max_retries: int | None = None
    """How often a step that fails is tried again; None: its error is raised at once."""
    backoff: BackoffFunction | None = None
    """The delays between the tries; None: as the policy of the job says."""
    backoff_max: float | None = None
    timeout: float | None = None


NO_OPTIONS = StepOptions()


def make_step_options(
    key: str | None,
    max_retries: int | None,
    retry_backoff: Delays | Backoff | None,
    timeout: Duration | None,
) -> StepOptions:
    """Return the options of `ctx.options`. `InvalidStep` names one with a wrong value."""
    backoff = retry_backoff if isinstance(retry_backoff, Backoff) else Backoff(retry_backoff)
    if max_retries is not None and (isinstance(max_retries, bool) or max_retries < 0):
        raise InvalidStep(f"max_retries must be 0 or more, not {max_retries!r}")
    if backoff.retry_for is not None:
        raise InvalidStep("the retry_for of Backoff is for jobs; a step takes max_retries")
    try:
        return StepOptions(
            key,
            max_retries,
            None if backoff.delays is None else parse_delays(backoff.delays),
            None
            if backoff.max_delay is None
            else require_seconds("the max_delay of Backoff", backoff.max_delay, DefinitionError),
            None if timeout is None else require_seconds("timeout", timeout, DefinitionError),
        )
    except DefinitionError as error:
        raise InvalidStep(str(error)) from None


class StepCall(Struct, frozen=True):
    """The function of a step or an undo with its arguments."""

    key: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: StepOptions
    place: CallSite


async def run_step(run: DurableRun, call: StepCall) -> Any:  # noqa: ANN401 (the value of the step)
    """Return the value of a step: that of an earlier attempt, or that of its function, stored."""
    run.begin("step", call.key, call.place)
    digest = compute_arguments_digest(call.args, call.kwargs)
    journal = run.journal
    if journal.has_earlier:
        stored = journal.find_passed(StepEntry, call.key)
        if stored is not None:
            return _replay(run, call, stored, digest)
    # Here and below, a property or a coroutine of the run would cost each step a call.
    if run.state.phase is not WORKING or run.record.cancel_requested:  # as `run.may_begin`
        await run.require_may_begin()
    recorder, branches = run.recorder, run.branches
    retry = journal.find_passed(RetryEntry, call.key) if journal.has_earlier else None
    while True:
        failures = 0 if retry is None else await _wait_for_retry(run, retry)
        if recorder.raised or recorder.sent_cleanup is not None:
            await run.record_first()
        run.called.append(call.key)
        branches.begin_work()
        try:
            try:
                function = read_step_function(call.function)
                if function.is_async and call.options.timeout is None:
                    value = await call.function(*call.args, **call.kwargs)
                else:
                    value = await _call(run, call, function)
                encoded, value = encode_value(call.key, function, value)
                entry = StepEntry(call.key, encoded, None, digest)
                sent = recorder.send(entry, is_awaited=True)
            except Exception as error:
                retry = await _record_failure(run, call, error, failures + 1)
                if retry is None:
                    raise
                continue
            waiting = sent.wait()  # as `run.await_stored`
            if waiting is not None:
                branches.unstored += 1
                try:
                    await waiting
                finally:
                    branches.unstored -= 1
        finally:
            branches.end_work()
        run.time = sent.at or run.time
        return value


async def run_in_transaction(run: DurableRun, call: StepCall) -> Any:  # noqa: ANN401 (the value of the step)
    """Return the value of a step whose record is in the transaction of its function."""
    run.begin("step", call.key, call.place)
    digest = compute_arguments_digest(call.args, call.kwargs)
    stored = run.journal.find_passed(StepEntry, call.key)
    if stored is not None:
        return _replay(run, call, stored, digest)
    if call.options.timeout is not None and not read_step_function(call.function).is_async:
        raise InvalidStep(
            f"{call.place}: a timeout cannot end a `def` function in ctx.transact, because it "
            "blocks the event loop; write `async def`, or leave the timeout out"
        )
    await run.require_may_begin()
    return await _try(run, call, lambda: _call_in_transaction(run, call, digest))


async def run_undo(run: DurableRun, call: StepCall) -> None:
    """Call the function of an undo, unless it has returned in an earlier attempt."""
    if run.journal.find_passed(UndoEntry, call.key) is None:
        function = read_step_function(call.function)
        await _try(run, call, lambda: _call(run, call, function), is_undo=True)
        await run.record_entry(UndoEntry(call.key))


def _replay(run: DurableRun, call: StepCall, stored: StoredEntry, digest: str) -> Any:  # noqa: ANN401
    """Return the value of the journal, or raise its error."""
    entry = cast("StepEntry", stored.entry)
    if entry.arguments and digest and entry.arguments != digest:
        run.note_difference("step", call.key, call.place)
    run.note_passed(stored)
    run.journal.find_passed(RetryEntry, call.key)
    if entry.error is None:
        return decode_value(call.key, read_step_function(call.function), entry.value)
    error = make_error(call.key, entry.error)
    run.recorder.note_replayed(error, entry)
    raise error


def make_error(key: str, stored: StoredError) -> Exception:
    """Return the error of the journal, to be raised again."""
    return decode_error(stored) or StepFailed(key, stored.type, stored.message)


async def _try(
    run: DurableRun, call: StepCall, attempt: Callable[[], Awaitable[Any]], *, is_undo: bool = False
) -> Any:  # noqa: ANN401
    """Return what `attempt` returns. If it fails, try again as the options of the step say."""
    key = make_retry_key(call.key, is_undo=is_undo)
    stored = run.journal.find_passed(RetryEntry, key)
    while True:
        failures = 0 if stored is None else await _wait_for_retry(run, stored)
        await run.record_first()
        run.called.append(key)
        run.branches.begin_work()
        try:
            return await attempt()
        except Exception as error:
            stored = await _record_failure(run, call, error, failures + 1, is_undo=is_undo)
            if stored is None:
                raise
        finally:
            run.branches.end_work()


async def _record_failure(
    run: DurableRun, call: StepCall, error: Exception, failures: int, *, is_undo: bool = False
) -> StoredEntry | None:
    """Store that a step has failed, so that it is tried again; None: its error is raised."""
    if isinstance(error, LeaseLost):
        run.record.lease_lost = error
        return None
    delay = _decide_retry(run, call, error, failures)
    if delay is None:
        _note_failure(run, call, error, is_undo=is_undo)
        return None
    key = make_retry_key(call.key, is_undo=is_undo)
    text = f"{type(error).__name__}: {format_message(error)}"
    _log.warning(
        "job %s (%s): step %r failed (%s); trying again in %.1f s",
        run.job_id,
        run.record.delivery.name,
        key,
        text.partition("\n")[0],
        delay,
    )
    return await run.record_entry(RetryEntry(key, failures, delay, text))


def make_retry_key(key: str, *, is_undo: bool) -> str:
    """Return the key of the entry that counts the failures of a step or an undo."""
    return f"undo {key}" if is_undo else key


def _note_failure(run: DurableRun, call: StepCall, error: Exception, *, is_undo: bool) -> None:
    """Note the error of a step, which the handler may catch.

    If a later attempt could not raise it again, raise `StepFailed` in this one too.
    """
    if is_undo or isinstance(error, JobSignal):
        return
    stored = encode_error(error)
    digest = compute_arguments_digest(call.args, call.kwargs)
    if stored is not None:
        run.recorder.note_raised(error, StepEntry(call.key, error=stored, arguments=digest))
        return
    text = format_message(error)
    failed = StepFailed(call.key, type(error).__qualname__, text)
    stored = StoredError(type(error).__qualname__, "", text)
    run.recorder.note_raised(failed, StepEntry(call.key, error=stored, arguments=digest))
    raise failed from error


def _decide_retry(run: DurableRun, call: StepCall, error: Exception, failures: int) -> float | None:
    """Return the seconds until the step is tried again; None: its error is raised."""
    options = call.options
    if options.max_retries is None or failures > options.max_retries:
        return None
    if isinstance(error, PermanentError | UnreadablePayload) or (
        isinstance(error, JobSignal) and not isinstance(error, Retry)
    ):
        return None
    if isinstance(error, Retry) and error.after is not None:
        return error.after
    policy = get_policy(run.record)
    if options.backoff is None:
        backoff, longest = policy.backoff, options.backoff_max or policy.backoff_max
    else:
        backoff, longest = options.backoff, options.backoff_max
    return compute_delay(backoff, longest, failures, run.services.random)


async def _wait_for_retry(run: DurableRun, stored: StoredEntry) -> int:
    """Wait until the next try of a step is due, and return how often it has failed."""
    entry = cast("RetryEntry", stored.entry)
    if not run.is_over(stored, entry.delay):
        await run.branches.wait(Wait((), stored, entry.delay, is_sleep=True))
    return entry.tries


def _call(run: DurableRun, call: StepCall, function: StepFunction) -> Awaitable[Any]:
    """Call the function where it belongs, and return what gives its value."""
    if not function.is_async:
        return _limit_time(call, _call_in_thread(run, call))
    return _limit_time(call, call.function(*call.args, **call.kwargs))


def _limit_time(call: StepCall, started: Awaitable[Any]) -> Awaitable[Any]:
    """Return what gives the value of a call. It raises `TimeoutError` if the call takes longer than
    the timeout of the step.
    """
    return started if call.options.timeout is None else _await_in_time(call, started)


async def _await_in_time(call: StepCall, started: Awaitable[Any]) -> Any:  # noqa: ANN401
    limit = asyncio.timeout(call.options.timeout)
    try:
        async with limit:
            return await started
    except TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError(
            f"step {call.key!r} did not end within {call.options.timeout:g} s"
        ) from None


async def _call_in_thread(run: DurableRun, call: StepCall) -> Any:  # noqa: ANN401
    started = run.services.start_call(lambda: call.function(*call.args, **call.kwargs))
    attempt = cast("Attempt", run.record)
    attempt.add_step_call(started)
    try:
        value = await started.future
    finally:
        attempt.forget_ended_calls()
    return await value if inspect.isawaitable(value) else value


async def _call_in_transaction(run: DurableRun, call: StepCall, digest: str) -> Any:  # noqa: ANN401
    """Call the function with the connection of a transaction, which stores the step too."""
    make = run.worker.make_transaction
    assert make is not None
    transaction = make(None)
    connection = await transaction.begin()
    try:
        value = call.function(connection, *call.args, **call.kwargs)
        if inspect.isawaitable(value):
            value = await _limit_time(call, value)
        encoded, decoded = encode_value(call.key, read_step_function(call.function), value)
        run.recorder.check_size(len(bytes(encoded)))
        entry = StepEntry(call.key, encoded, None, digest)
        recorded = Recorded(
            run.record.delivery.lease, run.recorder.take_number(entry), encode_entry(entry)
        )
        await transaction.settle(run.record.session_id, recorded)
    except BaseException:
        await transaction.rollback()
        raise
    await _commit(run, call, transaction)
    run.recorder.size += len(recorded.body)
    stored = StoredEntry(entry, run.services.now())
    run.journal.add(stored)
    run.note_passed(stored)
    return decoded


async def _commit(run: DurableRun, call: StepCall, transaction: Transaction) -> None:
    """Commit a step with its rows.

    If the backend does not answer, both may be stored. So the attempt ends, and the next one reads
    whether they are.
    """
    try:
        await transaction.commit()
    except BaseException as error:
        is_unknown = isinstance(error, BackendUnavailable) and error.outcome != "not applied"
        if not is_unknown:
            await transaction.rollback()
            raise
        with suppress(BackendError):
            await transaction.rollback()
        await run.stop_without_answer(
            f"it is unknown whether step {call.key!r} is committed: {error}"
        )
