"""The status of one job, as applications see it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, overload

import msgspec

from nimburion.core.job import AttemptError, JobRecord, Progress, State
from nimburion.core.result_errors import decode_result_error
from nimburion.jobs.payloads.json_values import enc_hook

_EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
_LATEST = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One job at the time when it was read.

    Times are datetimes in UTC, by the backend's clock.
    """

    id: str
    """The id of the job."""
    name: str
    """The name of the job."""
    queue: str
    """Its queue."""
    state: State
    """Its state."""
    priority: int
    """0 to 9; higher runs first."""
    attempt: int
    """The number of the current attempt or, before it starts, of the next one. After the job has
    finished, the number of its last attempt."""
    failures: int
    """The number of attempts that failed or timed out."""
    lost: int
    """The number of attempts that lost their worker."""
    due: datetime
    """When the job becomes due, or became due."""
    created_at: datetime
    """When the job was enqueued."""
    started_at: datetime | None
    """When the latest attempt began."""
    finished_at: datetime | None
    """When the job ended; None before."""
    reason: str | None
    """Why the job failed or was cancelled."""
    history: list[AttemptError]
    """Every attempt that failed, timed out or lost its worker, oldest first."""
    progress: Progress | None
    """What the handler reported last; None if it reported nothing."""
    result: Any
    """What the handler returned, while the backend keeps it.

    The value has the handler's declared return type if the handler is registered here. Otherwise it
    consists of plain JSON values.
    """
    result_error: str | None
    """Why the result could not be stored, for example because it was too large; else None."""
    cancel_requested: bool
    """Whether the worker was told to end the running job."""
    headers: dict[str, str]
    """The headers that the job was enqueued with."""
    tenant: str | None
    """The customer of the job."""
    correlation_id: str | None
    """The id that links the job to the request or job that caused it."""
    tags: tuple[str, ...]
    """Words by which the job is found and grouped."""
    unique_key: str | None
    """The unique key that the job has."""
    unique_mode: str | None
    """What its enqueue did on a duplicate, and how long it holds the unique key."""
    payload: bytes | None
    """The payload bytes; None when the backend no longer keeps them."""

    @property
    def args(self) -> dict[str, Any] | None:
        """The arguments of the job, as plain JSON values.

        None if the backend keeps the payload no longer, or if the payload is not a JSON object (a
        raw handler takes any bytes).
        """
        if self.payload is None:
            return None
        try:
            return msgspec.json.decode(self.payload, type=dict[str, Any])
        except msgspec.MsgspecError:
            return None

    @property
    def error(self) -> AttemptError | None:
        """The latest attempt that failed, timed out or lost its worker."""
        return self.history[-1] if self.history else None

    @property
    def finished(self) -> bool:
        """Whether the job is in a final state: it no longer changes by itself."""
        return self.state.finished

    def public_dict(self) -> dict[str, Any]:
        """Return `state`, `progress` and `result` as plain JSON values, for the answer of a web
        handler.

        It has no traceback, host, argument or header. The result is what your handler returned:
        check first that the caller may see this job. `TypeError` is raised if the result has no
        JSON form.
        """
        fields = {"state": self.state, "progress": self.progress, "result": self.result}
        plain: dict[str, Any] = msgspec.to_builtins(fields, enc_hook=enc_hook)
        return plain

    def to_dict(self) -> dict[str, Any]:
        """Return the whole status as plain JSON values, for operators and logs.

        All times become ISO 8601 texts, those of `history` and `error` too. `args` and `error` are
        included; `payload` is not, because it is bytes. The errors have tracebacks and hosts: use
        `public_dict` for the users of an application. `TypeError` is raised if the result has no
        JSON form.
        """
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "payload"}
        history = [_error_to_dict(error) for error in self.history]
        fields |= {
            "args": self.args,
            "history": history,
            "error": history[-1] if history else None,
        }
        plain: dict[str, Any] = msgspec.to_builtins(fields, enc_hook=enc_hook)
        return plain


def _error_to_dict(error: AttemptError) -> dict[str, Any]:
    """Return the error of an attempt with its times as datetimes, which are None if unknown."""
    times = {"at": error.at, "started_at": error.started_at}
    return {
        **msgspec.structs.asdict(error),
        **{name: _to_datetime(second or None) for name, second in times.items()},
    }


def make_status(record: JobRecord, decode_result: Callable[[bytes], Any]) -> Status:
    """Return a backend's record in the form that applications see."""
    result_error = decode_result_error(record.result)
    stored = None if result_error else record.result
    return Status(
        id=record.id,
        name=record.name,
        queue=record.queue,
        state=record.state,
        priority=record.priority,
        attempt=record.attempt,
        failures=record.failures,
        lost=record.lost,
        due=_to_datetime(record.due),
        created_at=_to_datetime(record.created_at),
        started_at=_to_datetime(record.started_at),
        finished_at=_to_datetime(record.finished_at),
        reason=record.reason,
        history=record.history,
        progress=record.progress,
        result=None if stored is None else decode_result(stored),
        result_error=result_error,
        cancel_requested=record.cancel_requested,
        headers=record.options.headers,
        tenant=record.options.tenant,
        correlation_id=record.options.correlation_id,
        tags=record.options.tags,
        unique_key=record.options.unique_key,
        unique_mode=record.options.unique_mode,
        payload=record.payload,
    )


@overload
def _to_datetime(second: float) -> datetime: ...
@overload
def _to_datetime(second: float | None) -> datetime | None: ...
def _to_datetime(second: float | None) -> datetime | None:
    if second is None:
        return None
    try:
        return datetime.fromtimestamp(second, UTC)
    except (ValueError, OverflowError, OSError):  # rounding can exceed the range of datetime
        return _LATEST if second > 0 else _EARLIEST
