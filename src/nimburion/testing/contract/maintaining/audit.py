"""Audit records: added, replaced by id, read by pages, and capped."""

from __future__ import annotations

import msgspec
import pytest

from nimburion.core.audit import AuditRecord
from nimburion.core.errors import InvalidJob
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


class Audit:
    """`put_audit` and `list_audit`."""

    async def test_an_audit_record_is_returned_with_its_time(self, harness: Harness) -> None:
        await harness.backend.maintenance.put_audit(make_record("a"))
        page = await harness.backend.reads.list_audit()
        expected = msgspec.structs.replace(make_record("a"), at=harness.clock.now())
        assert (page.records, page.next) == ([expected], None)

    async def test_an_audit_record_is_replaced_and_keeps_its_time(self, harness: Harness) -> None:
        started = harness.clock.now()
        await harness.backend.maintenance.put_audit(make_record("a"))
        await harness.backend.maintenance.put_audit(make_record("b"))
        harness.clock.advance(7.0)
        done = msgspec.structs.replace(make_record("a"), outcome="failed", changed=3, error="no")
        await harness.backend.maintenance.put_audit(done)
        records = (await harness.backend.reads.list_audit()).records
        assert [record.id for record in records] == ["b", "a"]
        assert records[1] == msgspec.structs.replace(done, at=started)

    @pytest.mark.parametrize("limit", [1, 2, 5, 6])
    async def test_audit_pages_have_no_gaps(self, harness: Harness, limit: int) -> None:
        for record_id in "abcde":
            await harness.backend.maintenance.put_audit(make_record(record_id))
        seen: list[str] = []
        after: str | None = None
        while True:
            page = await harness.backend.reads.list_audit(limit=limit, after=after)
            assert len(page.records) <= limit
            seen += [record.id for record in page.records]
            if page.next is None:
                break
            after = page.next
        assert seen == ["e", "d", "c", "b", "a"]

    async def test_a_cursor_of_no_audit_page_is_refused(self, harness: Harness) -> None:
        await harness.backend.maintenance.put_audit(make_record("a"))
        with pytest.raises(InvalidJob):
            await harness.backend.reads.list_audit(after="no cursor!")

    async def test_only_the_newest_audit_records_are_kept(self, harness: Harness) -> None:
        for n in range(25):
            await harness.backend.maintenance.put_audit(make_record(f"r{n}"), keep=20)
        page = await harness.backend.reads.list_audit(limit=100)
        assert [record.id for record in page.records] == [f"r{n}" for n in range(24, 4, -1)]
        assert page.next is None
