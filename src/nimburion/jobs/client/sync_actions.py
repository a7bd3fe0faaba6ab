"""The actions of operators as blocking calls: `processor.sync.queues` and the like."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from nimburion.actions.bulk import BulkActions
from nimburion.actions.dead_letters import DeadLetters
from nimburion.actions.limits import LimitActions
from nimburion.actions.queues import QueueActions
from nimburion.actions.tenants import TenantActions
from nimburion.actions.workers import WorkerActions

if TYPE_CHECKING:
    from nimburion.jobs.client.client import Client
    from nimburion.jobs.client.sync import SyncClient

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class SyncActions:
    """Some actions of `client.actions` as blocking calls."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client

    def call(self, subject: str, action: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run an action of the client on its event loop."""

        def start(client: Client) -> Coroutine[Any, Any, Any]:
            method: Callable[..., Coroutine[Any, Any, Any]] = getattr(
                getattr(client.actions, subject), action
            )
            return method(*args, **kwargs)

        return self._client.call(start)


def _make_sync(
    subject: str, method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]]
) -> Callable[[Callable[[Any], None]], Callable[Concatenate[Any, P], R]]:
    """Return a decorator that replaces a method with the blocking form of `method`."""

    @wraps(method)  # so that help() shows the parameters and the text of the async method
    def call(actions: SyncActions, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = actions.call(subject, method.__name__, *args, **kwargs)
        return result

    return lambda _: call


class SyncQueues(SyncActions):
    """Pause and resume queues."""

    @_make_sync("queues", QueueActions.pause)
    def pause(self) -> None: ...
    @_make_sync("queues", QueueActions.resume)
    def resume(self) -> None: ...
    @_make_sync("queues", QueueActions.pause_all)
    def pause_all(self) -> None: ...
    @_make_sync("queues", QueueActions.resume_all)
    def resume_all(self) -> None: ...


class SyncLimits(SyncActions):
    """Change limits at run time, and reset them."""

    @_make_sync("limits", LimitActions.change)
    def change(self) -> None: ...
    @_make_sync("limits", LimitActions.reset)
    def reset(self) -> None: ...


class SyncDeadLetters(SyncActions):
    """Show, replay and purge failed jobs."""

    @_make_sync("dead", DeadLetters.show)
    def show(self) -> None: ...
    @_make_sync("dead", DeadLetters.replay)
    def replay(self) -> None: ...
    @_make_sync("dead", DeadLetters.replay_all)
    def replay_all(self) -> None: ...
    @_make_sync("dead", DeadLetters.purge)
    def purge(self) -> None: ...


class SyncTenants(SyncActions):
    """Set the weights of tenants."""

    @_make_sync("tenants", TenantActions.set_weight)
    def set_weight(self) -> None: ...


class SyncWorkers(SyncActions):
    """Send commands to workers."""

    @_make_sync("workers", WorkerActions.send)
    def send(self) -> None: ...


class SyncBulk(SyncActions):
    """Change all jobs that match a filter, step by step."""

    @_make_sync("bulk", BulkActions.preview)
    def preview(self) -> None: ...
    @_make_sync("bulk", BulkActions.start)
    def start(self) -> None: ...
    @_make_sync("bulk", BulkActions.cancel)
    def cancel(self) -> None: ...
