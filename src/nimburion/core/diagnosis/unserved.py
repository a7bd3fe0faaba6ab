"""Find waiting jobs that no live worker takes.

No worker serves their queue, or no worker has a handler of their name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.queries import QueueInfo
from nimburion.core.session import SessionInfo

_REASONS = {
    "worker": "no worker is live",
    "queue": "no live worker serves this queue",
    "name": "no live worker has a handler of this name",
    "lane": "no live worker that serves this queue has a handler of this name",
}

MAX_REPORTED = 5
"""The maximum number of groups of waiting jobs that `check_workers` reports one by one."""


class Unserved(msgspec.Struct, frozen=True):
    """Waiting jobs of one name in one queue that no live worker takes."""

    queue: str
    name: str
    count: int
    why: Literal["worker", "queue", "name", "lane"]
    is_complete: bool = True
    """False: at least `count` jobs wait."""

    @property
    def reason(self) -> str:
        """The reason as text."""
        return _REASONS[self.why]

    def describe(self) -> str:
        """One line.

        >>> Unserved("mail", "send", 2, "queue").describe()
        "2 jobs 'send' wait in queue 'mail': no live worker serves this queue"
        """
        return describe_jobs(
            self.queue, self.name, self.count, self.reason, is_complete=self.is_complete
        )


def describe_jobs(
    queue: str, name: str, count: int, reason: str, *, is_complete: bool = True
) -> str:
    """Return one line for waiting jobs of one name that no live worker takes."""
    jobs, wait = ("job", "waits") if count == 1 else ("jobs", "wait")
    number = count if is_complete else f"at least {count}"
    return f"{number} {jobs} {name!r} {wait} in queue {queue!r}: {reason}"


def is_live(session: SessionInfo) -> bool:
    """Return whether the worker of this session takes jobs, as far as the backend knows."""
    return not session.left and session.expires_in > 0


def find_unserved(queues: Iterable[QueueInfo], sessions: Sequence[SessionInfo]) -> list[Unserved]:
    """Return the waiting jobs that no live worker takes, by queue and name."""
    names_by_queue: dict[str, set[str]] = {}
    for session in filter(is_live, sessions):
        for queue in session.queues:
            names_by_queue.setdefault(queue, set()).update(session.names)
    known = {name for session in filter(is_live, sessions) for name in session.names}
    has_workers = any(map(is_live, sessions))
    return [
        Unserved(
            info.name,
            name,
            count,
            _explain(names_by_queue.get(info.name), name, known) if has_workers else "worker",
            info.size_complete and info.scheduled_complete,
        )
        for info in queues
        for name, count in info.names.items()
        if name not in names_by_queue.get(info.name, ())
    ]


class QueueSummary(QueueInfo, frozen=True, kw_only=True):
    """The state of one queue, and which of its jobs no worker takes."""

    unserved: dict[str, str] = msgspec.field(default_factory=dict)
    """The names of waiting jobs that no live worker takes, with the reasons."""


def summarize_queues(
    queues: Iterable[QueueInfo], sessions: Sequence[SessionInfo]
) -> list[QueueSummary]:
    """Return the summaries of queues, by name."""
    found = sorted(queues, key=lambda queue: queue.name)
    unserved: dict[str, dict[str, str]] = {}
    for jobs in find_unserved(found, sessions):
        unserved.setdefault(jobs.queue, {})[jobs.name] = jobs.reason
    return [
        QueueSummary(**msgspec.structs.asdict(queue), unserved=unserved.get(queue.name, {}))
        for queue in found
    ]


def describe_unserved(queues: Iterable[QueueSummary]) -> list[str]:
    """Return one line for each group of jobs that no live worker takes."""
    return [
        describe_jobs(
            queue.name,
            name,
            queue.names[name],
            reason,
            is_complete=queue.size_complete and queue.scheduled_complete,
        )
        for queue in queues
        for name, reason in queue.unserved.items()
    ]


def make_empty_queue(name: str) -> QueueSummary:
    """Return a queue without jobs."""
    return QueueSummary(name=name, size=0, scheduled=0, processing=0, oldest_age=0.0, paused=False)


def _explain(
    served: set[str] | None, name: str, known: set[str]
) -> Literal["queue", "name", "lane"]:
    if name not in known:
        return "name"
    return "queue" if served is None else "lane"


def check_workers(
    queues: Iterable[QueueInfo], sessions: Sequence[SessionInfo]
) -> list[CheckResult]:
    """Check that each waiting job has a live worker that can reserve it."""
    found = find_unserved(queues, sessions)
    if not found:
        live = sum(map(is_live, sessions))
        served = "each waiting job has a live worker" if live else "no job waits"
        text = f"{live} live worker{'' if live == 1 else 's'}; {served}"
        return [CheckResult("workers", "good", text)]
    advice = (
        "start a worker that registers it and serves its queue, or cancel the unneeded jobs: "
        "nimburion jobs cancel --name NAME"
    )
    shown = [
        CheckResult("workers", "warning", jobs.describe(), advice) for jobs in found[:MAX_REPORTED]
    ]
    if len(found) > MAX_REPORTED:
        more = f"{len(found) - MAX_REPORTED} more like this; nimburion queues list shows them"
        shown.append(CheckResult("workers", "warning", more, advice))
    return shown
