"""Change limits at run time: check the names and the texts, then store the change."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

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
    keyed = {limit.name: limit.jobs for limit in await backend.list_keyed_limits(fullest=0)}
    if change.name in keyed:
        await backend.change_limit(change)
        return
    names = await _list_job_names(backend)
    if change.key is not None:
        if change.name in names:
            raise InvalidJob(_explain_key(change.name, keyed))
        raise LimitNotFound(change.name, _explain_name("limit by key", change.name, keyed))
    if change.name not in names:
        known = names | keyed.keys()
        raise LimitNotFound(change.name, _explain_name("limit and no job", change.name, known))
    await backend.change_limit(change)


async def reset_known_limit(backend: Backend, name: str, key: str | None) -> None:
    """Let what workers declare apply again.

    Raises:
        LimitNotFound: the limit was not changed at run time.
    """
    if await backend.reset_limit(name, key):
        return
    what = f"the limit {name!r}" if key is None else f"the key {key!r} of the limit {name!r}"
    changes = await backend.list_limit_changes()
    changed = [one.key for one in changes if one.name == name and one.key != key]
    if not changed:
        advice = "`nimburion limits` lists the changes"
    elif None in changed:
        advice = "reset the limit without a key"
    else:
        advice = f"reset with the key {changed[0]!r}"
    raise LimitNotFound(name, f"{what} was not changed at run time; {advice}")


async def _list_job_names(backend: Backend) -> set[str]:
    """Return the names of jobs that have limits, wait, or are served by a worker."""
    names = {limit.name for limit in await backend.list_limits()}
    names |= {rate.name for rate in await backend.list_rates()}
    names.update(*(queue.names for queue in await backend.list_queues()))
    names.update(*(session.names for session in await backend.list_sessions()))
    return names


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
