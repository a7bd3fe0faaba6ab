"""The PostgreSQL backend."""

from __future__ import annotations

import os

import msgspec

from nimburion.backends.postgres import migrations
from nimburion.backends.postgres.consuming import PostgresConsuming
from nimburion.backends.postgres.database import PostgresDatabase
from nimburion.backends.postgres.maintenance import PostgresMaintaining
from nimburion.backends.postgres.producing import PostgresProducing
from nimburion.backends.postgres.reads import PostgresReading
from nimburion.backends.postgres.url import PostgresSettings, parse_url
from nimburion.core.backend import Capabilities, Lifecycle
from nimburion.core.diagnosis.checks import CheckResult, make_failed_check
from nimburion.core.errors import BackendError, ConfigurationError
from nimburion.core.ids import Entropy
from nimburion.core.timing.clock import MICRO, Clock

CAPABILITIES = Capabilities(
    durable=True,
    notifies=True,
    supports_transactions=True,
    atomic_batch=None,
    shared=True,
    out_of_process=True,
    roles=True,
    keeps_arguments=True,
    lazy_batches=True,
    concurrent_transactions=True,
    shares_listener=True,
)
POOLED_CAPABILITIES = msgspec.structs.replace(CAPABILITIES, notifies=False, shares_listener=False)
"""The capabilities behind PgBouncer. It assigns a connection per transaction, so LISTEN is not
possible.
"""


class PostgresBackend(Lifecycle):
    """A backend in one PostgreSQL database. Its tables have a schema of their own.

    Args:
        url: the URL of the database; `docs/how-to/postgresql-in-production.md` lists all forms.
        schema: the schema of the tables. The URL can set it, and all options below, too.
        timeout: seconds allowed for connecting, and then for each reply.
        connections: the largest number of connections for callers.
        pooler: whether a pooler such as PgBouncer is in use: `auto` detects it, `yes`, `no`.
        clock: the clock of a test; by default the server's own time counts.
        entropy: not used here; accepted so that all backends have the same signature.

    >>> PostgresBackend("postgresql://localhost/app").capabilities.durable
    True
    """

    def __init__(
        self,
        url: str | PostgresSettings = "postgresql://localhost",
        *,
        schema: str | None = None,
        timeout: float | None = None,
        connections: int | None = None,
        pooler: str | None = None,
        clock: Clock | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        settings = url if isinstance(url, PostgresSettings) else parse_url(url)
        self.settings: PostgresSettings = settings.replace(
            schema=schema, timeout=timeout, connections=connections, pooler=pooler
        )
        self._entropy = entropy
        self._database = database = PostgresDatabase(self.settings, clock)
        self.producing: PostgresProducing = PostgresProducing(database)
        self.consuming: PostgresConsuming = PostgresConsuming(database)
        self.maintenance: PostgresMaintaining = PostgresMaintaining(database)
        self.reads: PostgresReading = PostgresReading(database)

    @classmethod
    def from_url(cls, url: str, **options: object) -> PostgresBackend:
        """Create the backend for a URL such as `postgresql://localhost/app`."""
        return cls(url, **options)  # type: ignore[arg-type]

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of this backend. Behind a pooler there are no notifications from other
        processes. The backend detects a pooler when it opens.
        """
        opened = self._database.handle.latest
        pooled = self.settings.pooler == "yes" if opened is None else opened.pooled
        return POOLED_CAPABILITIES if pooled else CAPABILITIES

    def __repr__(self) -> str:
        return f"<PostgresBackend {self.describe()}>"

    def describe(self) -> str:
        """Return a one-line description of the backend, without secrets."""
        return self.settings.describe()

    def new_handle(self) -> PostgresBackend:
        """Return another handle on the same data. It is not open and has its own connections."""
        return PostgresBackend(
            self.settings, clock=self._database.test_clock, entropy=self._entropy
        )

    async def open(self) -> None:
        """Connect, and check the server and the format. You can call it more than once."""
        await self._database.handle.open()

    async def close(self) -> None:
        """Disconnect. You can call it more than once."""
        await self._database.handle.close()

    async def exists(self) -> bool:
        return True

    async def ping(self) -> None:
        """Return when the server answers."""
        await self._database.fetch("SELECT 1")

    async def now(self) -> float:
        # Returns the time of the server's clock.
        statement = """SELECT coalesce(
            $1, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS int8))"""
        ((now,),) = await self._database.fetch(statement, self._database.now())
        return float(now) / MICRO

    async def check(self) -> list[CheckResult]:
        from nimburion.backends.postgres.checks import run_checks  # no worker needs them

        try:
            async with self._database.get_connections().pool.acquire() as connection:
                return await run_checks(
                    connection,
                    self.settings,
                    migrations.load_current_format(),
                    self._database.clock,
                )
        except (BackendError, ConfigurationError) as error:
            return [make_failed_check("server", error)]

    async def migrate(self, *, dry_run: bool = False) -> list[str]:
        current = migrations.load_current_format()
        async with self._database.connect() as connection:
            if not dry_run:
                return await migrations.run_migrations(connection, self.settings, current)
            found = await migrations.read_installed_format(connection, self.settings)
            wrong = await migrations.find_wrong_functions(connection, self.settings, current)
            missing = await migrations.find_missing_tables(connection, self.settings, current)
            return migrations.plan_migrations(found, self.settings, current, wrong, missing)

    async def grant(self, role: str) -> list[str]:
        async with self._database.connect() as connection:
            return await migrations.grant_role(
                connection, self.settings, migrations.load_current_format(), role
            )
