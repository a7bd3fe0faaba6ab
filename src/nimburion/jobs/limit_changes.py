"""Change limits at run time: check the names and the texts, then store the change."""

from __future__ import annotations

from nimburion.core.backend import Backend
from nimburion.core.errors import DefinitionError, InvalidJob, LimitNotFound
from nimburion.core.limit_changes import LimitChange
from nimburion.core.rates import parse_rate
from nimburion.core.text.suggestions import find_nearest

MAX_REASON = 500
"""The most characters of a reason."""


def make_change(  # noqa: PLR0917 - the options of a change
    name: str,
    key: str | None,
    concurrency: int | None,
    rate: str | None,
    burst: int | None,
    by: str,
    reason: str,
) -> LimitChange:
    """Return a change from the texts that a person wrote.

    Raises:
        InvalidJob: a value is wrong, or nothing is changed.
    """
    try:
        limit = parse_rate(rate, burst)
    except DefinitionError as error:
        raise InvalidJob(str(error)) from None
    change = LimitChange(
        name=name,
        key=key,
        concurrency=concurrency,
        rate=limit,
        by=by,
        reason=reason[:MAX_REASON],
    )
    change.check()
    return change


def make_details(change: LimitChange) -> dict[str, str]:
    """Return what a change sets, for its audit record."""
    rate = change.rate
    details = {
        "key": change.key,
        "concurrency": change.concurrency,
        "rate": None if rate is None else rate.rate,
        "burst": None if rate is None else rate.burst,
        "reason": change.reason or None,
    }
    return {name: str(value) for name, value in details.items() if value is not None}


async def change_known_limit(backend: Backend, change: LimitChange) -> None:
    """Store a change, if its limit exists.

    Raises:
        InvalidJob: the change is for one key, and its limit has no keys.
        LimitNotFound: no limit and no job has this name.
    """
    keyed = {limit.name for limit in await backend.list_keyed_limits(fullest=0)}
    if change.key is None:
        known = keyed | await _list_job_names(backend)
        if change.name not in known:
            raise LimitNotFound(change.name, _suggest(change.name, known))
    elif change.name not in keyed:
        if change.name in await _list_job_names(backend):
            raise InvalidJob(f"the limits of the job {change.name!r} have no keys")
        raise LimitNotFound(change.name, _suggest(change.name, keyed))
    await backend.change_limit(change)


async def reset_known_limit(backend: Backend, name: str, key: str | None) -> None:
    """Let what workers declare apply again.

    Raises:
        LimitNotFound: the limit was not changed at run time.
    """
    if not await backend.reset_limit(name, key):
        what = "it" if key is None else f"its key {key!r}"
        raise LimitNotFound(name, f"or {what} was not changed; `nimburion limits` lists changes")


async def _list_job_names(backend: Backend) -> set[str]:
    """Return the names of jobs that have limits, wait, or are served by a worker."""
    names = {limit.name for limit in await backend.list_limits()}
    names |= {rate.name for rate in await backend.list_rates()}
    names.update(*(queue.names for queue in await backend.list_queues()))
    names.update(*(session.names for session in await backend.list_sessions()))
    return names


def _suggest(name: str, known: set[str]) -> str:
    near = find_nearest(name, known)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"known: {', '.join(sorted(known)[:20]) or 'none; start a worker first'}"
