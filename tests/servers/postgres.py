"""One PostgreSQL server, from its start to its end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psycopg

from tests.servers.binaries import Binary
from tests.servers.ports import free_port
from tests.servers.postgres_data import make_data
from tests.servers.server import TRIES, ServerFailed
from tests.servers.unprivileged import make_folder, make_reachable, make_run_as
from tests.waiting import block_until

OWNER = "postgres"
"""The superuser; it needs no password unless the server asks everybody for one."""
QUICK = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")
"""For servers whose data nobody will miss."""

_SWEEP = """
DO $$ DECLARE
    one name;
BEGIN
    SET LOCAL lock_timeout = '5s';
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
    FOR one IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', one);
    END LOOP;
    CREATE SCHEMA public;
END $$"""
"""Five times as fast as a new database."""

_MAKE_FORGET = """
DO $make$ DECLARE
    ours regnamespace := to_regnamespace('nimburion');
    deletes text;
BEGIN
    SELECT string_agg(format('DELETE FROM %s;', CAST(oid AS regclass)), ' ') INTO deletes
    FROM pg_class
    WHERE relnamespace = ours AND relkind IN ('r', 'p') AND NOT relispartition
        AND relname NOT IN ('meta', 'horizon', 'count_cursor');
    EXECUTE format($text$
        CREATE OR REPLACE FUNCTION pg_temp.forget() RETURNS void LANGUAGE plpgsql AS $body$ DECLARE
            ours regnamespace := to_regnamespace('nimburion');
            one regclass;
        BEGIN
            FOR one IN
                SELECT oid FROM pg_class
                WHERE relnamespace = ours AND relkind = 'r' AND pg_relation_size(oid) > 1000000
                    AND relname NOT IN ('meta', 'horizon', 'count_cursor')
            LOOP
                EXECUTE format('TRUNCATE %%s', one);
            END LOOP;
            %s
            PERFORM setval(oid, 1, false) FROM pg_class
            WHERE relnamespace = ours AND relkind = 'S';
            IF to_regclass('nimburion.horizon') IS NOT NULL THEN
                UPDATE nimburion.horizon SET finished_at = -9223372036854775808, seq = 0
                WHERE finished_at > -9223372036854775808;
                UPDATE nimburion.count_cursor
                SET upto = -9223372036854775808, xid = 9223372036854775807
                WHERE upto > -9223372036854775808;
            END IF;
        END $body$
    $text$, deletes);
END $make$"""
"""Makes a function that empties the tables of a backend: twenty times as fast as to make them anew.
Its statements are planned once."""
_CUT = """
SELECT to_regnamespace('nimburion')::oid, (
    SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND state IS DISTINCT FROM 'idle'
)"""
"""Cuts those who run statements, and returns the schema if there is one."""


class PostgresServer:
    """A server on a free loopback port, with its data in a temporary folder.

    Folder and port stay the same over `stop`, `kill` and `start`; `close` ends the server and
    removes the folder. Nothing is synced unless `durable`. `settings` are lines of
    `postgresql.conf`; `hba` are lines that stand first in `pg_hba.conf`; behind them everybody
    comes in without a password. As root, the server runs as nobody.
    """

    def __init__(
        self,
        binary: Binary,
        *settings: str,
        durable: bool = False,
        hba: Sequence[str] = (),
        name: str = "",
    ) -> None:
        self.binary = binary
        self.port = free_port()
        self.name = binary.name + (f" {name}" if name else "")
        self.database = OWNER
        """Where `url` leads to; `empty` and `forget` make new ones."""
        self._swept = OWNER
        self._temporary = make_folder()
        self.folder = Path(self._temporary.name)
        self._names = "jobs"
        self._kept_database = ""
        self._forgetting: psycopg.Connection | None = None
        self._forgotten_schema: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._hba = hba
        self._databases = 0
        self._settings = [
            "shared_buffers=64MB",
            "max_connections=120",
            "dynamic_shared_memory_type=mmap",  # files in its folder, gone with it after a kill too
            "listen_addresses=127.0.0.1",
            *(() if durable else QUICK),
            *settings,
        ]

    # --- where it is ----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL for `PostgresBackend`."""
        return self.url_for(OWNER)

    def url_for(self, user: str, password: str = "", database: str | None = None) -> str:
        """The URL with which this user comes in."""
        who_ = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"postgresql://{who_}@127.0.0.1:{self.port}/{database or self.database}"

    @property
    def socket(self) -> Path:
        """The folder of its Unix socket."""
        return self.folder

    @property
    def data(self) -> Path:
        """The folder that holds its data."""
        return self.folder / "data"

    @property
    def log(self) -> str:
        """All that it has written to its log."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        """The process id of the postmaster that runs, or of the last one that ran."""
        return self._started.pid

    @property
    def runs(self) -> bool:
        """Whether the postmaster is there."""
        return self._process is not None and self._process.poll() is None

    # --- its life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, and wait until it takes connections. The first time, make its data."""
        assert not self.runs, "it runs already"
        first = not self.data.exists()
        if first:
            self._make_data()
        for last in (*[False] * (TRIES - 1 if first else 0), True):
            try:
                self._run()
                return
            except ServerFailed:
                if last or "Address already in use" not in self.log:
                    raise
                self.port = free_port()

    def stop(self) -> None:
        """Ask it to end (SIGINT: clients are cut, the data is written)."""
        self._end(signal.SIGINT)

    def stop_immediately(self) -> None:
        """End it without a checkpoint (SIGQUIT): it recovers from its log when it starts."""
        self._end(signal.SIGQUIT)

    def kill(self) -> None:
        """End the postmaster at once (SIGKILL); its children notice."""
        children = self._children()
        self._started.kill()
        self._started.wait()
        for pid in children:
            _signal(pid, signal.SIGKILL)
        block_until(lambda: not any(map(_is_there, children)), "the server's children are gone")

    def restart(self) -> None:
        """Stop it and start it again, with the same port and folder."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it hang, with every process it has (SIGSTOP)."""
        for pid in (self.pid, *self._children()):
            _signal(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        for pid in (self.pid, *self._children()):
            _signal(pid, signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        if self._forgetting is not None:
            self._forgetting.close()
        if self.runs:
            self.stop_immediately()  # a kill would leave shared memory behind
        self._temporary.cleanup()

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
        """End it and remove its folder."""
        self.close()

    # --- talking to it --------------------------------------------------------------------------

    def ask(
        self, statement: str, parameters: Sequence[Any] = (), *, database: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement as superuser on a connection of its own; its rows."""
        with psycopg.connect(
            self.url_for(OWNER, database=database), autocommit=True, connect_timeout=10
        ) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def empty(self) -> None:
        """Delete all that is in the database, and cut who is connected; the first time, and where
        that does not work, put a new database in its place."""
        self.database = self._swept
        if self.database == OWNER:
            self._renew()
        try:
            self.ask(_SWEEP)
        except psycopg.Error:
            self._renew()

    def forget(self) -> None:
        """Lead `url` to a database of its own in which the tables of a backend, once made, stay;
        delete all that is in them, and cut who is connected."""
        if self._forgetting is None:
            self._kept_database = f"{self._names}_kept"
            self.ask(f"CREATE DATABASE {self._kept_database} TEMPLATE template0", database=OWNER)
            url = self.url_for(OWNER, database=self._kept_database)
            self._forgetting = psycopg.connect(url, autocommit=True, connect_timeout=10)
            self._forgetting.execute("SET lock_timeout = '5s'")
        self.database = self._kept_database
        row = self._forgetting.execute(_CUT).fetchone()
        schema = row[0] if row else None
        if schema is not None:
            if schema != self._forgotten_schema:
                self._forgetting.execute(_MAKE_FORGET)
                self._forgotten_schema = schema
            self._forgetting.execute("SELECT pg_temp.forget()")

    def _renew(self) -> None:
        before, self._databases = self._swept, self._databases + 1
        self.database = self._swept = f"{self._names}_{self._databases}"
        self.ask(f"CREATE DATABASE {self.database} TEMPLATE template0", database=OWNER)
        if before != OWNER:
            self.ask(f"DROP DATABASE {before} WITH (FORCE)", database=OWNER)

    def follower(self, *settings: str) -> PostgresServer:
        """A standby of this server, not started yet."""
        one = PostgresServer(self.binary, *settings, name="standby")
        self.run_tool(
            "pg_basebackup", "-D", str(one.data), "-R", "-X", "stream", "-c", "fast",
            "-d", self.url_for(OWNER), "--no-sync",
        )  # fmt: skip
        return one

    def promote(self) -> None:
        """Make a standby the primary."""
        self.ask("SELECT pg_promote()", database=OWNER)

    # --- steps ----------------------------------------------------------------------------------

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was not started"
        return self._process

    def _make_data(self) -> None:
        options = ["-U", OWNER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        make_data(
            self.binary,
            self.data,
            lambda: self.run_tool("initdb", *options, "-D", str(self.data)),
        )
        hba = self.data / "pg_hba.conf"
        hba.write_text("\n".join([*self._hba, hba.read_text()]))

    def run_tool(self, program: str, *arguments: str) -> str:
        """Run a program that came with the server, as the server's user; what it printed."""
        ran = subprocess.run(
            [str(self._program(program)), *arguments],
            cwd=self.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **make_run_as(),
        )
        if ran.returncode != 0:
            raise ServerFailed(f"{program} failed: {ran.stderr[-2000:]}")
        return ran.stdout

    def _program(self, name: str) -> Path:
        return make_reachable(self.binary.path).with_name(name)

    def _run(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._program("postgres")),
                    *("-D", str(self.data), "-p", str(self.port), "-k", str(self.folder)),
                    *(part for line in self._settings for part in ("-c", line)),
                ],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **make_run_as(),
            )
        block_until(self._answers, f"{self.name} takes connections on port {self.port}")

    def _answers(self) -> bool:
        """Tell whether this very server answers, not another one on the same port."""
        if not self.runs:
            raise ServerFailed(f"{self.name} ended at its start:\n{self.log[-2000:]}")
        file = self.data / "postmaster.pid"
        lines = file.read_text().splitlines() if file.exists() else []
        return (
            len(lines) > 7
            and lines[0] == str(self.pid)
            and lines[7].strip() in {"ready", "standby"}
        )

    def _end(self, how: signal.Signals) -> None:
        self.resume()
        self._started.send_signal(how)
        self._started.wait(timeout=60)

    def _children(self) -> list[int]:
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        if path.exists():
            return [int(pid) for pid in path.read_text().split()]
        found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, check=False)
        return [int(pid) for pid in found.stdout.split()]


class BorrowedPostgres(PostgresServer):
    """A server that somebody else has started on this host, and will end: tests that run tests."""

    def __init__(self, binary: Binary, port: int) -> None:
        super().__init__(binary)
        self.port = port
        self._names = f"jobs_{os.getpid()}"

    def start(self) -> None:
        """It runs."""

    def close(self) -> None:
        """Leave nothing there."""
        for one in {self._swept, self._kept_database} - {OWNER, ""}:
            self.ask(f"DROP DATABASE {one} WITH (FORCE)", database=OWNER)
        super().close()


def environment() -> Mapping[str, str]:
    """Ours, without what would lead PostgreSQL's programs elsewhere."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**ours, "LC_ALL": "C", "TZ": "UTC"}


def _signal(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return


def _is_there(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody asked for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
