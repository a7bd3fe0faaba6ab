"""One Redis or Valkey server, from its start to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.binaries import Binary
from tests.servers.certificates import Certificates, make_certificates
from tests.servers.ports import free_port
from tests.waiting import block_until

TRIES = 5
"""How many ports a first start tries: another process may take one between look and bind."""
LOAD_TIMEOUT = 120.0
"""Seconds in which it loads its data: an append-only file of 100,000 jobs, on a busy machine."""
HOUSEKEEPER = "housekeeper"
"""User and password of our own connections to a server that has users."""


class ServerFailed(Exception):
    """A server ended instead of starting; the message holds the end of its log."""


class Server:
    """A server on a free loopback port, with its data in a temporary folder.

    The folder and the port stay the same over `stop`, `kill` and `start`; `close` ends the server
    and removes the folder. Nothing is saved unless `appendonly` is set. `lines` are added to the
    configuration file as they are; `users` are lines for `user`, as in `"worker on >pw ~* +@all"`.
    With `tls`, there is no port without it.
    """

    def __init__(
        self,
        binary: Binary,
        *lines: str,
        appendonly: bool = False,
        maxmemory: str = "0",
        password: str | None = None,
        users: Sequence[str] = (),
        tls: bool = False,
    ) -> None:
        self.binary = binary
        self.password = password
        self.users = users
        self.port = free_port()
        self._temporary = tempfile.TemporaryDirectory(prefix="nb-")
        self.folder = Path(self._temporary.name)
        self.certificates = make_certificates(self.folder) if tls else None
        self._process: subprocess.Popen[bytes] | None = None
        self._emptying: redis.Redis | None = None
        self._settings = [
            f"appendonly {'yes' if appendonly else 'no'}",
            f"maxmemory {maxmemory}",
            'save ""',
            *(["enable-debug-command local"] if binary.version >= (7,) else []),
            *([f"requirepass {password}"] if password else []),
            *([f"user {HOUSEKEEPER} on >{HOUSEKEEPER} ~* &* +@all"] if users else []),
            *(f"user {user}" for user in users),
            *lines,
        ]

    # --- where it is ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What it is, for people: product, version, and TLS if it has that."""
        return self.binary.name + (" with TLS" if self.certificates else "")

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The URL for `RedisBackend`, with password and certificate when it needs them."""
        return self.url_for(None, self.password)

    def url_for(self, user: str | None, password: str | None) -> str:
        """The URL with which this user comes in."""
        who = f"{user or ''}:{password}@" if password else ""
        if self.certificates is None:
            return f"redis://{who}{self.address}/0"
        return f"rediss://{who}{self.address}/0?tls_ca={self.certificates.authority}"

    @property
    def socket(self) -> Path:
        """The Unix socket on which it listens too, unless it has TLS: `unix://{socket}?db=0`."""
        return self.folder / "socket"

    @property
    def log(self) -> str:
        """All that it has written to its log."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The process id of the server that runs, or of the last one that ran."""
        return self._started.pid

    @property
    def runs(self) -> bool:
        """Whether the process is there (a paused one is)."""
        return self._process is not None and self._process.poll() is None

    # --- its life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, and wait until it has loaded its data and answers."""
        assert not self.runs, "it runs already"
        if self._process is None:
            self._find_its_port()
        else:
            self._run()

    def stop(self) -> None:
        """Ask it to end (SIGTERM: what it has written to its append-only file is synced)."""
        self.resume()
        self._started.terminate()
        self._started.wait(timeout=20)

    def kill(self) -> None:
        """End it at once (SIGKILL); an append-only file keeps what was written before."""
        self._started.kill()
        self._started.wait()

    def restart(self) -> None:
        """Stop it and start it again, with the same port and folder."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Let it hang (SIGSTOP): connections stay, new ones are accepted by the kernel."""
        self._started.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._started.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        if self._emptying is not None:
            self._emptying.close()
        if self.runs:
            self.kill()
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

    def ask(self, *command: str | bytes | float) -> Any:
        """Send one command on a connection of its own, with every right; return the reply."""
        with self.client() as client:
            return client.execute_command(*command)

    def client(self, **options: Any) -> redis.Redis:
        """A client with every right, that tries nothing twice. Close it."""
        known: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "password": self.password,
            "socket_timeout": 10,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,  # replies have one shape, on every server and with every redis-py
        }
        if self.users:
            known |= {"username": HOUSEKEEPER, "password": HOUSEKEEPER}
        if self.certificates:
            known |= {"ssl": True, "ssl_ca_certs": str(self.certificates.authority)}
        return redis.Redis(**known | options)

    def empty(self) -> None:
        """Delete all data, on a connection that stays open: tests do this by the thousand."""
        if self._emptying is None:
            self._emptying = self.client(retry=Retry(NoBackoff(), 1))  # after a restart
        self._emptying.flushall()

    # --- steps ----------------------------------------------------------------------------------

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was not started"
        return self._process

    def _find_its_port(self) -> None:
        """Start for the first time, on another port when somebody was faster."""
        for last in (*[False] * (TRIES - 1), True):
            self._configure()
            try:
                self._run()
                return
            except ServerFailed:
                if last or "Address already in use" not in self.log:
                    raise
                self.port = free_port()

    def _configure(self) -> None:
        """Write the configuration. Not at later starts: the server itself may have rewritten it."""
        text = "\n".join([*self._listening(), *self._settings, ""])
        (self.folder / "conf").write_text(text)

    def _listening(self) -> list[str]:
        lines = ["bind 127.0.0.1", f"dir {self.folder}", "unixsocketperm 700"]
        if self.certificates is None:
            return [*lines, f"port {self.port}", f"unixsocket {self.socket}"]
        return [*lines, "port 0", f"tls-port {self.port}", *make_tls_settings(self.certificates)]

    def _run(self) -> None:
        """Start the process and wait for its answer."""
        self._spawn()
        block_until(self._answers, f"{self.name} answers on port {self.port}", LOAD_TIMEOUT)

    def _spawn(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary.path, str(self.folder / "conf"), *self._arguments()],
                cwd=self.folder,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _arguments(self) -> list[str]:
        return []

    def _answers(self) -> bool:
        """Tell whether this very process answers, not another one on the same port."""
        if not self.runs:
            raise ServerFailed(f"{self.name} ended at its start:\n{self.log[-2000:]}")
        try:
            with self.client() as client:
                return bool(client.ping()) and client.info("server")["process_id"] == self.pid
        except redis.ConnectionError:
            return False


def make_tls_settings(files: Certificates) -> list[str]:
    """The configuration of a server that shows a certificate and asks clients for none."""
    return [
        f"tls-ca-cert-file {files.authority}",
        f"tls-cert-file {files.certificate}",
        f"tls-key-file {files.key}",
        "tls-auth-clients optional",
    ]
