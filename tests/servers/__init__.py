"""Real Redis and Valkey servers for tests and benchmarks: on free ports, in folders that go away.

with Server(valkey_binary(), appendonly=True) as server:
    server.ask("SET", "a", "b")
    server.kill()
    server.start()
    assert server.ask("GET", "a") == b"b"
"""

from tests.servers.binaries import Binary, redis62_binary, redis_binary, valkey_binary
from tests.servers.cluster import Cluster
from tests.servers.kinds import KINDS, Running, asked_for
from tests.servers.proxy import Proxy
from tests.servers.sentinel import SentinelTrio
from tests.servers.server import Server, ServerFailed

__all__ = [
    "KINDS",
    "Binary",
    "Cluster",
    "Proxy",
    "Running",
    "SentinelTrio",
    "Server",
    "ServerFailed",
    "asked_for",
    "redis62_binary",
    "redis_binary",
    "valkey_binary",
]
