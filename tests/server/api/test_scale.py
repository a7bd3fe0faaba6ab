"""The number of slots that autoscalers ask for."""

from __future__ import annotations

import pytest

from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.limits import LimitInfo, LimitRule
from nimburion.core.metrics.histogram import Histogram
from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.core.queries import QueueInfo
from nimburion.core.session import Session
from nimburion.server.api.scale import average_runs, compute_scale
from tests.server.conftest import Api


def make_queue(
    name: str = "q",
    *,
    processing: int = 0,
    size: int = 0,
    scheduled: int = 0,
    names: dict[str, int] | None = None,
    paused: bool = False,
    oldest_age: float = 0.0,
) -> QueueInfo:
    return QueueInfo(
        name=name,
        size=size,
        scheduled=scheduled,
        processing=processing,
        oldest_age=oldest_age,
        paused=paused,
        names={"send": size + scheduled} if names is None else names,
    )


@pytest.mark.parametrize(
    ("queue", "mean_runs", "wanted"),
    [
        (make_queue(), {}, 0),
        (make_queue(processing=7), {}, 7),
        (make_queue(size=1), {}, 1),
        (make_queue(size=1), {"send": 0.001}, 1),
        (make_queue(size=120), {"send": 10.0}, 20),
        (make_queue(size=120, processing=5), {"send": 10.0}, 25),
        (make_queue(size=120, oldest_age=86_400.0), {"send": 0.5}, 1),
        (make_queue(size=60, scheduled=60), {"send": 10.0}, 10),
        (make_queue(scheduled=60), {"send": 10.0}, 0),
        (make_queue(size=120, processing=3, paused=True), {"send": 10.0}, 3),
        (make_queue(size=72, names={"short": 60, "long": 12}), {"short": 1.0, "long": 50.0}, 11),
        (make_queue(size=3, processing=2), {"send": 3600.0}, 5),
        (make_queue(size=1, scheduled=9), {"send": 3600.0}, 1),
    ],
    ids=[
        "nothing to do",
        "what is processing always counts",
        "one job wants a slot",
        "even a short one",
        "work divided by the target",
        "beside what is processing",
        "age alone wants nothing",
        "scheduled jobs want nothing yet",
        "nor without due ones",
        "a paused queue wants nothing more",
        "each name counts its own run time",
        "a job takes one slot, however long it runs",
        "and only jobs that are due take one",
    ],
)
def test_the_wanted_slots(queue: QueueInfo, mean_runs: dict[str, float], wanted: int) -> None:
    assert compute_scale([queue], [], mean_runs, 60.0).wanted == wanted


def test_a_name_wants_no_more_slots_than_its_limit_leaves() -> None:
    queues = [make_queue("a", size=600, processing=2), make_queue("b", size=600)]
    limit = LimitInfo(name="job:send", rules={"send": LimitRule(5)}, in_use=2)
    assert compute_scale(queues, [limit], {"send": 60.0}, 60.0).wanted == 2 + 3
    full = LimitInfo(name="job:send", rules={"send": LimitRule(2)}, in_use=2)
    assert compute_scale(queues, [full], {"send": 60.0}, 60.0).wanted == 2


def test_mean_runs_are_those_of_all_intervals_and_queues() -> None:
    rows = [
        Statistics(step=600, start=start, queue=queue, name="send", counters=Counters(run=run))
        for start, queue, run in (
            (0, "a", Histogram(3.0, 3.0, {12: 1})),
            (600, "b", Histogram(9.0, 4.0, {12: 1, 15: 2})),
            (600, "c", Histogram()),
        )
    ]
    assert average_runs(rows) == {"send": 3.0}


async def test_the_answer_counts_the_queues_that_were_asked_for(api: Api) -> None:
    backend = api.processor.backend
    await api.enqueue("a", "b", queue="mail")
    await api.enqueue("c", queue="other")
    await backend.consuming.open_session(Session(id="w", queues=("mail",), names=("send",)))
    request = ReserveRequest(total=1, lanes=(Lane("mail", "send"),))
    await backend.consuming.exchange("w", 1, [], request)
    report = await api.get("/scale?queues=mail,none")
    assert (report["wanted"], report["processing"], report["ready"]) == (2, 1, 1)
    assert [queue["queue"] for queue in report["queues"]] == ["mail"]
    assert (await api.get("/scale"))["wanted"] == 2
    assert (await api.get("/scale?queues=mail,other,mail&target_wait=1"))["wanted"] == 3
    response = await api.client.get("/api/v1/scale?queues=mail,,")
    assert response.status_code == 422
