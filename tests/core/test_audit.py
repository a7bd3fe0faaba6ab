"""Audit records: added, replaced by id, and read by pages."""

from __future__ import annotations

import msgspec
import pytest

from nimburion.core.audit import AuditRecord, list_audit, put_audit
from nimburion.core.errors import InvalidJob, Unstorable
from nimburion.testing.contract.harness import Harness


def make_record(record_id: str) -> AuditRecord:
    """Return a record of a pause."""
    return AuditRecord(
        id=record_id,
        action="queue.pause",
        target="mail",
        by="ops",
        origin="cli",
        details={"reason": "maintenance ✓", "until": "12:00"},
    )


async def test_an_audit_record_is_returned_with_its_time(harness: Harness) -> None:
    await put_audit(harness.backend, make_record("a"))
    page = await list_audit(harness.backend)
    expected = msgspec.structs.replace(make_record("a"), at=harness.clock.now())
    assert (page.records, page.next) == ([expected], None)


async def test_an_audit_record_is_replaced_and_keeps_its_time(harness: Harness) -> None:
    started = harness.clock.now()
    await put_audit(harness.backend, make_record("a"))
    await put_audit(harness.backend, make_record("b"))
    harness.clock.advance(7.0)
    done = msgspec.structs.replace(make_record("a"), outcome="failed", changed=3, error="no")
    await put_audit(harness.backend, done)
    records = (await list_audit(harness.backend)).records
    assert [record.id for record in records] == ["b", "a"]
    assert records[1] == msgspec.structs.replace(done, at=started)


async def test_pages_continue_and_only_the_newest_are_kept(harness: Harness) -> None:
    for record_id in "abcde":
        await put_audit(harness.backend, make_record(record_id), keep=3)
    page = await list_audit(harness.backend, limit=2)
    assert [record.id for record in page.records] == ["e", "d"]
    page = await list_audit(harness.backend, limit=2, after=page.next)
    assert ([record.id for record in page.records], page.next) == (["c"], None)
    with pytest.raises(InvalidJob):
        await list_audit(harness.backend, after="no cursor!")


async def test_a_text_without_a_form_in_utf_8_is_refused(harness: Harness) -> None:
    with pytest.raises(Unstorable):
        await put_audit(harness.backend, msgspec.structs.replace(make_record("a"), by="\ud800"))
    assert (await list_audit(harness.backend)).records == []
