"""The names of all keys. They share one hash tag, hence one slot: `{nimburion}:job`."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

KEYS = MappingProxyType(
    {
        "meta": "hash: format; when an exchange last considered rate limits or limits by key; the "
        "due time that was reported last, and to which session",
        "counters": "hash: the last seq, and the last number of lane, session, record and flow",
        "lane_number": "hash: queue NUL job name -> lane number",
        "lane_name": "hash: lane number -> queue NUL job name",
        "job": "hash: seq -> the job, with its payload or, when it is finished, its end",
        "payload": "hash: seq -> a payload above 4 KiB, which is not in job",
        "job_seq": "hash: id -> seq, without its first two bytes",
        "attempt_state": "hash: seq -> counts of a waiting job that was leased before",
        "ready": "sorted set: due jobs, in the order of their lanes",
        "scheduled": "sorted set: jobs that are not due yet, by due time; and suspended durable "
        "runs, by the time for which they wait",
        "lease": "hash: seq -> lease",
        "session_leases": "sorted set: the leases of each session",
        "cancel_requested": "hash: seq of each leased job that is to be cancelled",
        "history": "hash: seq -> failed and lost attempts",
        "progress": "hash: seq -> the last progress report",
        "result": "hash: seq -> what the handler returned",
        "result_time": "sorted set: seq of jobs with a result, by end, "
        "without members of running flows",
        "finished": "sorted set: seq of completed and cancelled jobs, by end, "
        "without members of running flows",
        "dead_letter": "sorted set: seq of failed jobs, by seq",
        "dead_letter_time": "sorted set: seq of failed jobs, and of those cancelled because of "
        "another job, by end, without members of running flows",
        "pruned_blocks": "hash: ranges of seqs whose jobs are all deleted",
        "lane_counts": "hash: lane number and code -> number of jobs",
        "session_info": "hash: session id -> the worker's description of itself (JSON)",
        "session_id": "hash: session number -> session id, host",
        "session_state": "hash: session id -> status, and the last exchange",
        "session_expiry": "sorted set: ids of open sessions, by expiry",
        "session_vitals": "hash: session id -> the worker's last report about itself (JSON)",
        "session_command": "hash: session id -> the last command to the worker",
        "expired_session": "sorted set: expired sessions that may still have leases",
        "ended_session": "sorted set: ids of closed and expired sessions, by end",
        "declared_limit": "hash: job name -> the limits that its newest worker declared",
        "limit_change": "hash: limit, or limit NUL key -> how an operator changed it",
        "limit": "hash: job name -> its limits, with the changes of operators",
        "limit_use": "hash: limit NUL key -> its use; the key of a job name or a queue is empty",
        "limit_opening": "sorted set: limit NUL key, by when its rate allows the next parked job",
        "changed_lane": "hash: lane, or lane and limit NUL key, whose maximum changed -> which "
        "parked jobs still return",
        "parked": "sorted set: due jobs whose key has no room, by limit, key and lane",
        "parked_lane": "sorted set: the same jobs in the order of their lanes",
        "tenant_job": "sorted set: due jobs that wait for the turn of their tenant, by tenant",
        "tenant_turn": "sorted set: the first job of each tenant, in the order of the turns",
        "tenant_share": "hash: queue NUL rank tenant -> what the tenant has used",
        "share_class": "hash: queue NUL rank -> minimum virtual time, tenants",
        "tenant_weight": "hash: tenant -> weight in hundredths",
        "flow": "hash: id of a flow or a group -> the counts of its members, its name",
        "flow_order": "sorted set: the flows that are no groups in the order in which they were "
        "stored, and the groups of each flow",
        "running_flow": "sorted set: the flows that have not ended, without groups",
        "open_flow": "sorted set: open flows and groups, by when they got members last",
        "ended_flow": "sorted set: the flows that have ended, without groups, by end",
        "condition": "sorted set: conditions that are not met, by the job or the flow of each",
        "unmet": "hash: seq of a job that waits -> number of its conditions that are not met, and "
        "all that a durable run waits for",
        "flow_change": "sorted set: ends of jobs and flows whose conditions a later step applies",
        "flow_finished": "sorted set: ended members of flows that run, by flow",
        "released_flow": "sorted set: flows that have ended, whose members are in `flow_finished`",
        "run_entry": "hash: seq, kind and number -> a step of a durable run, or an unread signal; "
        "also the ids of signals",
        "run_order": "sorted set: the steps of each durable run, its unread signals, and the ids "
        "of its signals",
        "removed_run": "sorted set: seq of deleted jobs of which steps or signals are left",
        "unique_key": "hash: job name NUL unique key -> expiry, states, id of the holder",
        "unique_expiry": "sorted set: unique keys with a span (unique_for), by expiry",
        "replacement": "hash: id of a job that replaced another -> expiry, digest, id of the other",
        "replacement_expiry": "sorted set: ids in `replacement`, by expiry",
        "paused_queue": "hash: queue -> until when, since when, by whom and why it is paused",
        "record": "hash: kind NUL id -> audit record, bulk operation or schedule (MessagePack)",
        "record_order": "sorted set: the records of each kind, oldest first",
        "record_due": "sorted set: records with a due time, by it",
        "statistics": "prefix of the keys of statistics (see below)",
        "statistics_merged": "hash: step -> start of the last interval whose sources are merged",
        "idle_worker": "sorted set: queue NUL session NUL handle and how it waits, for each "
        "worker that waits. With a colon and the handle: the stream or the channel that wakes it",
        "notify": "no key: the channel on which sessions are notified",
    }
)
"""A description of each key, by its name after the hash tag."""


class Keys:
    """The keys of one namespace."""

    __slots__ = ("_names", "_statistics", "channel", "idle_worker")

    def __init__(self, namespace: str) -> None:
        self._names = {name: f"{{{namespace}}}:{name}".encode() for name in KEYS}
        (self._statistics,) = self.select(["statistics"])
        self.channel: bytes = self._names["notify"]
        """The pub/sub channel of sessions."""
        self.idle_worker: bytes = self._names["idle_worker"]
        """With a colon and the id of a handle: the stream and the channel that wake it."""

    def select(self, names: Iterable[str]) -> tuple[bytes, ...]:
        """Return the keys with these names, in the same order."""
        return tuple(self._names[name] for name in names)

    def make_statistics_key(self, step: int, start: int) -> bytes:
        """Return the key of the statistics of one interval: `{nimburion}:statistics:60:1764201600`.

        It is a hash: queue NUL job name NUL source -> counters (JSON). It expires when its interval
        is no longer kept.
        """
        return b"%s:%d:%d" % (self._statistics, step, start)
