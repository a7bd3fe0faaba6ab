"""The names of all keys. They share one hash tag, hence one slot: `{nimburion}:job`."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

WAKEUP_STREAMS = 4
"""Number of streams on which idle workers wait. A notification wakes the workers of one stream."""

KEYS = MappingProxyType(
    {
        "meta": "hash: format",
        "n": "hash: the counters seq, lane, session",
        "lane": "hash: queue NUL name -> number",
        "lanes": "hash: number -> queue NUL name",
        "job": "hash: seq -> all that is known of a job but what moves (see record_format.lua)",
        "payload": "hash: seq -> a payload too large to lie in job",
        "id": "hash: id -> seq, without its first two bytes",
        "state": "hash: seq -> counts of a waiting job that was leased before",
        "ready": "sorted set: places in the line, in byte order",
        "due": "sorted set: jobs set aside until they are due, in byte order",
        "lease": "hash: seq -> lease",
        "held": "sorted set: session, seq; in byte order",
        "cancel": "hash: seq of a leased job that somebody wants cancelled",
        "history": "hash: seq -> attempts that ended badly",
        "progress": "hash: seq -> the latest progress",
        "result": "hash: seq -> what the handler returned",
        "resulted": "sorted set: seq of jobs with a result, by the time they ended",
        "done": "sorted set: seq of completed and cancelled jobs, by the time they ended",
        "dead": "sorted set: seq of failed jobs, by seq",
        "dead_at": "sorted set: seq of failed jobs, by the time they ended",
        "void": "hash: where in the seqs all jobs are forgotten (see record_format.lua)",
        "count": "hash: lane number and letter -> how many jobs",
        "session": "hash: id -> what a session said of itself",
        "sessions": "hash: number -> id of a session",
        "turn": "hash: id -> number and results of a session's last exchange",
        "alive": "sorted set: ids of sessions, by expiry",
        "orphan": "sorted set: sessions that are over and may still hold leases",
        "gone": "sorted set: ids of sessions that are over, by when",
        "gate": "hash: job name -> limit",
        "running": "hash: job name -> how many are leased",
        "unique": "hash: job name NUL unique key -> until, id",
        "until": "sorted set: unique keys that are held for a stated time, by it",
        "paused": "hash: queue",
        "schedule": "hash: name -> schedule",
        "bell": "hash: queues whose workers have nothing to do; also the channel that rings them",
        **{
            f"ring{n}": "stream: the last ring of a fourth of all queues"
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
        self.channel: bytes = self._names["bell"]
        """The pub/sub channel that carries notifications."""
        self.wakeup_streams: tuple[bytes, ...] = self.select(
            f"ring{n}" for n in range(WAKEUP_STREAMS)
        )
        """The streams that wake exchanges in a long poll."""

    def select(self, names: Iterable[str]) -> tuple[bytes, ...]:
        """Return the keys with these names, in the same order."""
        return tuple(self._names[name] for name in names)
