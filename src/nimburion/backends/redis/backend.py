"""The Redis backend: Redis or Valkey, as a single server, behind Sentinel, or in a cluster."""

from __future__ import annotations

import os

import msgspec

from nimburion.backends.redis import enqueue as enqueueing
from nimburion.backends.redis.consuming import RedisConsuming
from nimburion.backends.redis.maintenance import RedisMaintaining
from nimburion.backends.redis.producing import RedisProducing
from nimburion.backends.redis.reads import RedisReading
from nimburion.backends.redis.server import RedisServer
from nimburion.backends.redis.url import RedisSettings, parse_url
from nimburion.backends.server.errors import make_no_roles_error
from nimburion.core.backend import Capabilities, Lifecycle
from nimburion.core.diagnosis.checks import CheckResult, make_failed_check
from nimburion.core.errors import BackendError, ConfigurationError
from nimburion.core.ids import Entropy
from nimburion.core.timing.clock import MICRO, Clock, to_micros

CAPABILITIES = Capabilities(
    durable=True,
    notifies=True,
    supports_transactions=False,
    atomic_batch=enqueueing.BATCH_SIZE,
    shared=True,
    supports_long_poll=True,
    out_of_process=True,
    shares_listener=True,
)
_TEST_CLOCK_CAPABILITIES = msgspec.structs.replace(CAPABILITIES, supports_long_poll=False)


class RedisBackend(Lifecycle):
    """A backend in one Redis or Valkey server, Sentinel service or cluster.

    All keys of the backend begin with `{namespace}:`, so a cluster keeps them on one node.

    Args:
        url: the URL of the server; `docs/how-to/redis-in-production.md` lists all forms.
        namespace: the prefix of all keys. The URL can set it, and all options below, too.
        require_durable: reject a server that can lose jobs, instead of logging a warning.
        durable_enqueue: `enqueue` returns only when the job is on the server's disk.
        timeout: seconds allowed for connecting, and then for each reply.
        clock: the clock of a test; by default the server's own time counts.
        entropy: not used here; accepted so that all backends have the same signature.

    >>> RedisBackend("redis://localhost:6379/0").capabilities.durable
    True
    """

    def __init__(
        self,
        url: str | RedisSettings = "redis://localhost:6379/0",
        *,
        namespace: str | None = None,
        require_durable: bool | None = None,
        durable_enqueue: bool | None = None,
        timeout: float | None = None,
        clock: Clock | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        settings = url if isinstance(url, RedisSettings) else parse_url(url)
        self.settings: RedisSettings = settings.replace(
            namespace=namespace,
            require_durable=require_durable,
            durable_enqueue=durable_enqueue,
            timeout=timeout,
        )
        self._entropy = entropy
        self._server = server = RedisServer(self.settings, clock)
        self.producing: RedisProducing = RedisProducing(server)
        self.consuming: RedisConsuming = RedisConsuming(server)
        self.maintenance: RedisMaintaining = RedisMaintaining(server)
        self.reads: RedisReading = RedisReading(server)

    @classmethod
    def from_url(cls, url: str, **options: object) -> RedisBackend:
        """Create the backend for a URL such as `redis://localhost:6379/0`."""
        return cls(url, **options)  # type: ignore[arg-type]

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of this backend. Durability depends on the server's configuration.
        `enqueue` is atomic per batch of 500 jobs. With a test clock, long polling is off, because
        the server waits by its own clock.
        """
        return CAPABILITIES if self._server.test_clock is None else _TEST_CLOCK_CAPABILITIES

    def __repr__(self) -> str:
        return f"<RedisBackend {self.describe()}>"

    def describe(self) -> str:
        """Return a one-line description of the backend, without secrets."""
        return self.settings.describe()

    def new_handle(self) -> RedisBackend:
        """Return another handle on the same data. It is not open and has its own connections."""
        handle = RedisBackend(self.settings, clock=self._server.test_clock, entropy=self._entropy)
        handle._server.warned = self._server.warned
        return handle

    async def open(self) -> None:
        """Connect, and check the server and the format. You can call it more than once."""
        await self._server.handle.open()

    async def close(self) -> None:
        """Disconnect. You can call it more than once."""
        await self._server.handle.close()

    async def exists(self) -> bool:
        return True

    async def ping(self) -> None:
        """Return when the server answers."""
        await self._server.get_connections().commands.execute("PING")

    async def now(self) -> float:
        # Returns the time of the server's clock.
        connections = self._server.get_connections()
        if self._server.test_clock is not None:
            return to_micros(self._server.test_clock.now()) / MICRO
        seconds, fraction = await connections.commands.execute("TIME")
        return int(seconds) + int(fraction) / MICRO

    async def check(self) -> list[CheckResult]:
        from nimburion.backends.redis.checks import run_checks  # no worker needs them

        try:
            return await run_checks(
                self._server.get_connections().commands.execute, self.settings, self._server.clock
            )
        except (BackendError, ConfigurationError) as error:
            return [make_failed_check("server", error)]

    async def migrate(self, *, dry_run: bool = False) -> list[str]:
        # Only one format exists so far; the first `open` writes it. The plan is read on a
        # connection of its own.
        connections = self._server.make_connections()
        try:
            steps = await connections.plan_migration()
        finally:
            await connections.close()
        if not dry_run:
            await self.open()
        return steps

    async def grant(self, role: str) -> list[str]:
        # Permissions of Redis users are configured on the server.
        raise make_no_roles_error(self.describe(), role)
