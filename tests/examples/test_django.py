"""The example of Django runs its own tests on each durable backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT
from tests.integrations.django.test_project import make_postgres
from tests.servers.fixtures import StartedServers
from tests.servers.postgres import PostgresServer
from tests.servers.server import Server


def check_example(folder: Path, **environment: str) -> None:
    """Run `manage.py test` of the example; its files go to `folder`."""
    done = subprocess.run(
        [sys.executable, "manage.py", "test", "-v0", "--noinput"],
        cwd=ROOT / "examples" / "django",
        env={**os.environ, "DATABASE_FILE": str(folder / "db.sqlite3"), **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 2 tests" in done.stderr


def test_orders_on_sqlite(tmp_path: Path) -> None:
    check_example(tmp_path)


@pytest.mark.wide
def test_orders_with_jobs_on_redis(tmp_path: Path, valkey: Server) -> None:
    check_example(tmp_path, NIMBURION_JOBS__URL=f"{valkey.url}?namespace=django-example")


@pytest.mark.wide
def test_orders_on_postgresql(tmp_path: Path, started_servers: StartedServers) -> None:
    server = started_servers["postgres"]
    assert isinstance(server, PostgresServer)
    database = make_postgres(server)
    names = ("NAME", "HOST", "PORT", "USER")
    check_example(tmp_path, **{f"DATABASE_{name}": str(database[name]) for name in names})
