"""PgBouncer in transaction mode, in front of a PostgreSQL server of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from tests.servers.binaries import Binary
from tests.servers.ports import free_port
from tests.servers.postgres import OWNER, PostgresServer, environment
from tests.servers.server import ServerFailed
from tests.servers.unprivileged import make_folder, make_run_as
from tests.waiting import block_until


class PgBouncer:
    """A pooler whose `url` leads to its server's database; `server` is the way around it.

    Every setting is PgBouncer's own default but the mode; `settings` are lines of its file.
    """

    def __init__(self, binary: Binary, server: PostgresServer, *settings: str) -> None:
        self.binary = binary
        self.server = server
        self.port = free_port()
        self.name = f"{binary.name} before {server.name}"
        self._settings = settings
        self._temporary = make_folder()
        self.folder = Path(self._temporary.name)
        self._process: subprocess.Popen[bytes] | None = None

    # --- where it is ----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL for `PostgresBackend`."""
        return self.url_for(OWNER)

    def url_for(self, user: str, password: str = "", database: str | None = None) -> str:
        """The URL with which this user comes in."""
        direct = self.server.url_for(user, password, database)
        return direct.replace(f":{self.server.port}/", f":{self.port}/")

    @property
    def database(self) -> str:
        """Where `url` leads to."""
        return self.server.database

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    # --- its life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server if it does not run, and the pooler; wait until both take connections."""
        if not self.server.runs:
            self.server.start()
        self._configure()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary.path, str(self.folder / "ini")],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **make_run_as(),
            )
        block_until(self._listens, f"{self.name} takes connections on port {self.port}")

    def stop(self) -> None:
        """End the pooler: every client is cut."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)  # SIGTERM waits for clients to leave
        self._process.wait(timeout=20)

    def close(self) -> None:
        """End both and remove their folders."""
        if self._process is not None and self.runs:
            self._process.kill()
            self._process.wait()
        self._temporary.cleanup()
        self.server.close()

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
        """Close it."""
        self.close()

    # --- talking to it --------------------------------------------------------------------------

    def ask(
        self, statement: str, parameters: Sequence[Any] = (), *, database: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, past the pooler; its rows."""
        return self.server.ask(statement, parameters, database=database)

    def empty(self) -> None:
        """Put a new empty database in the place of the one before."""
        self.server.empty()
        block_until(self._leads_through, f"{self.name} has seen that its connections were cut")

    def forget(self) -> None:
        """Leave the tables of a backend as they were made."""
        self.server.forget()
        block_until(self._leads_through, f"{self.name} has seen that its connections were cut")

    # --- steps ----------------------------------------------------------------------------------

    def _leads_through(self) -> bool:
        """Whether a client gets an answer; not from a connection that it does not know is cut."""
        try:
            with psycopg.connect(self.url, connect_timeout=5) as client:
                client.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        except psycopg.InternalError:  # a connection that was cut between two answers
            return False
        return True

    def _configure(self) -> None:
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={self.server.port}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = trust",
            f"auth_file = {self.folder / 'users'}",
            "pool_mode = transaction",
            *self._settings,
            "",
        ]
        (self.folder / "users").write_text(f'"{OWNER}" ""\n')
        (self.folder / "ini").write_text("\n".join(lines))

    def _listens(self) -> bool:
        if not self.runs:
            log = (self.folder / "log").read_text(errors="replace")
            raise ServerFailed(f"{self.name} ended at its start:\n{log[-2000:]}")
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
