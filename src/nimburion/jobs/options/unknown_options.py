"""Messages about options that do not exist: of a job, and of a call of `enqueue`.

They know the options of other job systems (Celery, RQ, Dramatiq, Huey, arq, TaskIQ, Oban, Sidekiq),
and our own that became parts of other options. Imported only for a wrong option.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType

from nimburion.core.text.shortening import shorten
from nimburion.core.text.suggestions import describe_unknown

_UNIQUE: Mapping[str, str] = MappingProxyType(
    {
        "unique_for": "write `unique=Unique(for_={})`",
        "unique_while": "write `unique=Unique(while_={})`",
        "on_duplicate": "write `unique=Unique(on_duplicate={})`",
        "debounce": "write `unique=Unique(debounce={})`",
        "max_wait": "write `unique=Unique(debounce=…, max_wait={})`",
        "throttle": "write `unique=Unique(throttle={})`",
    }
)
_FIRST_PARAMETER = "name the first parameter `ctx: Context`"
_ALWAYS_LATE = "leave it out: a job is acknowledged when it has ended"
_JITTER = "leave it out: up to 20 % are always added"
_RESULT_TIME = "it is the setting `keep_results`"
_TRIES = "write `max_retries=…`, which is one less"
_TIME_LIMIT = "write `timeout=…`, in seconds or like '5m'"
_JSON = "leave it out: arguments are JSON"

ADVICE_FOR_JOBS: Mapping[str, str] = MappingProxyType(
    {
        **_UNIQUE,
        "retry_backoff_max": "write `retry_backoff=Backoff(max_delay={})`",
        "burst": 'write `limits=[Limit(rate="100/min", burst={})]`',
        "cost": 'write `limits=[Limit(rate="100/min", cost={})]`',
        "key": 'write `limits=[Limit(rate="100/min", key={})]`',
        "memory_limit": "write `execution=ChildProcess(memory={})`",
        "retry_over_memory_limit": "write `execution=ChildProcess(retry_over_memory={})`",
        "batch_wait": "write `batch=Batch(100, wait={})`",
        # Celery
        "acks_late": _ALWAYS_LATE,
        "autoretry_for": "write `retry_on=…`",
        "base": "write a base class of `Job` with these options, or repeat the options",
        "bind": _FIRST_PARAMETER,
        "countdown": "it belongs to a call, `.options(after=…)`",
        "default_retry_delay": "write `retry_backoff=…`",
        "dont_autoretry_for": "write `permanent=…`",
        "eta": "it belongs to a call, `.options(at=…)`",
        "ignore_result": "write `result=False`",
        "rate_limit": 'write `rate="100/min"`',
        "reject_on_worker_lost": "it is the setting `max_lost`",
        "retry_jitter": _JITTER,
        "retry_kwargs": "write `max_retries=…`",
        "serializer": _JSON,
        "soft_time_limit": _TIME_LIMIT,
        "task_id": "it belongs to a call, `.options(id=…)`",
        "time_limit": _TIME_LIMIT,
        "throws": "write `permanent=…`",
        "track_started": "leave it out: each job is tracked",
        # RQ
        "at_front": "write `priority=9`",
        "failure_ttl": "it is the setting `keep_failed`",
        "job_timeout": "write `timeout=…`",
        "meta": "pass `headers=…` when you enqueue the job",
        "on_success": "enqueue the next job at the end of the handler",
        "result_ttl": _RESULT_TIME,
        "retry": "write `max_retries=…`",
        "ttl": "write `expires=…`",
        # Dramatiq
        "actor_name": "write `name=…`",
        "jitter": _JITTER,
        "max_age": "write `expires=…`, in seconds or like '1h'",
        "max_backoff": "write `retry_backoff=Backoff(max_delay=…)`, in seconds or like '1h'",
        "min_backoff": "write `retry_backoff=…`, in seconds or like '15s'",
        "queue_name": "write `queue=…`",
        "retry_when": "write `retry_on=…`",
        "store_results": "write `result=…`",
        # Huey
        "context": _FIRST_PARAMETER,
        "delay": "it belongs to a call, `.options(after=…)`; between retries, `retry_backoff=…`",
        "retries": "write `max_retries=…`",
        "retry_delay": "write `retry_backoff=…`",
        # arq
        "keep_result": _RESULT_TIME,
        "max_tries": _TRIES,
        # TaskIQ
        "retry_on_error": "write `max_retries=…`",
        "schedule": "declare it with `scheduler.schedule(cron, job)`",
        "task_name": "write `name=…`",
        # Oban
        "max_attempts": _TRIES,
        # Sidekiq
        "lock": "write `unique=True`",
        "retry_for": "write `retry_backoff=Backoff(retry_for={})`",
        "retry_in": "write `retry_backoff=…`, which takes a function too",
    }
)
"""What to do in place of an option of a job. `{}` stands for its value."""

ADVICE_FOR_CALLS: Mapping[str, str] = MappingProxyType(
    {
        **_UNIQUE,
        # Celery
        "args": "pass the arguments to the job: `enqueue(job(…))`",
        "countdown": "write `after=…`",
        "eta": "write `at=…`",
        "kwargs": "pass the arguments to the job: `enqueue(job(…))`",
        "link": "enqueue the next job at the end of the handler",
        "link_error": "declare `on_dead=…` on the job",
        "routing_key": "write `queue=…`",
        "serializer": _JSON,
        "soft_time_limit": _TIME_LIMIT,
        "task_id": "write `id=…`",
        "time_limit": _TIME_LIMIT,
        # RQ
        "at_front": "write `priority=9`",
        "job_id": "write `id=…`",
        "job_timeout": "write `timeout=…`",
        "meta": "write `headers=…`",
        "result_ttl": _RESULT_TIME,
        "retry": "leave it out: an enqueue is tried again by itself; for the job, `max_retries=…`",
        "ttl": "write `expires=…`",
        # Dramatiq, Huey
        "delay": "write `after=…`",
        "queue_name": "write `queue=…`",
        "retries": "write `max_retries=…`",
        # arq
        "_defer_by": "write `after=…`",
        "_defer_until": "write `at=…`",
        "_expires": "write `expires=…`",
        "_job_id": "write `id=…`",
        "_queue_name": "write `queue=…`",
        # Oban
        "max_attempts": _TRIES,
        "schedule_in": "write `after=…`",
        "scheduled_at": "write `at=…`",
    }
)
"""What to do in place of an option of `enqueue`."""


def describe_unknown_job_option(
    options: Mapping[str, object], known: Collection[str], call_options: Collection[str]
) -> str | None:
    """Return a message about the first option of a job that does not exist; None if all do."""
    elsewhere = "it is an option of a call: `.options({}=…).enqueue(…)`"
    return _describe(options, known, ADVICE_FOR_JOBS, dict.fromkeys(call_options, elsewhere))


def describe_unknown_call_option(
    options: Mapping[str, object], known: Collection[str], job_options: Collection[str]
) -> str | None:
    """Return a message about the first option of a call that does not exist; None if all do."""
    elsewhere = "it is an option of the job: `@job({}=…)`"
    return _describe(options, known, ADVICE_FOR_CALLS, dict.fromkeys(job_options, elsewhere))


def find_call_option(name: str, known: Collection[str]) -> str | None:
    """Return the option of a call that has this name, or that other job systems call so.

    >>> find_call_option("countdown", ["after", "at"])
    'after'
    """
    if name in known:
        return name
    advised = re.match(r"write `(\w+)=…`", ADVICE_FOR_CALLS.get(name, ""))
    return None if advised is None or advised[1] not in known else advised[1]


def _describe(
    options: Mapping[str, object],
    known: Collection[str],
    advice: Mapping[str, str],
    elsewhere: Mapping[str, str],
) -> str | None:
    for name, value in options.items():
        if name in known:
            continue
        if name in advice:
            return f"there is no option {name!r}; {advice[name].format(shorten(repr(value), 40))}"
        if name in elsewhere:
            return f"there is no option {name!r} here; {elsewhere[name].format(name)}"
        return describe_unknown("option", [name], known)
    return None
