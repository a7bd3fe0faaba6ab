"""What one case leaves on a kept connection, the next case does not see."""

from __future__ import annotations

import asyncpg
import pytest

from tests.contract.kept_connections import KeptConnections
from tests.servers.server_kinds import RunningPostgres


async def test_a_kept_connection_keeps_nothing_but_its_statements(
    postgres_server: RunningPostgres,
) -> None:
    kept = KeptConnections()
    first = await kept.connect(dsn=postgres_server.url, statement_cache_size=0)
    await first.execute("SET lock_timeout = '7s'; LISTEN news")
    one = await first.prepare("SELECT 1", name="same")
    await first.close()

    again = await kept.connect(dsn=postgres_server.url, statement_cache_size=0)
    assert again is first
    assert await again.fetchval("SHOW lock_timeout") == "0"
    assert await again.fetchval("SELECT count(*) FROM pg_listening_channels()") == 0
    two = await again.prepare("SELECT 2", name="same")
    assert (await two.fetchval(), await one.fetchval()) == (2, 1)
    assert await again.prepare("SELECT 1", name="other") is one
    await again.close()
    await kept.close()
    assert again.is_closed()


async def test_a_connection_that_cannot_be_used_again_is_closed(
    postgres_server: RunningPostgres,
) -> None:
    kept = KeptConnections()
    first = await kept.connect(dsn=postgres_server.url)
    await first.execute("BEGIN")
    await first.close()
    assert first.is_closed()
    second = await kept.connect(dsn=postgres_server.url)
    await second.close()
    second.terminate()
    third = await kept.connect(dsn=postgres_server.url)
    assert third is not second
    await third.close()
    await kept.close()
    with pytest.raises(asyncpg.InterfaceError):
        await third.execute("SELECT 1")
