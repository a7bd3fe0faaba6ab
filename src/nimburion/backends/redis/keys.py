"""The names of all keys. They share one hash tag, hence one slot: `{nimburion}:job`."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

WAKEUP_STREAMS = 4
"""Number of streams on which idle workers wait. A notification wakes the workers of one stream."""

KEYS = MappingProxyType(
    {
        "meta": "hash: format",
        "counters": "hash: the counters seq, lane, session",
        "lane_number": "hash: queue NUL name -> number",
        "lane_name": "hash: number -> queue NUL name",
        "job": "hash: seq -> all that is known of a job but what moves (see record_format.lua)",
        "payload": "hash: seq -> a payload too large to lie in job",
        "job_seq": "hash: id -> seq, without its first two bytes",
        "attempt_state": "hash: seq -> counts of a waiting job that was leased before",
        "ready": "sorted set: places in the line, in byte order",
        "scheduled": "sorted set: jobs set aside until they are due, in byte order",
        "lease": "hash: seq -> lease",
        "session_leases": "sorted set: session, seq; in byte order",
        "cancel_requested": "hash: seq of a leased job that somebody wants cancelled",
        "history": "hash: seq -> attempts that ended badly",
        "progress": "hash: seq -> the latest progress",
        "result": "hash: seq -> what the handler returned",
        "result_time": "sorted set: seq of jobs with a result, by the time they ended",
        "finished": "sorted set: seq of completed and cancelled jobs, by the time they ended",
        "dead_letter": "sorted set: seq of failed jobs, by seq",
        "dead_letter_time": "sorted set: seq of failed jobs, by the time they ended",
        "pruned_blocks": "hash: where in the seqs all jobs are forgotten (see record_format.lua)",
        "lane_counts": "hash: lane number and letter -> how many jobs",
        "session_info": "hash: id -> what a session said of itself",
        "session_id": "hash: number -> id of a session",
        "session_state": "hash: id -> number and results of a session's last exchange",
        "session_expiry": "sorted set: ids of sessions, by expiry",
        "dead_session": "sorted set: sessions that are over and may still hold leases",
        "closed_session": "sorted set: ids of sessions that are over, by when",
        "concurrency_limit": "hash: job name -> limit",
        "limit_in_use": "hash: job name -> how many are leased",
        "unique_key": "hash: job name NUL unique key -> until, id",
        "unique_expiry": "sorted set: unique keys that are held for a stated time, by it",
        "paused_queue": "hash: queue",
        "schedule": "hash: name -> schedule",
        "notify": "hash: queues whose workers have nothing to do; also the channel that rings them",
        **{
            f"wakeup{n}": "stream: the last ring of a fourth of all queues"
            for n in range(WAKEUP_STREAMS)
        },
    }
)
"""A description of each key, by its name after the hash tag."""


class Keys:
    """The keys of one namespace."""

    __slots__ = ("_names", "channel", "wakeup_streams")

    def __init__(self, namespace: str) -> None:
        self._names = {name: f"{{{namespace}}}:{name}".encode() for name in KEYS}
        self.channel: bytes = self._names["notify"]
        """The pub/sub channel that carries notifications."""
        self.wakeup_streams: tuple[bytes, ...] = self.select(
            f"wakeup{n}" for n in range(WAKEUP_STREAMS)
        )
        """The streams that wake exchanges in a long poll."""

    def select(self, names: Iterable[str]) -> tuple[bytes, ...]:
        """Return the keys with these names, in the same order."""
        return tuple(self._names[name] for name in names)
