"""The figures of the overview agree with one another."""

from __future__ import annotations

import pytest

from nimburion.core.session import Session, SessionInfo, Vitals
from nimburion.server.dashboard.pages.overview import count_workers
from nimburion.server.dashboard.pages.queues.queue_list import estimate_drain


def make_session(running: int, slots: int, *, expires_in: float = 30.0) -> SessionInfo:
    vitals = Vitals(slots=slots, busy=0) if slots else None
    return Session(id="a" * 32).to_info(
        opened_at=0.0, expires_in=expires_in, left=False, running=running, vitals=vitals
    )


def test_running_counts_handlers_and_not_the_jobs_that_workers_hold_in_reserve() -> None:
    """`busy` is as old as the last heartbeat, so it is not used."""
    counts = count_workers(
        [
            make_session(12, 8),
            make_session(3, 8),
            make_session(2, 0),
            make_session(9, 8, expires_in=-1.0),
        ]
    )
    assert (counts.running, counts.slots, counts.reserved) == (8 + 3 + 2, 16, 4)


@pytest.mark.parametrize(
    ("due", "enqueued", "completed", "seconds"),
    [
        (100, 0.0, 50.0, 120.0),
        (100, 20.0, 70.0, 120.0),
        (4800, 1374.0, 185.0, None),
        (100, 50.0, 50.0, None),
        (0, 0.0, 50.0, None),
        (100, 0.0, 0.0, None),
    ],
)
def test_an_estimate_agrees_with_the_rates_beside_it(
    due: int, enqueued: float, completed: float, seconds: float | None
) -> None:
    assert estimate_drain(due, enqueued, completed) == seconds
