"""The options of `enqueue`, validated once per call."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict
from uuid import UUID

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.job import NO_JOB_OPTIONS, JobOptions
from nimburion.core.size_limits import SizeLimits, check_name, check_text
from nimburion.core.text.shortening import shorten
from nimburion.core.timing.durations import Duration, require_positive_seconds, require_seconds
from nimburion.jobs.options.uniqueness import (
    KeyRule,
    Unique,
    Uniqueness,
    get_given_values,
    read_key_rule,
)


class EnqueueManyOptions(TypedDict, total=False):
    """The options of `enqueue_many`; they apply to each of its jobs."""

    queue: str | None
    """The queue, in place of the queue in the job's declaration."""
    priority: int | None
    """0 to 9, higher first; `Priority` has names for some."""
    at: datetime | None
    """The time when the job becomes due; it must have a time zone."""
    after: Duration | None
    """The delay, in seconds from now by the backend's clock, after which the job becomes due."""
    unique_key: str | None
    """At most one unfinished job of the same name holds this key. As `tenant` and
    `correlation_id`: any text of 1 to 512 characters without control characters."""
    unique: Unique | None
    """How long the job holds its unique key, and what the call does if another job holds it. The
    key is `unique_key`, or the one that the job declares."""
    headers: Mapping[str, str] | None
    """Texts that travel with the job."""
    tenant: str | None
    """The customer of the job. The jobs of different tenants in a queue take turns."""
    correlation_id: str | None
    """Links the job to the request or job that caused it."""
    max_retries: int | None
    """How many retries follow a first failure."""
    timeout: Duration | None
    """The time that one attempt may take."""
    expires: Duration | None
    """The time after the job is due until which it must have started. Later, it is cancelled."""
    tags: Sequence[str] | None
    """Names by which people find the job, in addition to those that the job declares."""
    connection: object
    """Store with the open transaction of this connection: in the backend's own database if it
    is there, otherwise through the outbox."""


class EnqueueOptions(EnqueueManyOptions, total=False):
    """The options of `enqueue`."""

    id: str | UUID | None
    """The caller's own id. A second enqueue with the same id stores no second job."""


class ParsedOptions(msgspec.Struct, frozen=True):
    """The validated options of one call. None: as the job's declaration says."""

    queue: str | None = None
    priority: int | None = None
    at: float | None = None
    after: float = 0.0
    options: JobOptions = NO_JOB_OPTIONS
    connection: object = None
    key_rule: KeyRule | None = None
    """What the call says about the unique key that the job declares. None: nothing, or the call
    has its own key: then `options` and `after` follow its rule already."""
    only_on_duplicate: bool = False
    """Whether `key_rule` says nothing but `on_duplicate`: the rest is as declared."""


NOTHING_PARSED = ParsedOptions()

_RECORD_OPTIONS = frozenset(
    {"unique_key", "headers", "tenant", "correlation_id", "max_retries", "timeout", "expires",
     "tags"}
)  # fmt: skip
MAX_TAGS = 20
"""The most tags of a declaration, and of a call."""
_UNIQUENESS = ("unique_for", "unique_while", "on_duplicate", "max_wait")
"""The fields of a record that follow the unique key."""


def read_job_id(job_id: object) -> str:
    """Return a job id as text; `InvalidJob` says what is wrong with it. A UUID is allowed."""
    return check_name("job id", str(job_id) if isinstance(job_id, UUID) else job_id)


def read_job_ids(job_ids: Iterable[str | UUID]) -> list[str]:
    """Return several job ids as texts; `InvalidJob` says what is wrong with one, or with all."""
    if isinstance(job_ids, Coroutine):
        read_job_id(job_ids)  # raises the error about a missing `await`
    if isinstance(job_ids, str) or not isinstance(job_ids, Iterable):
        shown = shorten(repr(job_ids), 80)
        raise InvalidJob(
            f"pass a list of job ids, not {shown}; for one job, call `wait` or `get_status`"
        )
    return [read_job_id(job_id) for job_id in job_ids]


def parse_options(
    sizes: SizeLimits,
    /,
    *,
    queue: str | None = None,
    priority: int | None = None,
    at: datetime | None = None,
    after: Duration | None = None,
    unique: Unique | None = None,
    connection: object = None,
    **options: Any,
) -> ParsedOptions:
    """Return the validated options; `InvalidJob` names an option that is wrong or unknown."""
    if not options.keys() <= _RECORD_OPTIONS:
        raise InvalidJob(_describe_unknown_option(options))
    if at is not None and after is not None:
        raise InvalidJob("pass `at` or `after`, not both")
    rule = None if unique is None else _parse_rule(unique)
    parsed = ParsedOptions(
        queue=None if queue is None else check_name("queue", queue),
        priority=None if priority is None else _parse_priority(priority),
        at=None if at is None else _parse_time(at),
        after=0.0 if after is None else require_seconds("after", after, InvalidJob),
        options=_parse_job_options(sizes, **options) if options else NO_JOB_OPTIONS,
        connection=connection,
        key_rule=rule,
        only_on_duplicate=unique is not None
        and get_given_values(unique).keys() <= {"on_duplicate"},
    )
    if rule is None or parsed.options.unique_key is None:
        return parsed
    job_options, delay = apply_key_rule(rule, parsed, parsed.options.unique_key)
    return msgspec.structs.replace(parsed, options=job_options, after=delay, key_rule=None)


def check_option_names(options: Mapping[str, object]) -> None:
    """Raise `InvalidJob` for the first option that `enqueue` does not have."""
    known = EnqueueOptions.__annotations__
    if not options.keys() <= known.keys():
        unknown = {name: value for name, value in options.items() if name not in known}
        raise InvalidJob(_describe_unknown_option(unknown))


def set_options(before: ParsedOptions, options: Mapping[str, Any]) -> ParsedOptions:
    """Return parsed options with those that are given, each checked as `enqueue` checks it.

    The size of the headers is not checked. A queue, a priority or a time of None changes nothing;
    another option of None is unset. Tags are added. A `unique` that says nothing but `on_duplicate`
    changes only that of a key that the job has already. Raises `InvalidJob`.
    """
    given = dict(options)
    unique: Any = given.get("unique")
    is_same_key = unique is not None and given.get("unique_key") is None
    if is_same_key:
        given["unique_key"] = before.options.unique_key
    parsed = parse_options(SizeLimits(headers=sys.maxsize), **given)
    if parsed.key_rule is not None:
        raise InvalidJob("unique needs a unique_key")
    names = {*_RECORD_OPTIONS.intersection(given)}
    if is_same_key and parsed.only_on_duplicate:
        names.remove("unique_key")
        if unique is not None and unique.on_duplicate is not None:
            names.add("on_duplicate")
    elif "unique_key" in names:
        names.update(_UNIQUENESS)
    changes = {name: getattr(parsed.options, name) for name in names}
    if given.get("tags") is not None:
        changes["tags"] = add_tags(parsed.options, before.options.tags).tags
    is_due_given = parsed.at is not None or parsed.after or given.get("after") is not None
    return ParsedOptions(
        queue=parsed.queue or before.queue,
        priority=before.priority if parsed.priority is None else parsed.priority,
        at=parsed.at if is_due_given else before.at,
        after=parsed.after if is_due_given else before.after,
        options=msgspec.structs.replace(before.options, **changes),
    )


def apply_uniqueness(
    parsed: ParsedOptions,
    declared: Uniqueness | None = None,
    payload: bytes = b"",
    job: object = None,
) -> tuple[JobOptions, float]:
    """Return the options of a job and its delay, with the unique key that the job declares.

    A key that the call passed takes precedence, and so does what the call says about the declared
    key. Raises `InvalidJob` if the call says something about a key, but there is none, or if its
    `on_duplicate` contradicts a declared `debounce` or `throttle`.
    """
    if parsed.options.unique_key is not None:
        return parsed.options, parsed.after
    rule = parsed.key_rule
    if declared is None:
        if rule is not None:
            raise InvalidJob("unique needs a unique_key, or `unique` in the declaration of the job")
        return parsed.options, parsed.after
    if rule is None:
        rule = declared.rule
    elif parsed.only_on_duplicate:
        rule = declared.rule.change_on_duplicate(rule.on_duplicate)
    return apply_key_rule(rule, parsed, declared.make_key(payload, job))


def apply_key_rule(rule: KeyRule, parsed: ParsedOptions, key: str) -> tuple[JobOptions, float]:
    """Return the options of a job that has the key, and its delay."""
    if rule.debounce is not None and (parsed.at is not None or parsed.after):
        raise InvalidJob("debounce sets the due time; leave out `at` and `after`")
    delay = parsed.after if rule.debounce is None else rule.debounce
    return rule.apply(parsed.options, key), delay


def _describe_unknown_option(options: Mapping[str, object]) -> str | None:
    from nimburion.jobs.options.policy import POLICY_OPTIONS
    from nimburion.jobs.options.unknown_options import describe_unknown_call_option

    return describe_unknown_call_option(options, EnqueueManyOptions.__annotations__, POLICY_OPTIONS)


def _parse_rule(unique: object) -> KeyRule | None:
    if not isinstance(unique, Unique):
        raise InvalidJob(
            f"unique must be a Unique, like Unique(on_duplicate='existing'), not {unique!r}"
        )
    if unique.fields is not None or unique.key is not None:
        raise InvalidJob(
            "in a call, the key is the option unique_key; Unique takes fields or a key only in the "
            "declaration of a job"
        )
    return read_key_rule(unique, InvalidJob)


def _parse_job_options(
    sizes: SizeLimits,
    *,
    unique_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    tenant: str | None = None,
    correlation_id: str | None = None,
    max_retries: int | None = None,
    timeout: Duration | None = None,
    expires: Duration | None = None,
    tags: Sequence[str] | None = None,
) -> JobOptions:
    return JobOptions(
        headers=_parse_headers(headers, sizes) if headers else {},
        tenant=None if tenant is None else check_text("tenant", tenant),
        correlation_id=(
            None if correlation_id is None else check_text("correlation_id", correlation_id)
        ),
        unique_key=None if unique_key is None else check_text("unique_key", unique_key),
        max_retries=None if max_retries is None else _parse_count("max_retries", max_retries),
        timeout=None
        if timeout is None
        else require_positive_seconds("timeout", timeout, InvalidJob),
        expires=None
        if expires is None
        else require_positive_seconds("expires", expires, InvalidJob),
        tags=parse_tags(tags) if tags else (),
    )


def check_texts(options: JobOptions) -> None:
    """Check the unique key, the tenant and the correlation id of a job. Raises `InvalidJob`."""
    for name in ("unique_key", "tenant", "correlation_id"):
        value = getattr(options, name)
        if value is not None:
            check_text(name, value)


def _parse_time(at: object) -> float:
    if not isinstance(at, datetime):
        raise InvalidJob(f"at must be a datetime with a time zone, not {at!r}; or pass `after`")
    if at.utcoffset() is None:
        raise InvalidJob(
            f"at must have a time zone, {at!r} has none: "
            "datetime(…, tzinfo=timezone.utc), or .astimezone() for the local one"
        )
    return at.timestamp()


def _parse_priority(priority: object) -> int:
    number = _parse_count("priority", priority)
    if number > 9:
        raise InvalidJob(f"priority must be from 0 to 9 (higher first), not {number}")
    return number


def _parse_count(what: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return int(value)
    raise InvalidJob(f"{what} must be a whole number, 0 or more, not {value!r}")


def parse_tags(tags: object) -> tuple[str, ...]:
    """Return tags without duplicates; `InvalidJob` says what is wrong with them."""
    if not isinstance(tags, list | tuple | set | frozenset):
        raise InvalidJob(f"tags must be a list of names, like ['media', 'eu'], not {tags!r}")
    found = dict.fromkeys(sorted(tags, key=str) if isinstance(tags, set | frozenset) else tags)
    if len(found) > MAX_TAGS:
        raise InvalidJob(f"{len(found)} tags, over the limit of {MAX_TAGS}")
    return tuple(check_name("a tag", tag) for tag in found)


def add_tags(options: JobOptions, first: tuple[str, ...]) -> JobOptions:
    """Return the options of a job with other tags, such as those of its name, before its own."""
    tags = tuple(dict.fromkeys((*first, *options.tags)))
    return msgspec.structs.replace(options, tags=tags)


def _parse_headers(headers: Mapping[str, str], sizes: SizeLimits) -> dict[str, str]:
    try:
        checked = msgspec.convert(dict(headers), dict[str, str])
    except (TypeError, ValueError) as error:
        raise InvalidJob(f"headers must be a dict of str to str in UTF-8: {error}") from error
    check_headers(checked, sizes)
    return checked


def check_headers(headers: Mapping[str, str], sizes: SizeLimits) -> None:
    """Check that headers are texts and not too large. Raises `InvalidJob`."""
    try:
        size = sum(len(part.encode()) for pair in headers.items() for part in pair)
    except (AttributeError, ValueError) as error:
        raise InvalidJob(f"headers must be a dict of str to str in UTF-8: {error}") from error
    if size > sizes.headers:
        raise InvalidJob(f"headers are {size} bytes, over the limit of {sizes.headers}")
