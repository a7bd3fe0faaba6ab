"""The event log of a run: a file for each process, and a line of JSON for each event.

A line is one write to a file that was opened for appending. So a process that is killed loses no
line that it wrote, and only its last line may be incomplete. All times are those of
`time.monotonic`, which the processes of one host share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from nimburion.core.lease import Lease, Token


class Event(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, gc=False):
    """Something that a process saw. `at`: when it wrote the line."""

    at: float


class Acknowledged(Event, frozen=True, gc=False):
    """The backend has acknowledged that these jobs are stored."""

    jobs: list[str]


class SessionBegan(Event, frozen=True, gc=False):
    """A worker opened a session."""

    session: str


class SessionOver(Event, frozen=True, gc=False):
    """A session ended: `closed` by its worker, or `lost`."""

    session: str
    how: str


class Reserved(Event, frozen=True, gc=False):
    """A worker received deliveries: the job and the token of each."""

    session: str
    deliveries: list[tuple[str, str]]


class Settled(Event, frozen=True, gc=False):
    """The backend has answered for settlements: token, kind and result of each.

    `sent` is when the exchange was sent first. It may have been repeated since.
    """

    session: str
    sent: float
    results: list[tuple[str, str, str]]


class RunStarted(Event, frozen=True, gc=False):
    """A handler began."""

    job: str
    attempt: int
    token: str


class RunEnded(Event, frozen=True, gc=False):
    """A handler ended: `returned`, or the type of its exception."""

    token: str
    outcome: str


class Joined(Event, frozen=True, gc=False):
    """A join began, with these results of other members: the tokens of those that completed."""

    job: str
    results: list[str]


class StepRan(Event, frozen=True, gc=False):
    """The function of a step or an undo of a durable run was called, and returns this value."""

    job: str
    step: str
    token: str
    value: str


class Fault(Event, frozen=True, gc=False):
    """The harness did this, from `at` to `until`. `processes`: the pids of the workers it hit."""

    kind: str
    until: float
    processes: list[int]
    down: float | None = None
    """When a server that was restarted had ended. It may have forgotten its last writes then."""


Line = (
    Acknowledged
    | SessionBegan
    | SessionOver
    | Reserved
    | Settled
    | RunStarted
    | RunEnded
    | Joined
    | StepRan
    | Fault
)  # fmt: skip


def format_token(lease: Lease) -> str:
    """Return the token of a lease as text: job, fence and random half."""
    return f"{lease.job_id}/{lease.token.fence}/{lease.token.nonce.hex()}"


def parse_token(text: str) -> tuple[str, Token]:
    """Return the job and the token of `format_token`."""
    job, fence, nonce = text.rsplit("/", 2)
    return job, Token(int(fence), bytes.fromhex(nonce))


class EventWriter:
    """Appends the events of one process to its file in the folder."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / f"{name}-{os.getpid()}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._encoder = msgspec.json.Encoder()

    def write(self, event: Event) -> None:
        """Append one line, in one write."""
        os.write(self._descriptor, self._encoder.encode(event) + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def now() -> float:
    """Return the time of an event."""
    return time.monotonic()


def read_events(folder: Path) -> Iterator[tuple[int, Line]]:
    """Yield all events of a run with the pid of their process; those of a file in their order.

    An incomplete last line, of a process that was killed while it wrote, is left out.
    """
    decoder = msgspec.json.Decoder(Line)
    for path in sorted(folder.glob("*.jsonl")):
        pid = int(path.stem.rpartition("-")[2])
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield pid, decoder.decode(line)


def find_processes(folder: Path, name: str) -> dict[int, Path]:
    """Return the files of the processes with this name, by pid."""
    return {int(path.stem.rpartition("-")[2]): path for path in folder.glob(f"{name}-*.jsonl")}
