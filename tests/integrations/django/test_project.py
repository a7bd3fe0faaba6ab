"""A Django project runs its own tests: jobs in its database, and jobs on Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import django
import pytest
import sqlalchemy

from tests.servers.fixtures import StartedServers
from tests.servers.postgres import PostgresServer
from tests.servers.server import Server

ROOT = Path(__file__).parents[3]
PROJECT = "tests.integrations.django.project"

LABELS = [f"{PROJECT}.shop", *([f"{PROJECT}.tasked"] if django.VERSION >= (6,) else [])]
"""The tests to run: those of tasks need Django 6, which is for Python 3.12 and newer."""


def check_project(
    database: dict[str, Any], jobs: dict[str, Any] | None = None, labels: Sequence[str] = LABELS
) -> None:
    """Run `manage.py test` of the project with this database and this setting NIMBURION."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": f"{PROJECT}.settings",
        "NB_DJANGO_DATABASE": json.dumps(database),
        **({} if jobs is None else {"NB_DJANGO_JOBS": json.dumps(jobs)}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "django", "test", "-v0", "--noinput", *labels],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 0 tests" not in done.stderr


def make_sqlite(folder: Path) -> dict[str, Any]:
    """Return a database in a file, which a test run needs too to share it with the jobs."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(folder / "app.db"),
        "TEST": {"NAME": str(folder / "test.db")},
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    }


def test_jobs_in_a_sqlite_file(tmp_path: Path) -> None:
    check_project(make_sqlite(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.wide
def test_jobs_on_redis(tmp_path: Path, valkey: Server) -> None:
    check_project(make_sqlite(tmp_path), {"url": f"{valkey.url}?namespace=django"})


def test_the_outbox_of_jobs_on_redis(tmp_path: Path, valkey: Server) -> None:
    jobs = {"url": f"{valkey.url}?namespace=outboxed", "outbox": True}
    check_project(make_sqlite(tmp_path), jobs, [f"{PROJECT}.outboxed"])


@pytest.mark.wide
def test_the_outbox_in_postgresql(
    tmp_path: Path, valkey: Server, started_servers: StartedServers
) -> None:
    server = started_servers["postgres"]
    assert isinstance(server, PostgresServer)
    jobs = {"url": f"{valkey.url}?namespace=outboxed_2", "outbox": True}
    check_project(make_postgres(server), jobs, [f"{PROJECT}.outboxed"])


@pytest.mark.wide
def test_jobs_in_postgresql(started_servers: StartedServers) -> None:
    server = started_servers["postgres"]
    assert isinstance(server, PostgresServer)
    check_project(make_postgres(server))


def make_postgres(server: PostgresServer) -> dict[str, Any]:
    """Return a database of the server; Django makes another one beside it for its tests."""
    parts = sqlalchemy.make_url(server.url_for("postgres"))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.database,
        "USER": parts.username,
        "HOST": parts.host or dict(parts.query)["host"],
        "PORT": str(parts.port),
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
    }
