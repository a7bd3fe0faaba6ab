"""Change limits at run time: check the names and the texts, then store the change."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from nimburion.actions.operator import Operator
from nimburion.core.backend import Backend
from nimburion.core.errors import DefinitionError, InvalidJob, LimitNotFound
from nimburion.core.keyed_limits import get_limited_queue
from nimburion.core.limit_changes import LimitChange
from nimburion.core.rates import parse_rate
from nimburion.core.text.suggestions import find_nearest

_MAX_REASON = 500
"""The most characters of a reason."""


class LimitActions:
    """Change limits at run time: `processor.limits`."""

    def __init__(self, backend: Backend, operator: Operator) -> None:
        self._backend = backend
        self._operator = operator

    async def change(
        self,
        name: str,
        concurrency: int | None = None,
        *,
        rate: str | None = None,
        burst: int | None = None,
        key: str | None = None,
        reason: str = "",
    ) -> LimitChange:
        """Change a limit, or one key of it, until `reset`.

        ```python
        await processor.limits.change("send_mail", rate="10/min", reason="the provider is slow")
        await processor.limits.change("sync:customer", 5, key="acme", reason="paid for more")
        ```

        `name` is a job, a limit by key, or `queue=QUEUE`; `key` changes only one key of it. The
        change wins over what workers declare, also after they restart. The next exchange of each
        worker follows it. With `concurrency=0` no more jobs start. Running jobs continue.

        Errors:

        - `InvalidJob`: a value is wrong, nothing is changed, or the limit has no keys.
        - `LimitNotFound`: no limit and no job has this name.
        """
        async with self._operator.record(
            self._backend,
            "limit.change",
            name,
            key=key,
            concurrency=concurrency,
            rate=rate,
            burst=burst,
            reason=reason,
        ):
            change = self._make_change(name, key, concurrency, rate, burst, reason)
            await _check_limit(self._backend, change)
            await self._backend.maintenance.change_limit(change)
        return change

    async def reset(self, name: str, *, key: str | None = None, reason: str = "") -> None:
        """Let what workers declare for a limit, or for one key of it, apply again.

        Without `key`, the changes of single keys stay. `LimitNotFound` is raised if the limit, or
        this key of it, was not changed.
        """
        async with self._operator.record(
            self._backend, "limit.reset", name, key=key, reason=reason
        ):
            if not await self._backend.maintenance.reset_limit(name, key):
                changes = await self._backend.reads.list_limit_changes()
                raise LimitNotFound(name, _explain_reset(name, key, changes))

    def _make_change(  # noqa: PLR0917 - the options of a change
        self,
        name: str,
        key: str | None,
        concurrency: int | None,
        rate: str | None,
        burst: int | None,
        reason: str,
    ) -> LimitChange:
        if rate is None and burst is not None:
            raise InvalidJob("a burst needs a rate, like 100/min")
        try:
            limit = parse_rate(rate, burst)
        except DefinitionError as error:
            raise InvalidJob(str(error)) from None
        change = LimitChange(
            name=name,
            key=key,
            concurrency=concurrency,
            rate=limit,
            by=self._operator.name,
            reason=reason[:_MAX_REASON],
        )
        change.check()
        return change


async def _check_limit(backend: Backend, change: LimitChange) -> None:
    """Raise `LimitNotFound` or `InvalidJob` unless the limit exists and can be changed so."""
    keyed = {limit.name: limit.jobs for limit in await backend.reads.list_keyed_limits(fullest=0)}
    queue = get_limited_queue(change.name)
    if queue is not None:
        await _check_queue(backend, queue, change, keyed)
        return
    names = await _list_job_names(backend)
    if change.name in keyed:
        if change.name in names - keyed[change.name].keys() - await _list_changed_names(backend):
            raise InvalidJob(_explain_shared_name(change.name, keyed[change.name]))
        return
    if change.key is not None:
        if change.name in names:
            raise InvalidJob(_explain_key(change.name, keyed))
        raise LimitNotFound(change.name, _explain_name("limit by key", change.name, keyed))
    if change.name not in names:
        known = names | keyed.keys()
        raise LimitNotFound(change.name, _explain_name("limit and no job", change.name, known))


def _explain_reset(name: str, key: str | None, changes: Iterable[LimitChange]) -> str:
    """Say that a limit was not changed, and which changes can be reset instead."""
    what = f"the limit {name!r}" if key is None else f"the key {key!r} of the limit {name!r}"
    changed = [one.key for one in changes if one.name == name and one.key != key]
    if not changed:
        advice = "`nimburion limits` lists the changes"
    elif None in changed:
        advice = "reset the limit without a key"
    else:
        advice = f"reset with the key {changed[0]!r}"
    return f"{what} was not changed at run time; {advice}"


async def _check_queue(
    backend: Backend, queue: str, change: LimitChange, keyed: Iterable[str]
) -> None:
    """Raise an error unless the queue exists and the change is for all of it."""
    if change.key is not None:
        raise InvalidJob(f"the limit of the queue {queue!r} has no keys; leave out the key")
    known = {one.name for one in await backend.reads.list_queues()}
    known.update(*(session.queues for session in await backend.reads.list_sessions()))
    known |= {get_limited_queue(limit) or "" for limit in keyed} - {""}
    if queue not in known:
        raise LimitNotFound(change.name, _explain_name("queue", queue, known))


def _explain_shared_name(name: str, jobs: Iterable[str]) -> str:
    """Say that a name is that of a job and of a limit, and what to do."""
    return (
        f"{name!r} is a job, and also a limit by key (of {', '.join(sorted(jobs))}); a change "
        "would apply to both. Give the Limit another `name` in the code, and deploy it"
    )


async def _list_job_names(backend: Backend) -> set[str]:
    """Return the names of jobs that have limits, wait, or are served by a worker."""
    names = {limit.name for limit in await backend.reads.list_limits()}
    names |= {rate.name for rate in await backend.reads.list_rates()}
    return names | await _list_live_names(backend)


async def _list_live_names(backend: Backend) -> set[str]:
    """Return the names of jobs that wait, or are served by a worker."""
    names: set[str] = set()
    names.update(*(queue.names for queue in await backend.reads.list_queues()))
    names.update(*(session.names for session in await backend.reads.list_sessions()))
    return names


async def _list_changed_names(backend: Backend) -> set[str]:
    """Return the names that have a limit only because it was changed at run time.

    The backend keeps such a change as a limit of a job name, even if the name is a limit by key.
    """
    changes = await backend.reads.list_limit_changes()
    changed = {change.name for change in changes if change.key is None}
    return changed - await _list_live_names(backend)


def _explain_key(job: str, keyed: Mapping[str, Container[str]]) -> str:
    """Say what to do instead of changing a key of a job that is no limit by key."""
    own = sorted(name for name, jobs in keyed.items() if job in jobs)
    if own:
        return f"{job!r} is a job; to change one key, name its limit by key: {', '.join(own)}"
    return f"the limits of the job {job!r} have no keys; leave out the key"


def _explain_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that the backend knows no such name, and which ones it knows."""
    names = sorted(known)
    near = find_nearest(name, names)
    if near is not None:
        advice = f"did you mean {near!r}?"
    elif names:
        advice = f"known: {', '.join(names[:20])}"
    else:
        advice = "start a worker that declares it first"
    return f"this backend knows no {kind} {name!r}; {advice}"
