"""`nimburion dashboard`, and the dashboard of the demo."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from nimburion.cli.commands.demo.run import serve_dashboard
from nimburion.core.job import NewJob
from nimburion.jobs import Processor

COMMAND = [sys.executable, "-m", "nimburion", "dashboard"]
JSON = {"Accept": "application/json"}


async def test_one_command_serves_the_dashboard_of_a_file(tmp_path: Path) -> None:
    async with Processor(f"sqlite:///{tmp_path}/jobs.db") as processor:
        await processor.backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
    with socket.socket() as other:  # the configured port is in use
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        (tmp_path / "config.yaml").write_text(f"server: {{port: {taken}}}\n", encoding="utf-8")
        with subprocess.Popen(  # noqa: ASYNC220 - nothing else runs here
            [*COMMAND, "--backend", f"sqlite:///{tmp_path}/jobs.db"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            address = process.stdout.readline().strip()
            async with httpx.AsyncClient(timeout=60) as client:
                page = await client.get(f"{address}/queues")
                # A page does not wait long for the backend: it may come without values.
                data = await client.get(f"{address}/queues", headers=JSON)
            process.send_signal(signal.SIGTERM)
    assert str(taken) not in address
    assert address.startswith("http://127.0.0.1:")
    assert "<h1>Queues</h1>" in page.text
    assert [queue["name"] for queue in data.json()["queues"]] == ["mail"]
    assert process.returncode == 0


def test_a_file_that_does_not_exist_is_not_created(tmp_path: Path) -> None:
    result = subprocess.run(
        [*COMMAND, "--backend", "sqlite:///none.db"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3
    assert "none.db does not exist" in result.stderr
    assert list(tmp_path.iterdir()) == []


async def test_the_demo_serves_its_dashboard(tmp_path: Path) -> None:
    async with serve_dashboard(tmp_path) as address, httpx.AsyncClient() as client:
        assert (await client.get(address)).status_code == 200
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(address)
