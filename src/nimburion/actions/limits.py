"""Change limits at run time: check the names and the texts, then store the change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Iterable, Mapping

from nimburion.actions.operator import SubjectActions
from nimburion.core.backend import Backend
from nimburion.core.errors import DefinitionError, InvalidJob, LimitNotFound
from nimburion.core.limits import (
    LimitChange,
    LimitInfo,
    LimitRule,
    get_limited_job,
    get_limited_queue,
    make_job_limit_name,
    make_queue_limit_name,
)
from nimburion.core.rate_limits import parse_rate
from nimburion.core.text.suggestions import find_nearest

_MAX_REASON = 500
"""The most characters of a reason."""


class LimitActions(SubjectActions):
    """List limits, and change them at run time: `processor.limits`."""

    async def list(self) -> AsyncIterator[LimitInfo]:
        """Iterate over the limits that workers declare or operators changed. Use it with
        `async for`."""
        for limit in await self._backend.reads.list_limits():
            yield limit

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
        await processor.limits.change("job:send_mail", rate="10/min", reason="the provider is slow")
        await processor.limits.change("sync:customer", 5, key="acme", reason="paid for more")
        ```

        `name` is `job:NAME`, `queue:NAME` or a shared limit; `key` changes only one key of it. The
        change wins over what workers declare, even after they restart. The next exchange of each
        worker follows it. With `concurrency=0` no more jobs start. Running jobs continue.

        Errors:

        - `InvalidJob`: a value is wrong, nothing is changed, or the limit has no keys.
        - `LimitNotFound`: the backend knows no such limit, job or queue.
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
                known = await self._backend.reads.list_limits(name=name, fullest=0, holders=0)
                changes = known[0].changes if known else []
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
    limits = {
        limit.name: limit.rules for limit in await backend.reads.list_limits(fullest=0, holders=0)
    }
    job, queue = get_limited_job(change.name), get_limited_queue(change.name)
    if queue is not None:
        known = await _list_queues(backend)
        known |= {get_limited_queue(limit) or "" for limit in limits} - {""}
        if change.key is not None:
            raise InvalidJob(f"the limit of the queue {queue!r} has no keys; leave out the key")
        if queue not in known:
            raise LimitNotFound(change.name, _explain_name("queue", queue, known))
    elif job is not None:
        known = await _list_jobs(backend)
        known.update(*limits.values())
        if job not in known:
            raise LimitNotFound(change.name, _explain_name("job", job, known))
        if change.key is not None:
            raise InvalidJob(_explain_key(job, limits))
    elif change.name not in limits:
        raise LimitNotFound(change.name, await _explain_limit(backend, change.name, limits))


async def _explain_limit(
    backend: Backend, name: str, limits: Mapping[str, Mapping[str, LimitRule]]
) -> str:
    """Say that the backend knows no limit of a name, and which one may be meant."""
    jobs, queues = await _list_jobs(backend), await _list_queues(backend)
    jobs.update(*limits.values())
    for what, known, full_name in (
        ("job", jobs, make_job_limit_name(name)),
        ("queue", queues, make_queue_limit_name(name)),
    ):
        if name in known:
            return f"{name!r} is a {what}, not a limit; did you mean {full_name!r}?"
    known = {*limits, *map(make_job_limit_name, jobs), *map(make_queue_limit_name, queues)}
    return _explain_name("limit", name, known)


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


async def _list_jobs(backend: Backend) -> set[str]:
    """Return the names of jobs that wait, or are served by a worker."""
    names: set[str] = set()
    names.update(*(queue.names for queue in await backend.reads.list_queues(budget=None)))
    names.update(*(session.names for session in await backend.reads.list_sessions()))
    return names


async def _list_queues(backend: Backend) -> set[str]:
    """Return the queues that have jobs, or are served by a worker."""
    names = {queue.name for queue in await backend.reads.list_queues(budget=None)}
    names.update(*(session.queues for session in await backend.reads.list_sessions()))
    return names


def _explain_key(job: str, limits: Mapping[str, Container[str]]) -> str:
    """Say what to do instead of changing a key of the limit of a job name."""
    own = make_job_limit_name(job)
    shared = sorted(name for name, jobs in limits.items() if job in jobs and name != own)
    if shared:
        return f"{own!r} has no keys; to change one key, name its limit: {', '.join(shared)}"
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
