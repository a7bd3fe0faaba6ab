"""The outcome of an attempt whose handler raised, as a closed union; exceptions mapped to it.

Exceptions are handled in this module. Code that uses an outcome sees only values.
"""

from __future__ import annotations

import math
import os
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from nimburion.core.errors import Cancel, PermanentError, RateLimitExceeded, Retry, Snooze
from nimburion.core.job import AttemptError, ErrorKind
from nimburion.core.text.fingerprints import compute_fingerprint
from nimburion.core.text.shortening import MAX_MESSAGE_BYTES, clean_text
from nimburion.core.timing.durations import to_seconds
from nimburion.jobs.payloads.codec import UnreadablePayload

if TYPE_CHECKING:
    from nimburion.jobs.options.policy import Policy


class AttemptFailed(NamedTuple):
    """The attempt failed. `after`: seconds until the next attempt, if the handler set them."""

    error: AttemptError
    after: float | None = None


class Snoozed(NamedTuple):
    """The handler snoozed the job for `delay` seconds."""

    delay: float


class OverRateLimit(NamedTuple):
    """A service refused the attempt, and asks for a pause of `retry_after` seconds."""

    retry_after: float


class CancelRequested(NamedTuple):
    """The job ends as cancelled."""

    reason: str


class Interrupted(NamedTuple):
    """The worker or the durable run has ended the handler before it returned."""


Outcome = AttemptFailed | Snoozed | OverRateLimit | CancelRequested | Interrupted

CANCELLED_ON_REQUEST = "cancelled on request"
"""The reason of a job that is cancelled because somebody requested it."""
INTERRUPTED = Interrupted()


class HandlerNotCalled(Exception):
    """The attempt has ended before the handler was called, and is repeated later. It counts
    nothing. The text says why."""


def classify_exception(raised: BaseException, attempt: int, policy: Policy, limit: int) -> Outcome:
    """Return the outcome of an attempt that raised. Error texts are cut to `limit` bytes.

    Never raises, whatever the exception's class does: only inheritance decides about its type, and
    each attribute is read with a guard.
    """
    kind = type(raised)
    if issubclass(kind, Snooze | RateLimitExceeded):
        return _classify_snooze(raised, attempt, limit)
    if issubclass(kind, Cancel):
        return CancelRequested(clean_text(_read_reason(raised), MAX_MESSAGE_BYTES))
    if issubclass(kind, Retry):
        return AttemptFailed(
            describe_exception(raised, attempt, "failure", limit), _read_seconds(raised, "after")
        )
    if issubclass(kind, UnreadablePayload):
        return AttemptFailed(describe_exception(raised, attempt, "unreadable", limit))
    if _is_permanent(raised, policy):
        return AttemptFailed(describe_exception(raised, attempt, "permanent", limit))
    return AttemptFailed(describe_exception(raised, attempt, "failure", limit))


def classify_group(
    raised: BaseExceptionGroup[BaseException], attempt: int, policy: Policy, limit: int
) -> Outcome | None:
    """Return the outcome of an attempt that raised a group of errors which no retry helps.

    None: there are other errors in it.
    """
    kinds = {_find_final_kind(error, policy) for error in _list_members(raised)}
    if None in kinds:
        return None
    kind: ErrorKind = "unreadable" if kinds == {"unreadable"} else "permanent"
    return AttemptFailed(describe_exception(raised, attempt, kind, limit))


def _find_final_kind(raised: BaseException, policy: Policy) -> ErrorKind | None:
    if issubclass(type(raised), UnreadablePayload):
        return "unreadable"
    return "permanent" if _is_permanent(raised, policy) else None


def _list_members(raised: BaseException) -> list[BaseException]:
    """Return the errors in a group, also in the groups inside it."""
    if not issubclass(type(raised), BaseExceptionGroup):
        return [raised]
    group = cast("BaseExceptionGroup[BaseException]", raised)
    return [error for member in group.exceptions for error in _list_members(member)]


def _classify_snooze(raised: BaseException, attempt: int, limit: int) -> Outcome:
    """Return the outcome of a Snooze or a RateLimitExceeded, whose duration is in `attribute`.

    Without a valid duration it is a failure, because a default would repeat it for ever.
    """
    is_snooze = issubclass(type(raised), Snooze)
    attribute = "after" if is_snooze else "retry_after"
    delay = _read_seconds(raised, attribute)
    if delay is not None:
        return Snoozed(delay) if is_snooze else OverRateLimit(delay)
    error = describe_exception(raised, attempt, "failure", limit)
    message = f"{error.message} (no valid `{attribute}`: a subclass calls super().__init__)"
    return AttemptFailed(msgspec.structs.replace(error, message=clean_text(message, limit // 4)))


def _read_reason(raised: BaseException) -> str:
    try:
        reason = raised.reason  # type: ignore[attr-defined]
    except BaseException:  # noqa: BLE001 - a subclass that does not call super().__init__
        reason = raised
    return _format_message(reason)


def _read_seconds(raised: BaseException, attribute: str) -> float | None:
    """Return the duration in `attribute` in seconds; None if it is missing or not a number."""
    try:
        value: Any = getattr(raised, attribute)
        seconds = None if value is None else to_seconds(value)
        return seconds if seconds is not None and math.isfinite(seconds) else None
    except BaseException:  # noqa: BLE001 - the attribute is missing, or a property raises
        return None


def _is_permanent(raised: BaseException, policy: Policy) -> bool:
    if issubclass(type(raised), PermanentError):
        return True
    try:
        return policy.is_permanent(raised)
    except BaseException:  # noqa: BLE001 - a metaclass or a `__class__` that raises
        return False


def make_timeout_failure(seconds: float, attempt: int) -> AttemptFailed:
    """Return the outcome of an attempt that did not end within its `timeout`."""
    message = f"did not end within {round(seconds, 3):g} s"
    return AttemptFailed(
        AttemptError(
            attempt=attempt,
            kind="timeout",
            type="Timeout",
            message=message,
            fingerprint=compute_fingerprint("timeout", "Timeout", "", message),
        )
    )


def describe_child_death(
    how: str, output: str, attempt: int, limit: int, *, memory_limit: int | None = None
) -> AttemptError:
    """Return the error of an attempt whose child process ended, at most `limit` bytes.

    `memory_limit`: the limit, in bytes, that the process exceeded and was killed for. Such an error
    is permanent.
    """
    kind: ErrorKind = "failure"
    if memory_limit is not None:
        kind, error_type = "permanent", "MemoryLimitExceeded"
        message = (
            f"its child process used more than its limit of {memory_limit:,} bytes and was killed; "
            "the job is not retried unless it has ChildProcess(…, retry_over_memory=True)"
        )
    else:
        error_type = "ChildProcessDied"
        message = f"its child process {how} while the handler ran"
        if "SIGKILL" in how:
            message += (
                "; if no person killed it, the memory of the host ran out: set "
                "ChildProcess(memory=…), or give it more memory"
            )
    return AttemptError(
        attempt=attempt,
        kind=kind,
        type=error_type,
        message=message,
        traceback=clean_text(output and f"Its last output:\n{output}", limit - limit // 4),
        fingerprint=compute_fingerprint(kind, error_type, "", message),
    )


def describe_exception(
    raised: BaseException, attempt: int, kind: ErrorKind, limit: int
) -> AttemptError:
    """Describe an exception as text that any backend can store, at most `limit` bytes.

    Longer texts are cut in the middle. Never raises.
    """
    error_type = clean_text(_get_type_name(raised), 512)
    message = clean_text(_format_message(raised), limit // 4)
    return AttemptError(
        attempt=attempt,
        kind=kind,
        type=error_type,
        message=message,
        traceback=clean_text(_format_traceback(raised), limit - limit // 4),
        fingerprint=compute_fingerprint(kind, error_type, _find_place(raised), message),
        module=clean_text(_get_module_name(raised), 512),
    )


_QUALNAME = vars(type)["__qualname__"]
"""The descriptor that reads a class name without the attributes of its metaclass."""


def _get_type_name(raised: BaseException) -> str:
    return str.__str__(_QUALNAME.__get__(type(raised)))


_MODULE = vars(type)["__module__"]
"""The descriptor that reads the module of a class without the attributes of its metaclass."""


def _get_module_name(raised: BaseException) -> str:
    """Return the module of the exception's class; empty for built-in exceptions."""
    try:
        module = _MODULE.__get__(type(raised))
    except AttributeError:  # the class has deleted its own
        return ""
    return str.__str__(module) if isinstance(module, str) and module != "builtins" else ""


def _format_message(raised: object) -> str:
    try:
        return str.__str__(str(raised))  # converts an instance of a subclass to a plain str
    except BaseException as error:  # noqa: BLE001 - a broken exception is still a failure
        return f"<its str() raised {_get_type_name(error)}>"


def _format_traceback(raised: BaseException) -> str:
    """Format a traceback of at most `_MOST_FRAMES` frames an exception, without those of the
    engine."""
    try:
        formatted = traceback.TracebackException(
            type(raised), raised, _TRACEBACK.__get__(raised), limit=-2 * _MOST_FRAMES, compact=True
        )
        _hide_engine_frames(formatted)
        return "".join(formatted.format())
    except BaseException as error:  # noqa: BLE001 - a broken exception is still a failure
        return f"<its traceback could not be formatted: {_get_type_name(error)}>"


_MOST_FRAMES = 50
_PACKAGE = Path(__file__).parents[3]
_ENGINE_FILES = (f"{_PACKAGE / 'jobs'}{os.sep}", f"{_PACKAGE / 'integrations'}{os.sep}")
"""Starts of the file names of the code that calls handlers."""


def _hide_engine_frames(formatted: traceback.TracebackException) -> None:
    """Remove the frames of nimburion that led to the application's code, in the whole chain.

    Frames of nimburion stay where the application called it and it raised, and where there are no
    others.
    """
    waiting = [formatted]
    while waiting:
        each = waiting.pop()
        linked = (each.__cause__, each.__context__, *(each.exceptions or ()))
        waiting += (other for other in linked if other is not None)
        frames = list(each.stack)
        last = max((n for n, frame in enumerate(frames) if not _is_engine(frame)), default=-1)
        kept = [frame for n, frame in enumerate(frames) if n > last or not _is_engine(frame)]
        each.stack[:] = kept[-_MOST_FRAMES:]


def _is_engine(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_ENGINE_FILES)


def find_own_traceback(raised: BaseException) -> TracebackType | None:
    """Return the traceback from the first frame of the application's code on; all of it if there
    is no such frame."""
    whole: TracebackType | None = _TRACEBACK.__get__(raised)
    each = whole
    while each is not None:
        if not each.tb_frame.f_code.co_filename.startswith(_ENGINE_FILES):
            return each
        each = each.tb_next
    return whole


_TRACEBACK = vars(BaseException)["__traceback__"]
"""The descriptor that reads a traceback without the attributes of the exception's class."""

_FOREIGN_FILES = (os.path.dirname(os.__file__), str(_PACKAGE), "<")  # noqa: PTH120
"""Starts of the file names of Python, of nimburion and of generated code."""


def _find_place(raised: BaseException) -> str:
    """Return module and function of the innermost frame in the application's code.

    Without such a frame, of the innermost frame; empty without a traceback.
    """
    place = own_place = ""
    frame: TracebackType | None = _TRACEBACK.__get__(raised)
    while frame is not None:
        code = frame.tb_frame.f_code
        module = frame.tb_frame.f_globals.get("__name__")
        place = f"{module}.{code.co_qualname}" if type(module) is str else code.co_qualname
        if not (code.co_filename.startswith(_FOREIGN_FILES) or "site-packages" in code.co_filename):
            own_place = place
        frame = frame.tb_next
    return own_place or place
