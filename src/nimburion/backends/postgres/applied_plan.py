"""`AppliedPlan`: what a plan gives to `apply_plan_1`, which explains it further."""

from __future__ import annotations

import msgspec


class AppliedPlan(msgspec.Struct, kw_only=True):
    """The plan of an exchange. Each field is the parameter of `apply_plan_1` of that name.

    Fields of one kind of thing are lists of the same length. None: the plan has none of them.
    """

    seqs: list[int]
    """The jobs to lease, in the order of the reply; then those to park."""
    dues: list[int]
    lanes: list[int | None] | list[int]
    """The lane in which each waits; None: it is parked."""
    main_lanes: list[int] | None = None
    """The main lane of each; None: as `lanes`."""
    leased: int
    """How many of these jobs are leased."""
    key_ends: list[int] | None = None
    """For each leased job, where its keys end in `keys`."""
    keys: list[int] | None = None
    """The keys of the leased jobs: places in the lists of the uses, from 1."""
    shares: list[int | None] | list[int] | None = None
    """For each leased job, the share of its tenant."""
    charges: list[int | None] | list[int] | None = None
    """For each leased job, what its tenant is charged."""
    park_keys: list[int] | None = None
    """For each parked job, its key: a place in the lists of the uses."""
    returned: list[int] | None = None
    """The parked jobs that return to their lanes."""

    limits: list[str] | None = None
    """The uses of keys: the limits,"""
    key_names: list[str] | None = None
    """and the keys."""
    in_use_before: list[int] | None = None
    """What the plan has read of each use: `in_use`,"""
    spent_before: list[int] | None = None
    """`spent_until`"""
    opens_before: list[int | None] | None = None
    """and `opens_at`."""
    in_use: list[int] | None = None
    """The same after the plan."""
    spent: list[int] | None = None
    opens: list[int | None] | None = None
    version: int | None = None
    """`Candidates.version`."""

    charged: list[int] | None = None
    """The shares of tenants that were charged."""
    times_before: list[int | None] | None = None
    """The virtual time of each before the plan; None: it had no row."""
    times: list[int] | None = None
    """The virtual time of each after it."""
    unmeasured: list[int] | None = None
    """How many jobs of each were reserved before its first run time."""
    class_queues: list[str] | None = None
    """The share classes of these shares: their queues"""
    class_ranks: list[int] | None = None
    """and ranks."""
    minimums_before: list[int] | None = None
    """The minimum virtual time of each class before the plan."""
    minimums: list[int] | None = None
    """The minimum virtual time of each after it."""
    waiting: list[int] | None = None
    """The requested lanes that still have jobs; None: the plan does not know."""
