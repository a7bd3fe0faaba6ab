"""The actions of operators as blocking calls: `processor.sync.queues` and the like."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from nimburion.actions.audit_log import AuditLog
from nimburion.actions.bulk import BulkActions
from nimburion.actions.dead_letters import DeadLetters
from nimburion.actions.flows import FlowActions
from nimburion.actions.limits import LimitActions
from nimburion.actions.queues import QueueActions
from nimburion.actions.tenants import TenantActions
from nimburion.actions.workers import WorkerActions
from nimburion.jobs.flows.growing import Flows

if TYPE_CHECKING:
    from nimburion.jobs.client.client import Client
    from nimburion.jobs.client.sync import SyncClient

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

_PAGE_SIZE = 100
"""The number of values that an iterator reads in one call."""


class SyncActions:
    """Actions on one subject of a client, as blocking calls."""

    def __init__(self, client: SyncClient, subject: str) -> None:
        self._client = client
        self._subject = subject

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._client!r}>"

    def call(
        self,
        method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run an action on the event loop of the client, and block until it returns."""

        def start(client: Client) -> Coroutine[Any, Any, R]:
            return method(getattr(client, self._subject), *args, **kwargs)

        start.__name__ = f"{self._subject}.{method.__name__}"  # an error names it
        return self._client.call(start)

    def iterate(
        self,
        method: Callable[Concatenate[T, P], AsyncIterator[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Iterator[R]:
        """Yield what an async iterator of the client yields; block for each page."""
        found: AsyncIterator[R] | None = None

        async def read(subject: T) -> list[R]:
            nonlocal found
            if found is None:
                found = method(subject, *args, **kwargs)
            page: list[R] = []
            async for value in found:
                page.append(value)
                if len(page) == _PAGE_SIZE:
                    break
            return page

        read.__name__ = method.__name__
        while page := self.call(read):
            yield from page


def make_sync(
    method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]],
) -> Callable[[Callable[[Any], None]], Callable[Concatenate[Any, P], R]]:
    """Return a decorator that replaces a method with the blocking form of `method`."""

    @wraps(method)  # so that help() shows the parameters and the text of the async method
    def call(actions: SyncActions, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return actions.call(method, *args, **kwargs)

    return lambda _: call


def make_sync_list(
    method: Callable[Concatenate[T, P], AsyncIterator[R]],
) -> Callable[[Callable[[Any], None]], Callable[Concatenate[Any, P], Iterator[R]]]:
    """Return a decorator that replaces a `list` with the blocking iterator over the same values."""

    @wraps(method)
    def iterate(actions: SyncActions, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return actions.iterate(method, *args, **kwargs)

    return lambda _: iterate


class SyncQueues(SyncActions):
    """List, pause and resume queues."""

    @make_sync_list(QueueActions.list)
    def list(self) -> None: ...
    @make_sync(QueueActions.pause)
    def pause(self) -> None: ...
    @make_sync(QueueActions.resume)
    def resume(self) -> None: ...
    @make_sync(QueueActions.pause_all)
    def pause_all(self) -> None: ...
    @make_sync(QueueActions.resume_all)
    def resume_all(self) -> None: ...


class SyncLimits(SyncActions):
    """List limits, change them at run time, and reset them."""

    @make_sync_list(LimitActions.list)
    def list(self) -> None: ...
    @make_sync(LimitActions.change)
    def change(self) -> None: ...
    @make_sync(LimitActions.reset)
    def reset(self) -> None: ...


class SyncDeadLetters(SyncActions):
    """List, show, replay and purge failed jobs."""

    @make_sync_list(DeadLetters.list)
    def list(self) -> None: ...
    @make_sync(DeadLetters.show)
    def show(self) -> None: ...
    @make_sync(DeadLetters.replay)
    def replay(self) -> None: ...
    @make_sync(DeadLetters.replay_all)
    def replay_all(self) -> None: ...
    @make_sync(DeadLetters.replay_edited)
    def replay_edited(self) -> None: ...
    @make_sync(DeadLetters.purge)
    def purge(self) -> None: ...
    @make_sync(DeadLetters.purge_all)
    def purge_all(self) -> None: ...


class SyncTenants(SyncActions):
    """Set the weights of tenants."""

    @make_sync(TenantActions.set_weight)
    def set_weight(self) -> None: ...


class SyncWorkers(SyncActions):
    """List workers, and send commands to them."""

    @make_sync_list(WorkerActions.list)
    def list(self) -> None: ...
    @make_sync(WorkerActions.quiet)
    def quiet(self) -> None: ...
    @make_sync(WorkerActions.resume)
    def resume(self) -> None: ...
    @make_sync(WorkerActions.stop)
    def stop(self) -> None: ...


class SyncAuditLog(SyncActions):
    """Read the audit log."""

    @make_sync_list(AuditLog.list)
    def list(self) -> None: ...


class SyncFlows(SyncActions):
    """Add members to flows; list, show, wait for, close, cancel and replay flows."""

    @make_sync(Flows.add)
    def add(self) -> None: ...
    @make_sync(FlowActions.close)
    def close(self) -> None: ...
    @make_sync_list(FlowActions.list)
    def list(self) -> None: ...
    @make_sync(FlowActions.get)
    def get(self) -> None: ...
    @make_sync(FlowActions.wait)
    def wait(self) -> None: ...
    @make_sync(FlowActions.cancel)
    def cancel(self) -> None: ...
    @make_sync(FlowActions.preview_replay)
    def preview_replay(self) -> None: ...
    @make_sync(FlowActions.replay)
    def replay(self) -> None: ...


class SyncBulk(SyncActions):
    """Change all jobs that match a filter, step by step."""

    @make_sync_list(BulkActions.list)
    def list(self) -> None: ...
    @make_sync(BulkActions.get)
    def get(self) -> None: ...
    @make_sync(BulkActions.preview)
    def preview(self) -> None: ...
    @make_sync(BulkActions.start)
    def start(self) -> None: ...
    @make_sync(BulkActions.cancel)
    def cancel(self) -> None: ...
