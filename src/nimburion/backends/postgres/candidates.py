"""The candidates of a planned exchange: what `read_candidates_1` has read, and how much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from nimburion.core.exchange import ReserveRequest
from nimburion.core.rate_limits import RateLimit

_READ_AHEAD = 2
"""Jobs that the first read of each lane adds to its even share of the request."""
_GROWTH = 4
_FIRST_PARKED = 16


class Sizes(NamedTuple):
    """How much `read_candidates_1` reads at most."""

    most_jobs: int
    """Jobs without a tenant, of each lane."""
    most_turns: int
    """Turns of tenants, of each lane."""
    group_factor: int
    """A factor for the jobs of each turn: the server estimates their number."""
    most_parked: int = 0
    """Parked jobs, of each key and lane."""

    def grow(self, what: str) -> Sizes:
        """Return larger sizes, because a plan needs more of something."""
        size = getattr(self, what)
        return self._replace(**{what: size * _GROWTH or _FIRST_PARKED})


def make_sizes(request: ReserveRequest) -> Sizes:
    """Return what the first read of an exchange asks for."""
    total, lanes = request.total, max(1, len(request.lanes))
    return Sizes(min(total, total // lanes + _READ_AHEAD), total + 1, 1)


class NeedsMore(Exception):
    """The plan needs more candidates than were read."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what: str = what
        """The field of `Sizes` that is too small."""


Columns = list[Any]
"""One list for each column; each is None if there are no rows."""


class CandidateRule(NamedTuple):
    """A limit of a job name, and its use if it closes lanes."""

    job: str
    limit: str
    concurrency: int | None
    interval: int | None
    burst: int | None
    cost: int
    in_use: int | None
    spent_until: int | None


class ChangedKey(NamedTuple):
    """What a change sets for one key of a limit."""

    limit: str
    key: str
    concurrency: int | None
    interval: int | None
    burst: int | None


class ParkedCandidate(NamedTuple):
    """A job that is parked for a key of a candidate."""

    limit: str
    key: str
    place: int
    rank: int
    due: int
    seq: int
    lane: int
    share: int | None


class Candidates(msgspec.Struct):
    """The JSON object of `read_candidates_1`: what a plan considers.

    Requested lanes are named by their index in the request, from 1. A fact that is None was not
    needed, or there is none.
    """

    open: list[int]
    """The requested lanes that are served: those that are not paused or changing."""
    changing: list[int]
    """The requested lanes to which parked jobs still return after a change of limits."""
    rules: list[CandidateRule] | None = None
    """The limits of the job names."""
    changes: list[ChangedKey] | None = None
    """The changes of single keys, if jobs may be parked."""
    jobs: Columns | None = None
    """Jobs without a tenant, in the order of their lanes: requested lane, rank, due, seq, lane and
    main lane.
    """
    turns: Columns | None = None
    """The turns of tenants, in their order: requested lane, rank, virtual time, lane, share."""
    groups: Columns | None = None
    """The first jobs of the lanes of these turns: lane, due, seq."""
    group_size: int | None = None
    """How many jobs of each of these lanes were read at most."""
    shares: Columns | None = None
    """The shares of tenants: share, virtual time (None: no row), mean run time, unmeasured, weight.
    """
    classes: list[tuple[str, int, int]] | None = None
    """The share classes of the queues: queue, rank, minimum virtual time."""
    parked: list[ParkedCandidate] | None = None
    """The first jobs that are parked for the keys of the jobs above."""
    keys: Columns | None = None
    """The keys of all these jobs: seq, requested lane, limit, key, cost (None: none of its own),
    in_use, spent_until (None: not in use), opens_at, has_parked.
    """
    version: int | None = None
    """That of the limits for which jobs may be parked. It is compared when the plan is applied."""
    sizes: list[tuple[int, int]] | None = None
    """The bytes of each job, by seq, if they may not fit into the reply."""


decode_candidates: Callable[[str], Candidates] = msgspec.json.Decoder(Candidates).decode


def iterate_rows(columns: Columns | None) -> Iterator[tuple[Any, ...]]:
    """Return the rows of a table that was sent in columns."""
    return iter(()) if columns is None or columns[0] is None else zip(*columns, strict=True)


def make_rate(interval: int | None, burst: int | None, cost: int | None) -> RateLimit | None:
    """Return a rate limit from the columns of a table; None: there is none."""
    return None if interval is None else RateLimit("", interval, burst or 1, cost or 1)
