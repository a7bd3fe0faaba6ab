"""What an exchange reads of the turns of tenants on SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.tenants import TurnLane, TurnRow
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.session import Session


async def test_turns_of_a_name_at_its_limit_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is reached within the exchange, which does not look for its other tenants."""
    backend = SQLiteBackend(tmp_path / "jobs.db")
    await backend.open()
    await backend.enqueue(
        [NewJob(f"{n}", "n", "q", b"{}", options=JobOptions(tenant=f"{n}")) for n in range(200)]
    )
    await backend.open_session(Session(id="5" * 32, ttl=60.0, names=("n",), limits={"n": 5}))
    rows: list[TurnRow] = []
    read_more = TurnLane.read_more

    def read_and_count(lane: TurnLane) -> list[TurnRow]:
        found = read_more(lane)
        rows.extend(found)
        return found

    monkeypatch.setattr(TurnLane, "read_more", read_and_count)
    reply = await backend.exchange("5" * 32, 1, [], ReserveRequest(10, (Lane("q", "n"),)))
    assert len(reply.deliveries) == 5
    assert len(rows) <= 20
    await backend.close()
