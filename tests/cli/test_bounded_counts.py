"""Numbers of jobs that may be too small are marked."""

from __future__ import annotations

import pytest

from nimburion.cli.commands.queues import format_queue, read_queues
from nimburion.core.diagnosis.unserved import find_unserved
from nimburion.core.job import NewJob
from nimburion.core.queries import COUNT_BUDGET, QueueInfo
from tests.overridden import OverridableBackend


def make_queue(*, size_complete: bool, scheduled_complete: bool) -> QueueInfo:
    return QueueInfo(
        name="q",
        size=7,
        scheduled=3,
        processing=1,
        oldest_age=2.0,
        paused=False,
        names={"send": 10},
        size_complete=size_complete,
        scheduled_complete=scheduled_complete,
    )


@pytest.mark.parametrize(
    ("size_complete", "scheduled_complete", "shown"),
    [
        (True, True, (7, 3, "10 jobs")),
        (False, True, ("7+", 3, "at least 10 jobs")),
        (True, False, (7, "3+", "at least 10 jobs")),
    ],
)
def test_counts_that_may_be_too_small_are_marked(
    size_complete: bool, scheduled_complete: bool, shown: tuple[int | str, int | str, str]
) -> None:
    queue = make_queue(size_complete=size_complete, scheduled_complete=scheduled_complete)
    assert format_queue(queue)[1:3] == shown[:2]
    (jobs,) = find_unserved([queue], [])
    assert jobs.describe().startswith(f"{shown[2]} 'send' wait in queue 'q'")


@pytest.mark.parametrize(("exact", "budget"), [(True, None), (False, COUNT_BUDGET)])
async def test_the_budget_of_a_list_is_passed_on(exact: bool, budget: int | None) -> None:
    class Backend(OverridableBackend):
        async def list_queues(self, *, budget: int | None = 0) -> list[QueueInfo]:
            budgets.append(budget)
            return await super().list_queues(budget=budget)

    budgets: list[int | None] = []
    backend = Backend()
    await backend.open()
    await backend.producing.enqueue([NewJob("a", "send", "q", b"{}")])
    (queue,) = await read_queues(backend, exact=exact)
    assert (queue.size, budgets) == (1, [budget])
    await backend.close()
