"""End a run that failed for good or is cancelled: cancel its child jobs, and undo what it did."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from nimburion.core.errors import BackendError, InvalidStep
from nimburion.core.settlement import Cancelled, Failed, Released, Settlement, Suspended
from nimburion.jobs.durable.children import cancel_children
from nimburion.jobs.durable.handler import get_policy
from nimburion.jobs.durable.journal import EndingEntry, ForgottenEntry, UndoneEntry
from nimburion.jobs.durable.phase import RunCleanup, RunSuspension
from nimburion.jobs.durable.run import DurableRun
from nimburion.jobs.durable.steps import StepCall, make_retry_key, run_undo
from nimburion.jobs.durable.stored_errors import format_message

_RETRY_DELAY = 5.0
"""Seconds until the next attempt if the backend does not answer."""


class UndoFailed(Exception):
    """The function of an undo has failed for good. The error is `__cause__`."""


def register_undo(run: DurableRun, call: StepCall) -> None:
    """Call a function when the run is undone."""
    run.begin("undo", call.key, call.place)
    if call.options.max_retries is None:
        max_retries = get_policy(run.record).max_retries or 0
        call = replace(call, options=replace(call.options, max_retries=max_retries))
    run.undos.append(call)
    run.recorder.require_cleanup()


async def end_run(
    run: DurableRun, settlement: Settlement, raised: BaseException | None = None
) -> Settlement:
    """Return the settlement of a run whose handler has ended, after what must be done before.

    `raised` is the error of the handler. `UndoFailed` is raised if an undo fails for good, or if
    the handler does not come to an undo that an earlier attempt has registered.
    """
    known = run.journal.ending
    if known is not None:
        settlement = _decide_again(run, known, settlement, raised)
    if not isinstance(settlement, Failed | Cancelled):
        return settlement
    run.state.begin_cleanup()
    try:
        return await _clean_up(run, settlement)
    except asyncio.CancelledError:
        ending = run.state.ending
        if isinstance(ending, RunSuspension):
            return Suspended(settlement.lease, ending.sources, ending.delay)
        if run.record.must_end:
            return Released(settlement.lease)
        raise
    except BackendError as error:
        run.record.no_answer = f"the run could not be ended: {error}"
        return Released(settlement.lease, _RETRY_DELAY)
    finally:
        run.close()


def _decide_again(
    run: DurableRun, known: EndingEntry, settlement: Settlement, raised: BaseException | None
) -> Settlement:
    """Return the settlement of a run whose end an earlier attempt has decided.

    The handler was called again to register what is undone. If it has not come to all of it, it
    may do so in a later attempt: its own settlement counts then.
    """
    lease = run.record.delivery.lease
    is_final = isinstance(settlement, Failed | Cancelled)
    if run.record.must_end:
        return Released(lease) if is_final else settlement
    registered = {call.key for call in run.undos}
    missing = [key for key in known.undos if key not in registered]
    if not missing:
        if known.error is None:
            return Cancelled(lease, known.reason)
        return Failed(lease, known.reason, known.error)
    if isinstance(settlement, Failed) and settlement.error.kind == "unreadable":
        return settlement
    if is_final or isinstance(run.state.ending, RunCleanup):
        text = "the handler did not come to it again"
        if raised is not None:
            text += f" ({type(raised).__name__}: {format_message(raised)})"
        cause = InvalidStep(text)
        cause.__cause__ = raised
        raise UndoFailed(missing[0]) from cause
    return settlement


async def _clean_up(run: DurableRun, settlement: Failed | Cancelled) -> Settlement:
    """Cancel the child jobs of a run that is cancelled, and undo what the run did."""
    if isinstance(settlement, Cancelled):
        await cancel_children(run)
    is_unreadable = isinstance(settlement, Failed) and settlement.error.kind == "unreadable"
    if is_unreadable:
        return settlement  # the handler did not come to all that it has to undo
    if not run.undos:
        if run.journal.ending is not None:
            run.recorder.send(UndoneEntry())
        return settlement
    if run.journal.ending is None:
        error = settlement.error if isinstance(settlement, Failed) else None
        undos = tuple(call.key for call in run.undos)
        await run.record_entry(EndingEntry(error=error, reason=settlement.reason, undos=undos))
    for call in _list_undos(run):
        if run.record.must_end:
            return Released(settlement.lease)
        try:
            await run_undo(run, call)
        except BackendError:
            raise
        except Exception as error:
            # A replay tries it again.
            run.recorder.send(ForgottenEntry(make_retry_key(call.key, is_undo=True), "retry"))
            raise UndoFailed(call.key) from error
    run.recorder.send(UndoneEntry())
    return settlement


def _list_undos(run: DurableRun) -> list[StepCall]:
    """Return what is undone, the latest first, in the same order in each attempt."""
    ending = run.journal.ending
    assert ending is not None
    places = {key: place for place, key in enumerate(ending.undos)}
    ordered = sorted(run.undos, key=lambda call: places.get(call.key, len(places)))
    return ordered[::-1]
