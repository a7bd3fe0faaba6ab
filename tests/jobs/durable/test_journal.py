"""The journal of a run."""

from __future__ import annotations

import pytest
from msgspec import Raw

from nimburion.core.runs import RecordedStep
from nimburion.jobs.durable.journal import (
    AnyEntry,
    CleanupEntry,
    ForgottenEntry,
    Journal,
    RestartEntry,
    StepEntry,
    StoredEntry,
    TimerEntry,
    decode_entry,
    encode_entry,
)
from nimburion.jobs.payloads.codec import UnreadablePayload


def make_journal(*entries: AnyEntry) -> Journal:
    steps = (
        RecordedStep(number, encode_entry(entry), float(number))
        for number, entry in enumerate(entries, 1)
    )
    return Journal(steps)


def test_an_entry_is_found_by_its_kind_and_key() -> None:
    journal = make_journal(StepEntry("a", Raw(b"1")), TimerEntry("a", 5.0))
    step, timer = journal.find(StepEntry, "a"), journal.find(TimerEntry, "a")
    assert step is not None
    assert timer is not None
    assert (step.entry, step.at) == (StepEntry("a", Raw(b"1")), 1.0)
    assert (timer.entry, timer.at) == (TimerEntry("a", 5.0), 2.0)
    assert journal.find(StepEntry, "b") is None


def test_a_later_entry_takes_the_place_of_an_earlier_one_and_may_be_forgotten() -> None:
    journal = make_journal(StepEntry("a", Raw(b"1")), StepEntry("a", Raw(b"2")))
    stored = journal.find(StepEntry, "a")
    assert stored is not None
    assert stored.entry == StepEntry("a", Raw(b"2"))
    journal.add(StoredEntry(ForgottenEntry("a", "step")))
    assert journal.find(StepEntry, "a") is None


def test_numbers_continue_behind_the_last_step() -> None:
    journal = make_journal(StepEntry("a"), StepEntry("b"))
    assert journal.last_number == 2


def test_an_execution_has_passed_all_operations() -> None:
    journal = make_journal(CleanupEntry(), RestartEntry(), StepEntry("a"), TimerEntry("b"))
    assert journal.has_more
    journal.find_passed(StepEntry, "a")
    assert journal.has_more
    journal.find_passed(TimerEntry, "b")
    assert not journal.has_more


@pytest.mark.parametrize("payload", [None, b'{"cursor":5}'])
def test_the_arguments_of_a_run_that_began_anew(payload: bytes | None) -> None:
    entry = RestartEntry("", 2, Raw(payload or b"null"))
    assert decode_entry(encode_entry(entry)) == entry
    assert make_journal(entry).payload == payload
    assert Journal().payload is None


@pytest.mark.parametrize("body", [b"", b"{}", b'{"kind":"of a later version"}', b"[1]"])
def test_a_step_that_another_version_wrote_is_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadablePayload, match="a step of the run cannot be read"):
        decode_entry(body)
