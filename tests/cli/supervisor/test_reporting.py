"""One port and one service manager for all worker processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nimburion.jobs import Processor
from tests.cli.supervisor.conftest import APPLICATION, END_TIMEOUT, Supervised, is_alive
from tests.waiting import DEADLINE, block_until, wait_until

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the tests read the process table of Linux"
)

CONFIGURED = "from nimburion import config\n" + APPLICATION.replace(
    'Processor("sqlite:///jobs.db", concurrency=4, grace=1.0, session_ttl=5.0)',
    "Processor.from_config(config.load())",
)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Supervised]:
    """`nimburion worker` with two processes and a management server."""
    (tmp_path / "app.py").write_text(CONFIGURED)
    (tmp_path / "config.yaml").write_text(
        "jobs: {url: 'sqlite:///jobs.db', processes: 2, grace: 1}"
    )
    options = ["app:processor", "--server", "--server-port", "0"]
    supervised = Supervised(tmp_path, [sys.executable, "-m", "nimburion", "worker", *options], {})
    yield supervised
    supervised.close()


class Pages:
    """The pages of a management server."""

    def __init__(self, supervised: Supervised) -> None:
        (self._url,) = supervised.wait_for_log(r"management server: (\S+)")

    def read(self, path: str) -> tuple[int, str]:
        """Return the status and the text of a page."""
        try:
            with urllib.request.urlopen(self._url + path, timeout=DEADLINE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def read_metrics(self) -> dict[str, float]:
        """Return the values of all series."""
        _, page = self.read("/metrics")
        lines = [line for line in page.splitlines() if not line.startswith("#")]
        assert len({line.rpartition(" ")[0] for line in lines}) == len(lines), "a series twice"
        return {name: float(value) for name, _, value in (each.rpartition(" ") for each in lines)}


COMPLETED = 'nimburion_jobs_processed_total{queue="default",name="note",outcome="completed"}'


async def test_one_port_serves_all_workers_and_counters_never_decrease(
    command: Supervised, processor: Processor
) -> None:
    """Not when a worker is killed, and not when one is replaced."""
    pages = Pages(command)
    workers = command.wait_until_ready(2)
    block_until(lambda: pages.read("/health/startup")[0] == 200, "all workers have started")
    assert pages.read("/health/ready")[0] == 200
    counts = []
    async with processor:
        for number, expected in ((signal.SIGKILL, 20), (signal.SIGTERM, 40)):
            for _ in range(20):
                await processor.enqueue_raw("note", b"{}")
            await wait_until(
                lambda: pages.read_metrics().get(COMPLETED, 0) >= expected,  # noqa: B023
                "all are counted",
            )
            counts.append(pages.read_metrics()[COMPLETED])
            os.kill(workers[-1], number)
            workers = command.wait_until_ready(len(workers) + 1)
            counts.append(pages.read_metrics()[COMPLETED])
    assert counts == [20, 20, 40, 40]
    metrics = pages.read_metrics()
    assert metrics["nimburion_worker_processes"] == 2
    assert metrics["nimburion_worker_slots"] == 20
    assert metrics["nimburion_worker_processes_ended_total"] == 2
    assert len([name for name in metrics if name.startswith("nimburion_build_info")]) == 1
    assert command.stop() == 0


def test_an_application_with_another_backend_is_refused(tmp_path: Path) -> None:
    """The management server would show the jobs of the wrong one."""
    (tmp_path / "app.py").write_text(APPLICATION)
    options = ["app:processor", "--processes", "2", "--server", "--server-port", "0"]
    result = subprocess.run(
        [sys.executable, "-m", "nimburion", "worker", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=END_TIMEOUT,
    )
    assert result.returncode == 2
    assert "the application uses SQLite" in result.stderr
    assert "leave out --server" in result.stderr


def test_systemd_hears_of_all_workers(tmp_path: Path) -> None:
    """Readiness when both have started, the watchdog while both make progress, then the stop.

    No other process has the socket.
    """
    (tmp_path / "app.py").write_text(
        APPLICATION + "\nopen('variables', 'a').write(f\"{os.environ.get('NOTIFY_SOCKET')}\\n\")\n"
    )
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "notify"))
    receiver.settimeout(DEADLINE)
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "6000000"}
    options = ["app:processor", "--processes", "2"]
    arguments = [sys.executable, "-m", "nimburion", "worker", *options]
    supervised = Supervised(tmp_path, arguments, environment)

    def receive_until(wanted: str) -> list[str]:
        messages = [receiver.recv(4096).decode()]
        while wanted not in messages[-1]:
            messages.append(receiver.recv(4096).decode())
        return messages

    try:
        assert receive_until("READY=1") == ["READY=1"]
        assert "STATUS=ready; 0 running, 0 prefetched" in receive_until("WATCHDOG=1")[-1]
        supervised.send(signal.SIGTERM)
        assert "EXTEND_TIMEOUT_USEC=11000000" in receive_until("STOPPING=1")[-1]
        assert supervised.process.wait(END_TIMEOUT) == 0
    finally:
        receiver.close()
        supervised.close()
    assert (tmp_path / "variables").read_text() == "None\nNone\n"


@pytest.mark.skipif(
    subprocess.run(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "true"],
        capture_output=True,
        check=False,
    ).returncode
    != 0,
    reason="this host allows no namespaces of processes",
)
def test_process_1_of_a_namespace_stops_on_sigterm(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    arguments = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    options = ["app:processor", "--processes", "2"]
    supervised = Supervised(
        tmp_path, [*arguments, sys.executable, "-m", "nimburion", "worker", *options], {}
    )
    try:
        supervised.wait_until_ready(2)
        (supervisor,) = supervised.list_workers()  # the child of unshare
        workers = [
            int(each)
            for each in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        ]
        os.kill(supervisor, signal.SIGTERM)
        assert supervised.process.wait(END_TIMEOUT) == 0
        assert not any(map(is_alive, workers))
    finally:
        with suppress(ProcessLookupError):
            supervised.process.kill()
