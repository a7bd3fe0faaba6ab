"""Real Redis, Valkey and PostgreSQL servers for tests: on free ports, in folders that go away.

with Server(valkey_binary(), appendonly=True) as server:
    server.ask("SET", "a", "b")
    server.kill()
    server.start()
    assert server.ask("GET", "a") == b"b"
"""

from tests.servers.binaries import Binary, redis62_binary, redis_binary, valkey_binary
from tests.servers.cluster import Cluster
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer
from tests.servers.postgres_programs import pgbouncer_binary, postgres_binary
from tests.servers.proxy import Proxy
from tests.servers.sentinel import SentinelTrio
from tests.servers.server import Server, ServerFailed
from tests.servers.server_kinds import KINDS, RunningPostgres, RunningRedis, read_requested_kinds

__all__ = [
    "KINDS",
    "Binary",
    "Cluster",
    "PgBouncer",
    "PostgresServer",
    "Proxy",
    "RunningRedis",
    "RunningPostgres",
    "SentinelTrio",
    "Server",
    "ServerFailed",
    "read_requested_kinds",
    "pgbouncer_binary",
    "postgres_binary",
    "redis62_binary",
    "redis_binary",
    "valkey_binary",
]
