"""Store jobs with the transaction of a caller's connection, in the way that the backend allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from nimburion.backends.caller_connections.commit_hooks import call_after_commit
from nimburion.backends.caller_connections.drivers import describe_connection
from nimburion.backends.caller_connections.registry import find_adapter
from nimburion.core.backend import BlockingProducing, Transactional
from nimburion.core.errors import NotSupported, UnusableConnection
from nimburion.core.job import Enqueued, NewJob, require_stored
from nimburion.core.transactions import CallerConnection

if TYPE_CHECKING:
    from nimburion.core.flows import NewFlow
    from nimburion.jobs.client.client import Client

CountStored = Callable[[Sequence[NewJob], list[Enqueued]], None]
"""Counts and announces stored jobs, on any thread."""


async def enqueue_in_transaction(
    client: Client,
    caller: CallerConnection,
    jobs: Sequence[NewJob],
    *,
    needs_outcome: bool,
    count_stored: CountStored,
    flows: Sequence[NewFlow] = (),
) -> list[Enqueued] | None:
    """Store jobs so that they exist if the caller's transaction commits, and not otherwise.

    - If the backend is in the same database, it stores them in the transaction. Its results are
      returned.
    - A backend in the memory of this process stores them after the commit of a session.
    - Otherwise the outbox stores them in the transaction.

    In the last two cases the backend decides later about ids and unique keys, so None is returned.
    `needs_outcome` and `flows` refuse them.

    Raises:
        NotSupported: the backend cannot join the transaction, and there is no outbox.
        UnusableConnection: no transaction is open, or the driver is unknown.
    """
    backend, outbox = client.backend, client.outbox
    refusal = None
    if backend.capabilities.supports_transactions:
        producing = cast("Transactional", backend.producing)
        if outbox is not None:
            refusal = await _check_database(producing, caller)
        if refusal is None:
            return await producing.enqueue_in(caller, jobs, flows)
    _check_can_be_later(client, caller, needs_outcome=needs_outcome, has_flows=bool(flows))
    find_adapter(caller)  # raises the error for a connection that is unknown or belongs elsewhere
    now = client.clock.now()
    jobs = [job.fix_due_time(now) for job in jobs]
    if not backend.capabilities.shared and backend.capabilities.blocking_enqueue:
        store = partial(_enqueue_now, client, jobs, count_stored)
        if await caller.run(lambda: call_after_commit(caller.connection, store)):
            return None
    if outbox is None:
        raise NotSupported(
            f"{backend.describe()} cannot be part of the transaction of "
            f"{describe_connection(caller.connection)}. Give the processor an outbox: "
            "Processor(…, outbox=Outbox(…)); or enqueue after the commit, without `connection`"
        )
    from nimburion.jobs.outbox.outbox import get_rows  # loaded already: there is an outbox

    try:
        await get_rows(outbox).store(caller, jobs, now)
    except Exception as error:
        if refusal is not None:
            error.add_note(f"the backend did not store the job in the transaction: {refusal}")
        raise
    return None


def _check_can_be_later(
    client: Client, caller: CallerConnection, *, needs_outcome: bool, has_flows: bool
) -> None:
    """Raise `NotSupported` if the call cannot be stored after the commit."""
    if has_flows:
        raise NotSupported(
            f"{client.backend.describe()} cannot store a flow in the transaction of "
            f"{describe_connection(caller.connection)}, and flows do not go through an outbox yet. "
            "Enqueue the flow after the commit, without `connection`; or enqueue a job in the "
            "transaction that enqueues the flow"
        )
    if needs_outcome:
        raise NotSupported(
            "enqueue_or_get() cannot say inside this transaction whether it creates the job, "
            "because the backend stores the job after the commit; use enqueue()"
        )


async def _check_database(
    producing: Transactional, caller: CallerConnection
) -> UnusableConnection | None:
    """Return None if the connection is to the database of the backend, else its error."""
    try:
        await producing.enqueue_in(caller, ())
    except UnusableConnection as error:
        return error
    return None


def _enqueue_now(client: Client, jobs: Sequence[NewJob], count_stored: CountStored) -> None:
    """Store jobs in the memory of this process, on any thread: the call never waits."""
    producing = cast("BlockingProducing", client.backend.producing)
    results = producing.enqueue_blocking(jobs, client.settings.enqueue_timeout)
    for job, result in zip(jobs, results, strict=True):
        require_stored(job, result)
    count_stored(jobs, results)
