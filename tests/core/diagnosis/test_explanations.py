"""Sentences of causes that the contract cases do not reach, and the number of an attempt."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nimburion.core.diagnosis.explanations import Facts, find_causes
from nimburion.core.job import AttemptError, JobRecord, State
from nimburion.core.limits import KeyUse, LimitInfo, LimitRule
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
