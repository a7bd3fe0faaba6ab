"""Records: stored by compare-and-set, read by pages, and capped."""

from __future__ import annotations

import asyncio

import pytest

from nimburion.core.bulk_operations import (
    BulkAction,
    NewBulkOperation,
    claim_bulk_operation,
    start_bulk_operation,
)
from nimburion.core.errors import InvalidJob
from nimburion.core.records import NewRecord, Record, RecordKind, RecordPut
from nimburion.testing.contract.harness import TTL, Harness, wait_in_time

ODD = '{ "b":1.0 ,"ä":"\\u0000 / ✓",\n "b":[{}, []] }'.encode()
"""JSON that no encoder writes in the same bytes."""


def make_record(
    record_id: str, body: bytes = b"{}", *, due: float | None = None, kind: RecordKind = "audit"
) -> NewRecord:
    """Return a record to store."""
    return NewRecord(kind=kind, id=record_id, body=body, due=due)


async def put(harness: Harness, *record_ids: str, kind: RecordKind = "audit") -> None:
    """Store new records, in this order."""
    for record_id in record_ids:
        stored = await harness.backend.maintenance.put_record(
            make_record(record_id, kind=kind), version=0
        )
        assert stored.outcome == "stored"


async def list_ids(harness: Harness, kind: RecordKind = "audit") -> list[str]:
    """Return the ids of the records of a kind."""
    return [record.id for record in (await harness.backend.reads.list_records(kind)).records]


class RecordCases:
    """`put_record`, `get_record`, `list_records` and `delete_record`."""

    @pytest.mark.parametrize("due", [None, 1_750_000_000.25])
    async def test_a_record_is_kept_as_it_is(self, harness: Harness, due: float | None) -> None:
        new = make_record("ä ✓", ODD, due=due)
        put = await harness.backend.maintenance.put_record(new)
        now = harness.clock.now()
        version = round(now * 1e6)
        expected = Record(
            kind="audit", id="ä ✓", body=ODD, due=due, version=version, created_at=now
        )
        assert put == RecordPut("stored", expected)
        assert await harness.backend.reads.get_record("audit", "ä ✓") == expected
        page = await harness.backend.reads.list_records("audit")
        assert (page.records, page.next, page.now) == ([expected], None, now)

    async def test_a_record_that_is_replaced_keeps_its_place_and_time(
        self, harness: Harness
    ) -> None:
        created = harness.clock.now()
        await put(harness, "a", "b")
        harness.clock.advance(7.0)
        replaced = await harness.backend.maintenance.put_record(
            make_record("a", b'{"n":1}', due=9.0)
        )
        assert replaced.record == Record(
            kind="audit",
            id="a",
            body=b'{"n":1}',
            due=9.0,
            version=round(created * 1e6) + 1,
            created_at=created,
        )
        assert await list_ids(harness) == ["b", "a"]
        assert await harness.backend.reads.get_record("audit", "a") == replaced.record

    async def test_only_the_given_version_is_replaced(self, harness: Harness) -> None:
        assert await harness.backend.maintenance.put_record(
            make_record("a"), version=1
        ) == RecordPut("conflict", None)
        first = await harness.backend.maintenance.put_record(make_record("a"), version=0)
        assert first.record is not None
        known = first.record.version
        for version in (0, known - 1, known + 1):
            refused = await harness.backend.maintenance.put_record(
                make_record("a", b"[]", due=1.0), version=version
            )
            assert refused == RecordPut("conflict", first.record)
        second = await harness.backend.maintenance.put_record(
            make_record("a", b"[]"), version=known
        )
        assert second.record is not None
        assert (second.outcome, second.record.version) == ("stored", known + 1)
        assert await harness.backend.reads.get_record("audit", "a") == second.record

    async def test_of_many_that_replace_a_version_one_does(self, fleet: Harness) -> None:
        added = (await fleet.backend.maintenance.put_record(make_record("a"))).record
        assert added is not None
        for version in (added.version, added.version + 1):
            puts = await wait_in_time(
                asyncio.gather(
                    *(
                        handle.maintenance.put_record(make_record("a", b"%d" % n), version=version)
                        for n, handle in enumerate(fleet.handles * 2)
                    )
                )
            )
            stored = [put.record for put in puts if put.outcome == "stored"]
            assert stored == [await fleet.backend.reads.get_record("audit", "a")]

    async def test_of_many_that_add_a_record_one_does(self, fleet: Harness) -> None:
        puts = await wait_in_time(
            asyncio.gather(
                *(
                    handle.maintenance.put_record(make_record("a"), version=0)
                    for handle in fleet.handles * 2
                )
            )
        )
        assert [put.outcome for put in puts].count("stored") == 1
        assert len({put.record.version for put in puts if put.record}) == 1

    async def test_many_add_records_at_the_same_time(self, fleet: Harness) -> None:
        """None is missing in the pages."""
        await wait_in_time(
            asyncio.gather(
                *(
                    handle.maintenance.put_record(make_record(f"{n}"), keep=100)
                    for n, handle in enumerate(fleet.handles * 4)
                )
            )
        )
        assert sorted(await list_ids(fleet), key=int) == [f"{n}" for n in range(32)]

    async def test_kinds_do_not_mix(self, harness: Harness) -> None:
        await put(harness, "a", "b")
        await put(harness, "a", "c", kind="schedule")
        assert await list_ids(harness) == ["b", "a"]
        assert await list_ids(harness, "schedule") == ["c", "a"]
        assert await harness.backend.reads.get_record("audit", "c") is None
        assert await harness.backend.maintenance.delete_record("audit", "c") is False
        await harness.backend.maintenance.put_record(make_record("d"), keep=1)
        assert await list_ids(harness) == ["d"]
        assert await list_ids(harness, "schedule") == ["c", "a"]

    @pytest.mark.parametrize("limit", [1, 2, 5, 6])
    async def test_pages_of_records_have_no_gaps(self, harness: Harness, limit: int) -> None:
        await put(harness, *"abcXde")
        await put(harness, *"vwxyz", kind="bulk_operation")
        await harness.backend.maintenance.delete_record("audit", "X")
        seen: list[str] = []
        after: str | None = None
        while after is not None or not seen:
            page = await harness.backend.reads.list_records("audit", limit=limit, after=after)
            assert len(page.records) <= limit
            seen += [record.id for record in page.records]
            after = page.next
            if after is None:
                break
        assert seen == ["e", "d", "c", "b", "a"]

    async def test_a_cursor_of_no_page_of_records_is_refused(self, harness: Harness) -> None:
        await put(harness, "a")
        with pytest.raises(InvalidJob):
            await harness.backend.reads.list_records("audit", after="no cursor!")

    async def test_records_with_a_due_time_are_listed_by_it(self, harness: Harness) -> None:
        await put(harness, "never")
        for record_id, due in (("a", 30.0), ("b", 10.0), ("c", 20.0)):
            await harness.backend.maintenance.put_record(make_record(record_id, due=due))
        await harness.backend.maintenance.put_record(
            make_record("d", due=1.0, kind="bulk_operation")
        )
        await harness.backend.maintenance.put_record(make_record("c"))
        page = await harness.backend.reads.list_records("audit", by_due=True)
        assert [record.id for record in page.records] == ["b", "a"]
        await harness.backend.maintenance.put_record(make_record("b", due=40.0))
        page = await harness.backend.reads.list_records("audit", by_due=True, limit=1)
        assert ([record.id for record in page.records], page.next) == (["a"], None)
        await harness.backend.maintenance.delete_record("audit", "a")
        page = await harness.backend.reads.list_records("audit", by_due=True)
        assert [record.id for record in page.records] == ["b"]

    async def test_only_the_newest_records_are_kept(self, harness: Harness) -> None:
        await put(harness, "other", kind="schedule")
        for n in range(25):
            await harness.backend.maintenance.put_record(make_record(f"r{n}"), keep=20)
        await harness.backend.maintenance.put_record(make_record("r10", b"[]"), keep=3)
        page = await harness.backend.reads.list_records("audit", limit=100)
        assert [record.id for record in page.records] == [f"r{n}" for n in range(24, 4, -1)]
        assert page.next is None
        assert await harness.backend.reads.get_record("audit", "r4") is None
        assert await list_ids(harness, "schedule") == ["other"]

    async def test_a_record_with_a_due_time_is_not_deleted_as_the_oldest(
        self, harness: Harness
    ) -> None:
        for record_id in ("a", "b"):
            await harness.backend.maintenance.put_record(make_record(record_id, due=1.0), keep=2)
        first = await harness.backend.reads.get_record("audit", "a")
        full = await harness.backend.maintenance.put_record(make_record("c"), version=0, keep=2)
        assert full == RecordPut("full", first)
        assert await list_ids(harness) == ["b", "a"]
        ended = await harness.backend.maintenance.put_record(make_record("a"), keep=2)
        assert ended.outcome == "stored"
        stored = await harness.backend.maintenance.put_record(make_record("c"), version=0, keep=2)
        assert stored.outcome == "stored"
        assert await list_ids(harness) == ["c", "b"]

    async def test_a_deleted_record_is_gone(self, harness: Harness) -> None:
        await put(harness, "a", "b")
        await harness.backend.maintenance.put_record(make_record("a"))
        assert await harness.backend.maintenance.delete_record("audit", "a") is True
        assert await harness.backend.maintenance.delete_record("audit", "a") is False
        assert await harness.backend.reads.get_record("audit", "a") is None
        assert await list_ids(harness) == ["b"]
        again = await harness.backend.maintenance.put_record(make_record("a"), version=0)
        assert again.record is not None

    async def test_a_record_that_is_added_again_has_a_version_of_its_own(
        self, harness: Harness
    ) -> None:
        """Who read it before it was deleted does not replace the new one."""
        maintenance = harness.backend.maintenance
        read = [(await maintenance.put_record(make_record("a"))).record for _ in range(3)]
        assert await maintenance.delete_record("audit", "a")
        harness.clock.advance(0.001)
        added = await maintenance.put_record(make_record("a", b"[]"), version=0)
        for old in read:
            assert old is not None
            late = await maintenance.put_record(make_record("a", b"9"), version=old.version)
            assert late == RecordPut("conflict", added.record)

    async def test_many_processes_claim_a_step_once(self, fleet: Harness) -> None:
        started = await start_bulk_operation(
            fleet.backend, NewBulkOperation(id="op", action=BulkAction.REPLAY)
        )
        claims = await wait_in_time(
            asyncio.gather(*(claim_bulk_operation(handle, TTL) for handle in fleet.handles * 4))
        )
        assert [found.operation.version for found in claims if found.operation] == [
            started.version + 1
        ]
