"""The messages between a supervisor and its worker processes, in MessagePack.

The supervisor sends `WorkerOptions` first. The worker sends `WorkerLoaded`, `WorkerStarted` and
`WorkerStopping` when it reaches these points, and answers each `ReportRequest` with one
`WorkerReport`. Its last message is a report without a request.

A worker whose backend shares a listener sends `ChannelsWanted`. The supervisor sends one of them a
`ListenRequest`. That one answers with `ChannelsServed`, and sends each notification for others,
which the supervisor passes on.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from nimburion.core.frames import add_length
from nimburion.core.settings import SchedulerSettings
from nimburion.jobs import Health
from nimburion.telemetry.families import Family, Labels


class WorkerOptions(msgspec.Struct, tag=1, frozen=True, kw_only=True):
    """Supervisor to worker, first: the options of `nimburion worker`."""

    target: str
    processes: int
    config_file: str | None
    backend: str | None
    queues: str | None
    concurrency: int | None
    log_level: str
    log_format: Literal["text", "json"] | None
    until_empty: bool
    max_jobs: int | None
    """The setting `worker_recycle.jobs`."""
    traceback: bool
    scheduler: SchedulerSettings | None = None
    """The settings of the scheduler, where the worker cannot read those of the application; None:
    it reads the configuration."""


class ReportRequest(msgspec.Struct, tag=2, frozen=True):
    """Supervisor to worker: send a report, from the event loop."""


class FinishRequest(msgspec.Struct, tag=3, frozen=True):
    """Supervisor to worker: take no more jobs, and end when the running ones have ended."""


class ListenRequest(msgspec.Struct, tag=4, frozen=True):
    """Supervisor to worker: listen on these channels for other workers; None: for none any more."""

    channels: list[str] | None


class ListenerState(msgspec.Struct, tag=5, frozen=True):
    """Supervisor to worker: whether another worker listens on its channels."""

    is_listening: bool


class Notification(msgspec.Struct, tag=6, frozen=True):
    """A notification of the backend: from the worker that listens to the supervisor, and from
    there to each worker that wants its channel.
    """

    channel: str
    text: str


class WorkerLoaded(msgspec.Struct, tag=11, frozen=True):
    """Worker to supervisor: the application is imported, and its processor can be used."""

    backend: str
    """The description of its backend."""
    grace: float
    """Its grace time in seconds."""


class WorkerStarted(msgspec.Struct, tag=12, frozen=True):
    """Worker to supervisor: it has a session and takes jobs."""


class WorkerStopping(msgspec.Struct, tag=13, frozen=True):
    """Worker to supervisor: it takes no more jobs."""


class WorkerReport(msgspec.Struct, tag=14, frozen=True):
    """Worker to supervisor: its health and its metrics now."""

    health: Health
    families: list[Family]


class ChannelsWanted(msgspec.Struct, tag=15, frozen=True):
    """Worker to supervisor: the channels of its backend whose notifications it wants."""

    channels: list[str]


class ChannelsServed(msgspec.Struct, tag=16, frozen=True):
    """Worker to supervisor: the channels on which it listens now for other workers."""

    channels: list[str]


ToWorker = (
    WorkerOptions | ReportRequest | FinishRequest | ListenRequest | ListenerState | Notification
)
ToSupervisor = (
    WorkerLoaded
    | WorkerStarted
    | WorkerStopping
    | WorkerReport
    | ChannelsWanted
    | ChannelsServed
    | Notification
)


def encode_message(message: ToWorker | ToSupervisor) -> bytes:
    """Return the bytes of a message with its length."""
    return add_length(msgspec.msgpack.encode(message, enc_hook=_encode_labels))


def decode_for_worker(body: bytes) -> ToWorker:
    """Return a message of the supervisor. Raises `msgspec.MsgspecError`."""
    message: ToWorker = msgspec.msgpack.decode(body, type=ToWorker)
    return message


def decode_for_supervisor(body: bytes) -> ToSupervisor:
    """Return a message of a worker. Raises `msgspec.MsgspecError`."""
    message: ToSupervisor = msgspec.msgpack.decode(body, type=ToSupervisor, dec_hook=_decode_labels)
    return message


def _encode_labels(value: object) -> object:
    if isinstance(value, Labels):
        return dict(value.values)
    raise NotImplementedError(f"a {type(value).__name__} in a message")


def _decode_labels(kind: type, value: dict[str, str]) -> object:
    if kind is Labels:
        return Labels(value)
    raise NotImplementedError(f"a {kind.__name__} in a message")
