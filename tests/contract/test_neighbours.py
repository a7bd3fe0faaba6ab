"""The schemas beside the one of the cases are guarded."""

from __future__ import annotations

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import Harness
from tests.contract.neighbours import CASES_EACH, SCHEMAS, Neighbours
from tests.servers.server_kinds import RunningPostgres


async def test_the_server_rejects_the_writes_of_others_and_neighbours_work(
    postgres_server: RunningPostgres,
) -> None:
    neighbours = Neighbours(postgres_server.url)
    await neighbours.open()
    for _ in range(4 * CASES_EACH):
        await neighbours.work()
    for schema in SCHEMAS:
        backend = PostgresBackend(postgres_server.url, schema=schema, clock=FakeClock())
        await backend.open()
        with pytest.raises(Exception, match=f"a write into {schema}.*, a table of a neighbour"):
            await Harness(FakeClock(), [backend]).add()
        assert sum((await backend.reads.count_jobs()).values()) == 13
        await backend.close()
        with (
            psycopg.connect(postgres_server.url, prepare_threshold=None) as connection,
            pytest.raises(psycopg.Error, match=f"a write into {schema}.ready, a table"),
        ):
            connection.execute(f'TRUNCATE "{schema}".ready'.encode())
    await neighbours.close()
