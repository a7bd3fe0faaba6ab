"""What is known of one job, as the application asks for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, overload

import msgspec

from nimburion.core.job import AttemptError, JobRecord, Progress, State

_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One job as it stood when it was read. Times are datetimes in UTC, by the backend's clock."""

    id: str
    name: str
    queue: str
    state: State
    priority: int
    attempt: int
    """The number of the current attempt, or of the next one; of the last, once finished."""
    failures: int
    lost: int
    due: datetime
    created_at: datetime
    started_at: datetime | None
    """When its latest attempt began."""
    finished_at: datetime | None
    reason: str | None
    """Why it failed or was cancelled."""
    history: list[AttemptError]
    """Every attempt that ended badly, oldest first."""
    progress: Progress | None
    result: Any
    """What the handler returned, while it is kept: of its declared type where the handler is
    registered here, else as plain JSON values."""
    cancel_requested: bool
    headers: dict[str, str]
    tenant: str | None
    correlation_id: str | None
    unique_key: str | None
    payload: bytes | None
    """None once it is completed or cancelled."""

    @property
    def error(self) -> AttemptError | None:
        """The latest attempt that ended badly."""
        return self.history[-1] if self.history else None

    @property
    def finished(self) -> bool:
        """Whether nothing more happens to the job by itself."""
        return self.state.finished


def make_status(record: JobRecord, decode_result: Callable[[bytes], Any]) -> Status:
    """A backend's record for people."""
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
        result=None if record.result is None else decode_result(record.result),
        cancel_requested=record.cancel_requested,
        headers=record.options.headers,
        tenant=record.options.tenant,
        correlation_id=record.options.correlation_id,
        unique_key=record.options.unique_key,
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
    except (ValueError, OverflowError, OSError):  # rounding can lead out of what a datetime holds
        return _LAST if second > 0 else _FIRST
