"""Call a function after the commit of a caller's transaction, where the framework reports commits.

Sessions of SQLAlchemy and connections of Django do. Drivers do not, and neither do connections of
SQLAlchemy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from nimburion.backends.caller_connections.drivers import make_no_transaction_error
from nimburion.backends.caller_connections.registry import find_known_class

_log = logging.getLogger("nimburion.jobs")

_PENDING = "nimburion_pending"
"""The key of the functions to call after the commit, in `Session.info`."""


def call_after_commit(connection: object, work: Callable[[], None]) -> bool:
    """Call `work` when the transaction of this connection commits; after a rollback, do nothing.

    A rollback to a savepoint drops what was added inside it. An error of `work` is logged, because
    the commit cannot be undone. Returns False if the connection reports no commits.
    """
    if (find_known_class(connection) or "").startswith("django."):
        _call_after_commit_of_django(connection, work)
        return True
    session = _find_session(connection)
    if session is None:
        return False
    pending = session.info.get(_PENDING)
    if pending is None:
        pending = session.info[_PENDING] = []
        _listen(session, pending)
    transaction = (
        session.get_nested_transaction() or session.get_transaction() or session.begin()
    )  # without a transaction, a rollback would not be noticed
    pending.append(_PendingCall(work, transaction))
    return True


class _PendingCall(NamedTuple):
    work: Callable[[], None]
    transaction: Any
    """The transaction or savepoint in which it was added."""


def _call_after_commit_of_django(connection: Any, work: Callable[[], None]) -> None:  # noqa: ANN401
    if not connection.in_atomic_block and connection.get_autocommit():
        raise make_no_transaction_error("Django's connection", "use `with transaction.atomic():`")
    on_commit = import_module("django.db.transaction").on_commit
    on_commit(lambda: _call_and_log(work), using=connection.alias)


def _find_session(connection: Any) -> Any:  # noqa: ANN401 (SQLAlchemy's)
    """Return the `Session` behind any session of SQLAlchemy; None if it is not one."""
    match (find_known_class(connection) or "").rpartition(".")[2]:
        case "Session":
            return connection
        case "AsyncSession":
            return connection.sync_session
        case "scoped_session" | "async_scoped_session":
            return _find_session(connection.registry())
        case _:
            return None


def _listen(session: Any, pending: list[_PendingCall]) -> None:  # noqa: ANN401 (SQLAlchemy's)
    """Make the pending calls of a session after each commit; drop those that it rolls back."""

    def after_commit(_: object) -> None:
        if session.in_nested_transaction():  # a savepoint was released, nothing is committed yet
            return
        calls = pending.copy()
        pending.clear()
        for call in calls:
            _call_and_log(call.work)

    def after_soft_rollback(_: object, ended: object) -> None:
        pending[:] = [call for call in pending if not _is_within(call.transaction, ended)]

    def after_transaction_end(_: object, ended: Any) -> None:  # noqa: ANN401
        if ended.parent is None:  # `close()` ends a transaction without a rollback of its own
            after_soft_rollback(session, ended)

    listen = import_module("sqlalchemy.event").listen
    listen(session, "after_commit", after_commit)
    listen(session, "after_soft_rollback", after_soft_rollback)
    listen(session, "after_transaction_end", after_transaction_end)


def _is_within(inner: Any, outer: object) -> bool:  # noqa: ANN401
    """Return whether a rollback of `outer` also rolls back what was done in `inner`."""
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is outer


def _call_and_log(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # noqa: BLE001 - the commit cannot be undone
        _log.exception("a job could not be enqueued after the commit, and is lost")
