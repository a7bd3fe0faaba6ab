"""Sentences of causes that the contract cases do not reach, and the number of an attempt."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nimburion.core.diagnosis.explanations import Facts, Unmet, find_causes
from nimburion.core.flows import FlowInfo, On, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import AttemptError, JobRecord, State
from nimburion.core.limits import KeyUse, LimitInfo, LimitRule
from nimburion.core.runs import make_signal_source, make_time_source
from nimburion.core.session import SessionInfo

FAILURE = AttemptError(1, "failure", "ValueError")
LOSS = AttemptError(2, "lost", "WorkerLost")


def make_record(**fields: object) -> JobRecord:
    given: dict[str, object] = {
        "id": "a",
        "name": "send",
        "queue": "mail",
        "state": State.RETRYING,
        "priority": 5,
        "payload": None,
        "due": 60.0,
        "created_at": 0.0,
        **fields,
    }
    return JobRecord(**given)  # type: ignore[arg-type]


def test_the_attempt_that_failed_is_named_though_another_was_lost_since() -> None:
    job = make_record(failures=1, lost=1, history=[FAILURE, LOSS])
    facts = Facts(now=0.0, job=job, pause=None, key_holder=None, sessions=[])
    assert find_causes(facts)[0].text == "Attempt 1 failed. The next one is due in 60.0 s."


@pytest.mark.parametrize(
    ("fields", "attempt"),
    [
        ({"failures": 2}, 3),
        ({"failures": 2, "state": State.CANCELLED}, 2),
        ({"failures": 2, "state": State.CANCELLED, "ended_by": "s"}, 3),
        ({"failures": 2, "state": State.FAILED}, 2),
        ({"state": State.CANCELLED}, 1),
        ({"failures": 1, "state": State.COMPLETED, "ended_by": "s"}, 2),
    ],
)
def test_the_attempt_of_a_finished_job_is_its_last(fields: dict[str, object], attempt: int) -> None:
    assert make_record(**fields).attempt == attempt


def test_a_maximum_of_zero_says_where_its_change_is_shown() -> None:
    job = make_record(state=State.PENDING, due=0.0)
    limit = LimitInfo(name="job:send", rules={"send": LimitRule(0)})
    key = KeyUse(limit="send:customer", key="acme", in_use=0, parked=1)
    session = SessionInfo(
        id="s", host="", pid=1, owner="", queues=("mail",), names=("send",), opened_at=0.0,
        expires_in=10.0, left=False, running=0,
    )  # fmt: skip
    facts = Facts(now=0.0, job=job, pause=None, limits=[limit], key_holder=None, sessions=[session])
    assert "`nimburion limits` says who changed it" in find_causes(facts)[0].text
    parked = replace(facts, limits=[], keys=[key], parked_for="send:customer")
    assert "if its maximum is 0" in find_causes(parked)[0].text


def describe_wait(*sources: WaitSource, members: int = 100) -> str:
    """Return the text for a durable run that waits for the first of these sources."""
    flow = FlowInfo(
        id="order.report",
        name="report",
        created_at=0.0,
        members=members,
        unfinished=3 if members > 3 else 1,
    )
    facts = Facts(
        now=1_800_000_000.0,
        job=make_record(state=State.SUSPENDED),
        pause=None,
        key_holder=None,
        sessions=[],
        unmet=[
            Unmet(
                condition=WaitCondition(source, On.ANY),
                flow=flow if source.kind is SourceKind.FLOW else None,
            )
            for source in sources
        ],
        unmet_count=len(sources),
    )
    (cause,) = find_causes(facts)
    return cause.text


FLOW = WaitSource(SourceKind.FLOW, "order.report")
PAID = make_signal_source("shop/order", "paid")
HOUR = make_time_source(1_800_003_600_000_000)


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        ((), "for nothing that could come: only a cancel ends its wait."),
        ((PAID,), "for the signal 'paid'."),
        ((HOUR,), "until 2027-01-15T09:00:00Z (in 60 min)."),
        (
            (FLOW, PAID, HOUR),
            (
                "for the end of flow order.report (3 of 100 members have not ended), for the "
                "signal 'paid', or until 2027-01-15T09:00:00Z (in 60 min)."
            ),
        ),
        ((make_time_source(10**18),), "until 1000000000000 s after 1970 (in 277277777.8 h)."),
    ],
)
def test_what_a_durable_run_waits_for(sources: tuple[WaitSource, ...], text: str) -> None:
    assert describe_wait(*sources) == f"It waits {text}"


def test_one_member_has_not_ended() -> None:
    assert "(1 of 1 members has not ended)" in describe_wait(FLOW, members=1)


def test_other_sources_are_counted() -> None:
    names = [make_signal_source("shop/order", name) for name in "abcde"]
    named = "It waits for the signal 'a', for the signal 'b', for the signal 'c'"
    assert describe_wait(*names) == f"{named}, or for 2 others."
    assert describe_wait(*names[:4]) == f"{named}, or for the signal 'd'."
