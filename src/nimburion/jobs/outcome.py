"""What became of an attempt, as a closed union, and how whatever a handler raised becomes one.

Exceptions stop here: below this module only values travel.
"""

from __future__ import annotations

import traceback
from typing import NamedTuple

from nimburion.core.errors import Cancel, PermanentError, Retry, Snooze
from nimburion.core.job import AttemptError, Kind
from nimburion.jobs.codec import UnreadablePayload


class Succeeded(NamedTuple):
    """The handler returned; `result` is JSON or None."""

    result: bytes | None


class Raised(NamedTuple):
    """The attempt failed. `after`: seconds until the next, where the handler said so."""

    error: AttemptError
    after: float | None = None


class Snoozed(NamedTuple):
    """The handler asked to come back later."""

    delay: float


class Withdrawn(NamedTuple):
    """The job is to end as cancelled."""

    reason: str


class Interrupted(NamedTuple):
    """The worker stopped before the handler had ended."""


Outcome = Succeeded | Raised | Snoozed | Withdrawn | Interrupted

MOST_WORDS = 1024
"""Bytes of a reason to cancel, and of a message about progress."""

NO_RESULT = Succeeded(None)
INTERRUPTED = Interrupted()


def of_exception(
    raised: BaseException, attempt: int, permanent: tuple[type[BaseException], ...], limit: int
) -> Outcome:
    """The outcome of an attempt that raised; error texts are cut to `limit` bytes."""
    match raised:
        case Snooze():
            return Snoozed(raised.for_)
        case Cancel():
            return Withdrawn(clean(_message(raised.reason), MOST_WORDS))
        case Retry():
            return Raised(describe(raised, attempt, "failure", limit), raised.after)
        case UnreadablePayload():
            return Raised(describe(raised, attempt, "unreadable", limit))
    if isinstance(raised, (PermanentError, *permanent)):
        return Raised(describe(raised, attempt, "permanent", limit))
    return Raised(describe(raised, attempt, "failure", limit))


def of_timeout(seconds: float, attempt: int) -> Raised:
    """The outcome of an attempt that had not ended after its `timeout`."""
    message = f"not done after {seconds:g} s"
    return Raised(AttemptError(attempt=attempt, kind="timeout", type="Timeout", message=message))


def describe(raised: BaseException, attempt: int, kind: Kind, limit: int) -> AttemptError:
    """The exception as text that any store can hold, cut in the middle to `limit` bytes."""
    return AttemptError(
        attempt=attempt,
        kind=kind,
        type=clean(type(raised).__qualname__, 512),
        message=clean(_message(raised), limit // 4),
        traceback=clean(_traceback(raised), limit - limit // 4),
    )


def clean(text: str, limit: int) -> str:
    """`text` without NUL and lone surrogates, cut in the middle to at most `limit` bytes."""
    raw = text.replace("\0", "\\0").encode("utf-8", "backslashreplace")
    if len(raw) <= limit:
        return raw.decode()
    mark = b"\n[...]\n"
    keep = max(0, limit - len(mark)) // 2
    return (raw[:keep] + mark + raw[-keep:]).decode("utf-8", "ignore")


def _message(raised: object) -> str:
    try:
        return str(raised)
    except Exception as error:  # noqa: BLE001 - a broken exception is still a failure
        return f"<its str() raised {type(error).__name__}>"


def _traceback(raised: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(raised, limit=-50))
    except Exception as error:  # noqa: BLE001 - likewise
        return f"<its traceback could not be formatted: {type(error).__name__}>"
