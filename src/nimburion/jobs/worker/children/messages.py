"""The messages between a worker and its child process: frames with a struct in MessagePack.

There are two sockets. On the first, the parent sends `Start`, then one `Call` at a time, and
`Stop`: the main thread of the child waits there. On the second, the child answers each call with
one `Returned`, `Raised` or `NotRun`, and both send other messages while the call runs. Payloads and
results are bytes that the parent neither decodes nor changes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from nimburion.core.frames import add_length
from nimburion.core.job import AttemptError, Enqueued, NewJob
from nimburion.core.lease import Delivery


class Start(msgspec.Struct, tag=1, array_like=True, frozen=True):
    """Parent to child, first: the application to import, and what the child takes over."""

    import_path: str
    script: str | None
    """The file of a program that the parent runs as `__main__`, if the processor is in it."""
    search_path: list[str]
    arguments: list[str]
    parent: int
    """The id of the parent's process."""
    log_level: int


class Call(msgspec.Struct, tag=2, array_like=True, frozen=True):
    """Parent to child: run the handler of this delivery."""

    delivery: Delivery
    session_id: str
    timeout: float | None
    """Seconds until the parent kills the child."""
    memory_limit: int | None
    """Bytes."""
    trace: dict[str, str]
    """The current trace context of the parent, as headers."""


class EnqueueReply(msgspec.Struct, tag=3, array_like=True, frozen=True):
    """Parent to child: the results of `Enqueue`, or the error."""

    number: int
    results: list[Enqueued]
    error_type: str = ""
    """The name of a class in `nimburion.core.errors`; empty: no error."""
    error: str = ""
    outcome: Literal["not applied", "applied", "unknown"] = "unknown"


class ProgressReceived(msgspec.Struct, tag=4, array_like=True, frozen=True):
    """Parent to child: the last progress was taken, so the next one may be sent."""


class Stop(msgspec.Struct, tag=5, array_like=True, frozen=True):
    """Parent to child: end now. Sent only while no call runs."""


class ShowStack(msgspec.Struct, tag=6, array_like=True, frozen=True):
    """Parent to child: send the stack of the running handler."""


class Ready(msgspec.Struct, tag=11, array_like=True, frozen=True):
    """Child to parent: the application is imported; these names are registered."""

    names: list[str]
    process: int
    """The id of the child's own process."""
    has_guard: bool
    """Whether a guard stands between parent and child."""


class NotStarted(msgspec.Struct, tag=12, array_like=True, frozen=True):
    """Child to parent: the application cannot be imported. The child ends."""

    reason: str
    traceback: str


class Returned(msgspec.Struct, tag=13, array_like=True, frozen=True):
    """Child to parent: the handler returned. `result` is JSON, or None."""

    result: bytes | None


class Raised(msgspec.Struct, tag=14, array_like=True, frozen=True):
    """Child to parent: the handler raised, and this is what it means."""

    kind: Literal["failed", "snoozed", "rate_limited", "cancelled"]
    error: AttemptError | None = None
    """What failed; None unless `kind` is `failed`."""
    delay: float | None = None
    """Seconds of a snooze or of a refusal, or until the retry if the handler set them."""
    reason: str = ""
    """Why the job is cancelled."""


class NotRun(msgspec.Struct, tag=15, array_like=True, frozen=True):
    """Child to parent: the handler was not called, because the child has none of this name."""

    name: str


class ProgressMade(msgspec.Struct, tag=16, array_like=True, frozen=True):
    """Child to parent: the progress of the running call."""

    fraction: float
    message: str


class Logged(msgspec.Struct, tag=17, array_like=True, frozen=True):
    """Child to parent: one log record. `fields` are its attributes, as far as JSON can hold them.

    `dropped`: the number of records that were too many before this one.
    """

    logger: str
    level: int
    fields: dict[str, str | int | float | bool | None]
    dropped: int = 0


class Enqueue(msgspec.Struct, tag=18, array_like=True, frozen=True):
    """Child to parent: store these jobs, and answer with this number."""

    number: int
    jobs: list[NewJob]


class UnitsSpent(msgspec.Struct, tag=19, array_like=True, frozen=True):
    """Child to parent: units that the running call has taken of its rate limit beyond its cost."""

    units: int


class StackShown(msgspec.Struct, tag=20, array_like=True, frozen=True):
    """Child to parent: the stack of the running handler."""

    text: str


ToMainThread = Start | Call | Stop
ToHandler = EnqueueReply | ProgressReceived | ShowStack
ToParent = (
    Ready
    | NotStarted
    | Returned
    | Raised
    | NotRun
    | ProgressMade
    | Logged
    | Enqueue
    | UnitsSpent
    | StackShown
)

_encode = msgspec.msgpack.Encoder().encode


def encode_message(message: ToMainThread | ToHandler | ToParent) -> bytes:
    """Return a message as a frame."""
    return add_length(_encode(message))
