"""Changes are recorded before they are made, and completed afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nimburion.actions.auditing import record_change
from nimburion.backends.memory import MemoryBackend
from nimburion.core.audit import AuditRecord, list_audit
from nimburion.core.errors import BackendUnavailable


@pytest.fixture
async def backend() -> AsyncIterator[MemoryBackend]:
    opened = MemoryBackend()
    await opened.open()
    yield opened
    await opened.close()


async def read_records(backend: MemoryBackend) -> list[AuditRecord]:
    return (await list_audit(backend)).records


async def test_the_record_is_stored_before_the_change_and_completed_after_it(
    backend: MemoryBackend,
) -> None:
    details = {"reason": "deploy"}
    async with record_change(
        backend, "queue.pause", target="mail", by="ann", origin="python", details=details
    ) as change:
        (started,) = await read_records(backend)
        change.count = 3
    (done,) = await read_records(backend)
    assert (started.outcome, started.changed) == ("started", None)
    assert (done.outcome, done.changed, done.target, done.id) == ("done", 3, "mail", started.id)
    assert (done.by, done.origin, done.details) == ("ann", "python", details)


async def test_a_target_may_be_known_only_after_the_change(backend: MemoryBackend) -> None:
    async with record_change(backend, "jobs.enqueue", by="ann", origin="python") as change:
        change.target = "job-1"
    assert [record.target for record in await read_records(backend)] == ["job-1"]


async def test_a_change_that_fails_is_recorded_with_its_error(backend: MemoryBackend) -> None:
    with pytest.raises(ValueError, match="no good"):
        async with record_change(backend, "queue.pause", by="ann", origin="python"):
            raise ValueError("no good\nsecond line")
    (record,) = await read_records(backend)
    assert (record.outcome, record.error) == ("failed", "ValueError: no good")


async def test_without_a_record_there_is_no_change(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise BackendUnavailable("it is down")

    monkeypatch.setattr(backend.maintenance, "put_record", fail)
    with pytest.raises(BackendUnavailable):
        async with record_change(backend, "queue.pause", by="ann", origin="python"):
            pytest.fail("the change was made")


async def test_a_record_that_cannot_be_completed_stays_started(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise BackendUnavailable("it is down")

    async with record_change(backend, "queue.pause", by="ann", origin="python"):
        monkeypatch.setattr(backend.maintenance, "put_record", fail)
    assert [record.outcome for record in await read_records(backend)] == ["started"]
    assert "could not be completed" in caplog.text
