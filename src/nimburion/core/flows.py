"""Flows: jobs that belong together, and the conditions for which a job waits.

A flow counts its members: jobs, and flows inside it, which are the groups of `Flow.add_all`. It
ends when its last member has ended. A job whose options have `conditions` is suspended until each
of them is met. What belongs to the graph is in the options of the jobs (`JobOptions.flow`,
`group`, `conditions`, `results`); what changes is in the counters of the flow and in the conditions
that are not met yet.

`nimburion.backends.planning.flows` decides what follows from the end of a member.
"""

from __future__ import annotations

import enum

import msgspec

MAX_CONDITIONS = 1_000
"""The most conditions of one job. A job that waits for more depends on a group."""
MAX_RESOLVED = 250
"""The most jobs that one step resumes, cancels or re-opens because others ended. The rest follows
in the next steps, of any worker.
"""

MAX_CLOSED = 100
"""The most open flows that one `prune` closes because they got no members. The next ones follow."""


class On(enum.StrEnum):
    """Which end of a source meets a condition."""

    SUCCESS = "success"
    """It completed. A flow does if at most `max_failed` of its members failed or were cancelled."""
    FAILURE = "failure"
    """It failed or was cancelled. A flow fails as soon as too many of its members have."""
    FINISHED = "finished"
    """It ended, whatever its outcome."""
    ANY = "any"
    """The same, and it is enough: the first of these conditions of a job that is met resumes the
    job, and the others are removed. The waits of durable runs are such conditions.
    """


ENDS = (On.SUCCESS, On.FAILURE, On.FINISHED)
"""The ends that the conditions of a job can name (`JobOptions.conditions`)."""


class SourceKind(enum.StrEnum):
    """What a condition waits for. Only durable runs wait for signals and times."""

    JOB = "job"
    FLOW = "flow"
    SIGNAL = "signal"
    """An unread signal of a name. The id is that of the job, a slash, and the name."""
    TIME = "time"
    """A time on the backend's clock. The id is microseconds since 1970, with 20 digits."""


class WaitSource(msgspec.Struct, frozen=True, order=True):
    """The job, the flow, the signal or the time that meets a condition."""

    kind: SourceKind
    id: str


class WaitCondition(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job waits until this job or flow has ended so. A job has one condition for each source."""

    source: WaitSource
    on: On = On.SUCCESS


class ResultRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """The results of other members, which are an argument of a job.

    Without `count`, it is the result of the job `id`. With it, it is the list of the results of the
    jobs `id.0`, `id.1` and so on: those that completed, in this order.
    """

    id: str
    count: int | None = None

    def list_ids(self) -> list[str]:
        """Return the ids of the jobs.

        >>> ResultRef("import.parts", 2).list_ids()
        ['import.parts.0', 'import.parts.1']
        """
        if self.count is None:
            return [self.id]
        return [f"{self.id}.{number}" for number in range(self.count)]


class Growth(enum.StrEnum):
    """Whether a call of `enqueue` adds members to a flow."""

    NONE = "none"
    """The flow is stored if it is new. Its members are those that it declares."""
    OPEN = "open"
    """The same. More members may come, so it does not end before it is closed."""
    ADD = "add"
    """The flow is stored and has not ended. The new jobs of the call that it counts become members.
    Nothing else of it changes.
    """
    CLOSE = "close"
    """As `ADD`. Then the flow ends with its last member, if it was open."""

    @property
    def adds(self) -> bool:
        """Whether the flow is one that is stored, which gets more members."""
        return self in {Growth.ADD, Growth.CLOSE}


class NewFlow(msgspec.Struct, frozen=True, kw_only=True):
    """A flow to store, or a group inside one; or one that is stored, which gets more members."""

    id: str
    name: str = ""
    members: int = 0
    """How many members it has: jobs, and groups whose `parent` it is. They may be stored later."""
    parent: str | None = None
    """The id of the flow of which this group is a member; None: it is no group."""
    max_failed: int = 0
    """How many members may fail or be cancelled without failure of the flow."""
    fail_fast: bool = False
    """Whether its failure cancels the jobs in it and in its groups that have not started. Not for
    groups.
    """
    growth: Growth = Growth.NONE
    """With `ADD` or `CLOSE`, only `id` and `parent` say which flow it is."""


class FlowState(enum.StrEnum):
    """The state of a flow."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    """More members failed or were cancelled than the flow tolerates, and at least one failed."""
    CANCELLED = "cancelled"
    """More members were cancelled than the flow tolerates, and none failed."""


class FlowInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A flow or a group with the counts of its members. Times are epoch seconds on the backend's
    clock.
    """

    id: str
    name: str
    parent: str | None = None
    """The flow of which this group is a member; None: it is no group."""
    members: int
    """How many members it has. An open flow has one more, which stands for those that may come."""
    unfinished: int
    """The members that have not ended, or are not stored yet. That of an open flow is among them.
    It goes away when the flow is closed. If the flow is never closed, it counts as cancelled,
    with as many others as the flow tolerates.
    """
    completed: int = 0
    failed: int = 0
    """The members that failed. A group counts here as soon as it fails."""
    cancelled: int = 0
    """The members that were cancelled. A group that fails counts here while none of its own members
    has failed."""
    max_failed: int = 0
    fail_fast: bool = False
    """Whether its failure cancels the members that have not started."""
    added: int = 0
    """The members that it did not declare when it was stored."""
    created_at: float = 0.0
    grown_at: float | None = None
    """When an open flow was stored or got members last; None: it is not open."""
    finished_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether more members may come, so that the flow does not end."""
        return self.grown_at is not None

    @property
    def has_failed(self) -> bool:
        """Whether more members failed or were cancelled than the flow tolerates."""
        return self.failed + self.cancelled > self.max_failed

    @property
    def state(self) -> FlowState:
        """The state of the flow."""
        if self.unfinished:
            return FlowState.RUNNING
        if not self.has_failed:
            return FlowState.COMPLETED
        return FlowState.FAILED if self.failed else FlowState.CANCELLED


class FlowPage(msgspec.Struct, frozen=True):
    """A page of flows, most recently stored first. `next` is the cursor of the next page; None:
    last.
    """

    flows: list[FlowInfo]
    next: str | None = None
