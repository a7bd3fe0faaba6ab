"""What a scene tells the peer's module, in all of the peer's processes: by environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Setting:
    """The server, default or best setting, and the file that pickups are noted in."""

    url: str
    best: bool
    notes: str
    server: int
    """The server's process."""

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None, "the benchmark's server has a port of its own"
        return port

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def file(self) -> str:
        """The path of a database file."""
        return self.url.removeprefix("sqlite:///")

    @property
    def user(self) -> str:
        return urlsplit(self.url).username or ""

    @property
    def database(self) -> str:
        return urlsplit(self.url).path.removeprefix("/")


def setting(environment: Mapping[str, str] = os.environ) -> Setting:
    """The options of this process."""
    return Setting(
        url=environment["BENCH_URL"],
        best=environment.get("BENCH_BEST") == "1",
        notes=environment.get("BENCH_NOTES", os.devnull),
        server=int(environment.get("BENCH_SERVER", "0")),
    )
