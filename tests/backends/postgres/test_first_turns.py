"""The short plan for many tenants is the one that the planner makes."""

from __future__ import annotations

import hypothesis
import msgspec
from hypothesis import strategies as st

from nimburion.backends.postgres.candidates import Candidates, make_sizes
from nimburion.backends.postgres.first_turns import plan_first_turns
from nimburion.backends.postgres.plan import make_whole_plan
from nimburion.core.exchange import Lane, ReserveRequest

NOW = 1_000_000
LANE = Lane("default", "mail")
TIMES = st.integers(0, 3_000_000)


@st.composite
def make_candidates(draw: st.DrawFn) -> tuple[Candidates, int]:
    """Return the turns of tenants, in their order, and how many of them are leased."""
    waiting = sorted(draw(st.lists(st.tuples(TIMES, TIMES), min_size=2, max_size=12)))
    times, dues = ([turn[column] for turn in waiting] for column in (0, 1))
    number = len(times)
    total = draw(st.integers(1, number - 1))
    shares = draw(st.permutations(range(1, number + 1)))
    changed = draw(st.sets(st.integers(0, number - 1), max_size=1))
    lanes = [-share for share in shares]
    ranks = (
        [4] * number
        if draw(st.booleans())
        else sorted(draw(st.lists(st.sampled_from([4, 5]), min_size=number, max_size=number)))
    )
    seqs = list(range(1, number + 1))
    has_row = draw(st.lists(st.booleans(), min_size=number, max_size=number))
    stored = [
        None if not row else time + (index in changed)
        for index, (row, time) in enumerate(zip(has_row, times, strict=True))
    ]
    means = draw(st.lists(st.integers(0, 5_000_000), min_size=number, max_size=number))
    unmeasured = draw(st.lists(st.integers(0, 3), min_size=number, max_size=number))
    units = draw(st.lists(st.sampled_from([50, 100, 400]), min_size=number, max_size=number))
    minimum = draw(st.integers(0, times[0]))
    return (
        Candidates(
            open=[1],
            changing=[],
            turns=[[1] * number, ranks, times, lanes, shares],
            groups=[lanes, dues, seqs],
            group_size=1,
            shares=[shares, stored, means, unmeasured, units],
            classes=[("default", 4, minimum)],
            version=7,
        ),
        total,
    )


@hypothesis.given(make_candidates())
def test_the_short_plan_is_the_plan(made: tuple[Candidates, int]) -> None:
    candidates, total = made
    request = ReserveRequest(total=total, lanes=(LANE,), nonce=bytes(16))
    short = plan_first_turns(candidates, request)
    if short is None:
        return
    hypothesis.event("short")
    whole = make_whole_plan(NOW, candidates, request, make_sizes(request))
    assert short == msgspec.structs.replace(whole, waiting=[1])  # which it does not know


def test_the_first_turns_of_new_tenants_are_a_short_plan() -> None:
    """No tenant has run a job yet, so each is charged as much as the others."""
    lanes = [-4, -3, -2, -1]
    shares = [4, 3, 2, 1]
    candidates = Candidates(
        open=[1],
        changing=[],
        turns=[[1] * 4, [4] * 4, [0] * 4, lanes, shares],
        groups=[lanes, [NOW] * 4, [1, 2, 3, 4]],
        group_size=1,
        shares=[shares, [None] * 4, [0] * 4, [0] * 4, [100] * 4],
        classes=[],
    )
    request = ReserveRequest(total=2, lanes=(LANE,), nonce=bytes(16))
    short = plan_first_turns(candidates, request)
    assert short is not None
    assert short.seqs == [1, 2]
    request = ReserveRequest(total=4, lanes=(LANE,), nonce=bytes(16))
    assert plan_first_turns(candidates, request) is None
