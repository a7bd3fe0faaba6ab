"""`SQLiteBackend`: one file, no server, shared by the processes of one host."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from nimburion.backends.server.errors import make_no_roles_error
from nimburion.backends.sqlite.connection import opening
from nimburion.backends.sqlite.connection.disk import Measure, get_free_bytes
from nimburion.backends.sqlite.connection.path import MOUNTS_FILE, file_exists, parse_url
from nimburion.backends.sqlite.consuming import SQLiteConsuming
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.backends.sqlite.maintenance import SQLiteMaintaining
from nimburion.backends.sqlite.producing import SQLiteProducing
from nimburion.backends.sqlite.reads import SQLiteReading
from nimburion.core.backend import Capabilities, Lifecycle
from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.ids import Entropy
from nimburion.core.timing.clock import MICRO, Clock, SystemClock

if TYPE_CHECKING:
    from nimburion.backends.sqlite.checks import IntegrityChecks

CAPABILITIES = Capabilities(
    durable=True,
    notifies=True,
    supports_transactions=True,
    atomic_batch=None,
    shared=True,
    keeps_arguments=True,
    blocking_enqueue=True,
)


class SQLiteBackend(Lifecycle):
    """A backend in one SQLite file.

    Operations of callers (enqueue, cancel, replay, …) are on the disk when the call returns.
    Operations of workers (exchanges, heartbeats) survive a crash of every process. A power cut can
    undo the last of them: then a job may run again, but no job is lost.

    Args:
        path: the file; created if it does not exist. Its folder must exist, on a local disk.
        clock: wall time for due times, boot time for sessions.
        random: jitter for retries of the write lock.
        entropy: random bytes for the socket name of this handle.
        mounts: the table of mounted file systems; a network file system is rejected.
        measure: returns the free bytes on the disk of a folder.

    >>> SQLiteBackend("jobs.db").capabilities.durable
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "nimburion.db",
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        entropy: Entropy = os.urandom,
        mounts: Path = MOUNTS_FILE,
        measure: Measure = get_free_bytes,
    ) -> None:
        self.path: Path = Path(path).absolute()
        self._file = file = SQLiteFile(
            self.path,
            clock=clock or SystemClock(),
            random=random or Random(),  # noqa: S311 (jitter is no secret)
            entropy=entropy,
            mounts=mounts,
            measure=measure,
        )
        self.producing: SQLiteProducing = SQLiteProducing(file)
        self.consuming: SQLiteConsuming = SQLiteConsuming(file)
        self.maintenance: SQLiteMaintaining = SQLiteMaintaining(file)
        self.reads: SQLiteReading = SQLiteReading(file)
        self._integrity: IntegrityChecks | None = None

    @classmethod
    def from_url(cls, url: str, **options: object) -> SQLiteBackend:
        """Return the backend for a URL, like `sqlite:///jobs.db` or `sqlite:////srv/jobs.db`.

        Raises `ConfigurationError` if the URL names no file.
        """
        return cls(parse_url(url), **options)  # type: ignore[arg-type]

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities: durable, shared, notifications, callers' transactions, atomic calls."""
        return CAPABILITIES

    def __repr__(self) -> str:
        return f"<SQLiteBackend {self.describe()}>"

    def describe(self) -> str:
        """Return a name of the backend for people."""
        return self._file.name

    def new_handle(self) -> SQLiteBackend:
        """Return another handle on the same file, not open yet.

        While this handle is open, opening the other raises `BackendReplaced` if the file was
        deleted or replaced.
        """
        file = self._file
        handle = SQLiteBackend(
            self.path,
            clock=file.clock,
            random=file.random,
            entropy=file.entropy,
            mounts=file.mounts,
            measure=file.measure,
        )
        handle._file.origin = file
        return handle

    async def open(self) -> None:
        """Create or open the file and migrate it to the format of this version. Idempotent."""
        await self._file.open()

    async def close(self) -> None:
        """Finish the calls already made, then close the file. Idempotent."""
        await self._file.close()

    async def exists(self) -> bool:
        # True also if this user may not read the path.
        return await asyncio.to_thread(file_exists, self.path)

    async def now(self) -> float:
        # Reads the clock of this host.
        return await self._file.read(lambda db: db.now / MICRO)

    async def ping(self) -> None:
        """Read from the file once; raises an error if it cannot be read."""
        await self._file.read(lambda db: db.fetch_value("get_next_due"))

    async def check(self) -> list[CheckResult]:
        # Looks for damage in the file for 5 seconds at most, beside other calls. A large file
        # without damage is not read again for some minutes. Takes the write lock once, to
        # measure how long that takes, but writes nothing.
        from nimburion.backends.sqlite import checks  # no worker needs them

        if self._integrity is None:
            self._integrity = checks.IntegrityChecks(self.path)
        return [
            *await self._file.read(lambda db: checks.run_checks(db, self.path, self._file.mounts)),
            await self._integrity.run(),
            await checks.check_read_latency(self.ping, self._file.clock),
            await checks.check_write_lock(self._take_write_lock, self._file.clock),
        ]

    async def _take_write_lock(self) -> None:
        await self._file.write(lambda _: None, durable=False)

    async def migrate(self, *, dry_run: bool = False) -> list[str]:
        """Open the backend and return the migrations that opening ran, or would run."""
        if dry_run:
            return await asyncio.to_thread(opening.plan_migrations, self.path)
        await self.open()
        return list(self._file.migrations_done)

    async def grant(self, role: str) -> list[str]:
        raise make_no_roles_error(self.describe(), role)
