"""The page about Django, followed block by block on Redis and PostgreSQL.

`tests/docs/test_examples.py` follows it on SQLite, and compares what it prints.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from tests.docs.pages import Block, read
from tests.house.tree import ROOT
from tests.integrations.django.test_project import make_postgres
from tests.servers.fixtures import StartedServers
from tests.servers.postgres import PostgresServer
from tests.servers.server import Server

PAGE = read(ROOT / "docs" / "how-to" / "django.md")
pytestmark = [pytest.mark.slow, pytest.mark.wide]  # 11 s of CPU time


def test_the_page_leads_to_a_job_on_redis(tmp_path: Path, valkey: Server) -> None:
    url = f"{valkey.url}?namespace=how-to"
    printed = follow_page(
        tmp_path, f'NIMBURION = globals().get("NIMBURION", {{}}) | {{"url": "{url}"}}'
    )
    assert "welcome  mail   completed" in printed
    with Redis.from_url(valkey.url) as client:
        assert list(client.scan_iter("*{how-to}*")), "the commands must have used this server"


def test_the_page_leads_to_a_job_on_postgresql(
    tmp_path: Path, started_servers: StartedServers
) -> None:
    server = started_servers["postgres"]
    assert isinstance(server, PostgresServer)
    server.ask("CREATE DATABASE how_to")
    database = make_postgres(server) | {"NAME": "how_to"}
    printed = follow_page(tmp_path, f"DATABASES = {{'default': {database}}}")
    assert "welcome  mail   completed" in printed


def follow_page(folder: Path, choice: str) -> str:
    """Do what the page says, with another database or backend; return what the commands print."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    printed = ""
    settings = folder / "mysite" / "settings.py"
    for block in PAGE.blocks:
        if block.is_command:
            ended = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=folder,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=50,
                check=False,
            )
            assert ended.returncode == 0, f"{PAGE.name}:{block.line}: {ended.stderr}"
            printed += ended.stdout
        else:
            write_block(folder, block)
        # A later block of the page assigns the setting again.
        if settings.exists() and not settings.read_text().endswith(choice):
            settings.write_text(f"{settings.read_text()}\n{choice}")
    return printed


def write_block(folder: Path, block: Block) -> None:
    """Write the file of a block, or add to it. What the page says about SQLite is left out."""
    if block.file is not None:
        (folder / block.file).write_text(block.text + "\n")
    elif block.extended_file is not None and "transaction_mode" not in block.text:
        file = folder / block.extended_file
        file.write_text(f"{file.read_text()}\n{block.text}\n")
