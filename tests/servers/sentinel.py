"""A primary with replicas, and three sentinels that put a replica in its place when it dies."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from tests.servers.binaries import Binary
from tests.servers.server import Server
from tests.waiting import block_until

QUORUM = 2
# Milliseconds between what sentinels do for themselves. Their defaults (1, 10, 2, 1 s; 30 s of rest
# when the machine was busy) would make each start and each failover a long wait. The ping must
# come well within `down_after`, and five of them must span the second between two INFOs that they
# send when a primary is down: else they take the new primary for dead, or find no good replica.
PACE = {
    "ping-period": 300,
    "info-period": 500,
    "publish-period": 200,
    "ask-period": 200,
    "tilt-period": 1000,
}
UNHURRIED = 2.0
"""The least `down_after` of sentinels without that setting (Redis 6.2): they ping once a second."""


class SentinelTrio:
    """One primary, its replicas, and three sentinels under whose eyes it may be killed.

    `password` is that of the data servers, `sentinel_password` that of the sentinels.
    """

    def __init__(
        self,
        binary: Binary,
        *lines: str,
        replicas: int = 1,
        down_after: float = 0.8,
        appendonly: bool = False,
        password: str | None = None,
        sentinel_password: str | None = None,
        service: str = "nimburion",
    ) -> None:
        self.binary = binary
        self.service = service
        self.password = password
        self.sentinel_password = sentinel_password
        self._down_after = down_after if binary.version >= (7,) else max(down_after, UNHURRIED)
        own = ["repl-diskless-sync yes", "repl-diskless-sync-delay 0"]
        own += [f"masterauth {password}"] if password else []
        self.data = [
            Server(binary, *own, *lines, appendonly=appendonly, password=password)
            for _ in range(1 + replicas)
        ]
        self.sentinels: list[Server] = []

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"{self.binary.name} behind Sentinel"

    @property
    def url(self) -> str:
        """The URL for `RedisBackend`: every sentinel, and the name of what they watch."""
        who = f":{self.password}@" if self.password else ""
        addresses = ",".join(sentinel.address for sentinel in self.sentinels)
        own = self.sentinel_password
        more = f"?sentinel_password={own}" if own else ""
        return f"redis+sentinel://{who}{addresses}/{self.service}/0{more}"

    def start(self) -> None:
        """Start all, and wait until every sentinel knows the others and every replica."""
        primary, *replicas = self.data
        for server in self.data:
            server.start()
        for replica in replicas:
            replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        block_until(lambda: all(map(is_in_sync, replicas)), "the replicas are in step")
        self.sentinels = [Sentinel(self.binary, *self._watch(primary)) for _ in range(3)]
        for sentinel in self.sentinels:
            sentinel.start()
            self._hasten(sentinel)
        self.settle()

    def settle(self) -> None:
        """Wait until primary and every replica are up, in step, and known to every sentinel."""
        block_until(lambda: all(map(self._sees_all, self.sentinels)), f"{self.name} is whole")

    def close(self) -> None:
        """End all and remove their folders."""
        with ExitStack() as stack:
            for server in (*self.data, *self.sentinels):
                stack.callback(server.close)

    def __enter__(self) -> Self:
        """Start it."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it and remove its folders."""
        self.close()

    # --- the primary and its fall -----------------------------------------------------------------

    @property
    def primary(self) -> Server:
        """The server that the first sentinel names."""
        _, port = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return next(server for server in self.data if server.port == int(port))

    def kill_primary(self) -> Server:
        """Kill the primary and return it; sentinels notice after `down_after` seconds."""
        primary = self.primary
        primary.kill()
        return primary

    def wait_for_another(self, former: Server) -> Server:
        """Wait until all sentinels name another primary that takes writes; return that."""
        block_until(lambda: self._agreed() not in {None, former.port}, "another primary")
        primary = self.primary
        block_until(lambda: read_role(primary) == "master", "the new primary takes writes")
        return primary

    def fail_over(self) -> Server:
        """Kill the primary, wait for the next one and return that; `start` revives the first."""
        return self.wait_for_another(self.kill_primary())

    def ask(self, *command: str | bytes | float) -> Any:
        """Send a command to the primary."""
        return self.primary.ask(*command)

    def empty(self) -> None:
        """Delete all data."""
        self.primary.empty()

    # --- steps ------------------------------------------------------------------------------------

    def _watch(self, primary: Server) -> list[str]:
        """The configuration of a sentinel."""
        own, service = self.sentinel_password, self.service
        return [
            f"sentinel monitor {service} 127.0.0.1 {primary.port} {QUORUM}",
            f"sentinel down-after-milliseconds {service} {self._down_after * 1000:.0f}",
            f"sentinel failover-timeout {service} 2000",
            *([f"sentinel auth-pass {service} {self.password}"] if self.password else []),
            *([f"requirepass {own}", f"sentinel sentinel-pass {own}"] if own else []),
        ]

    def _hasten(self, sentinel: Server) -> None:
        """Let it look around more often, where that can be configured."""
        if self.binary.version >= (7,):
            for name, milliseconds in PACE.items():
                sentinel.ask("SENTINEL", "DEBUG", name, milliseconds)

    def _sees_all(self, sentinel: Server) -> bool:
        master = parse_reply(sentinel.ask("SENTINEL", "MASTER", self.service))
        replicas: list[list[bytes]] = sentinel.ask("SENTINEL", "REPLICAS", self.service)
        seen = [(one["flags"], one["master-link-status"]) for one in map(parse_reply, replicas)]
        if seen != [("slave", "ok")] * (len(self.data) - 1):
            return False
        return master["flags"] == "master" and master["num-other-sentinels"] == "2"

    def _agreed(self) -> int | None:
        """The port of the primary, when all sentinels name the same."""
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        ports = {int(sentinel.ask(*command)[1]) for sentinel in self.sentinels}
        return ports.pop() if len(ports) == 1 else None


class Sentinel(Server):
    """One sentinel: a server that watches others."""

    def __init__(self, binary: Binary, *lines: str) -> None:
        password = next((line.split()[1] for line in lines if line.startswith("requirepass")), None)
        super().__init__(binary, password=password)
        self._settings = list(lines)

    def _arguments(self) -> list[str]:
        return ["--sentinel"]


def is_in_sync(replica: Server) -> bool:
    """Whether a replica has its primary's data and follows it."""
    with replica.client() as client:
        return bool(client.info("replication")["master_link_status"] == "up")


def read_role(server: Server) -> str:
    """What a server says it is: `master` or `slave`."""
    with server.client() as client:
        return str(client.info("replication")["role"])


def parse_reply(reply: list[bytes]) -> dict[str, str]:
    """A reply of names and values."""
    texts = [one.decode() for one in reply]
    return dict(zip(texts[::2], texts[1::2], strict=True))
