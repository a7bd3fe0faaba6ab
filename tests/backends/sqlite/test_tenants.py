"""What an exchange reads of the turns of tenants on SQLite, and how tenants are forgotten."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from nimburion.backends.planning.fairness import TurnReader
from nimburion.backends.planning.source import Turn
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.backends.sqlite.tenants import MAX_FORGOTTEN
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.maintenance import Retention
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from nimburion.testing.contract.harness import make_limits


async def test_turns_of_a_name_at_its_limit_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is reached within the exchange, which does not look for its other tenants."""
    backend = SQLiteBackend(tmp_path / "jobs.db")
    await backend.open()
    await backend.producing.enqueue(
        [NewJob(f"{n}", "n", "q", b"{}", options=JobOptions(tenant=f"{n}")) for n in range(200)]
    )
    await backend.consuming.open_session(
        Session(id="5" * 32, ttl=60.0, names=("n",), limits=make_limits({"n": 5}))
    )
    turns: list[Turn] = []
    read_more = TurnReader.read_more

    def read_and_count(reader: TurnReader) -> Sequence[Turn]:
        found = read_more(reader)
        turns.extend(found)
        return found

    monkeypatch.setattr(TurnReader, "read_more", read_and_count)
    reply = await backend.consuming.exchange("5" * 32, 1, [], ReserveRequest(10, (Lane("q", "n"),)))
    assert len(reply.deliveries) == 5
    assert len(turns) <= 20
    await backend.close()


async def test_idle_tenants_are_forgotten_in_steps(tmp_path: Path) -> None:
    path, tenants = tmp_path / "jobs.db", MAX_FORGOTTEN + 200
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.producing.enqueue(
        [NewJob(f"{n}", "n", "q", b"{}", options=JobOptions(tenant=f"{n}")) for n in range(tenants)]
    )
    await backend.consuming.open_session(Session(id="5" * 32, ttl=60.0, names=("n",)))
    reply = await backend.consuming.exchange(
        "5" * 32, 1, [], ReserveRequest(tenants, (Lane("q", "n"),))
    )
    completed = [Completed(delivery.lease) for delivery in reply.deliveries]
    await backend.consuming.exchange("5" * 32, 2, completed, ReserveRequest(1, (Lane("q", "n"),)))
    left = []
    with closing(sqlite3.connect(path)) as connection:
        for _ in range(2):
            await backend.maintenance.prune(Retention(), 1_000)
            left += connection.execute("SELECT count(*) FROM tenant_share").fetchone()
    await backend.close()
    assert left == [200, 0]
