"""A disk that is full: new jobs are refused with one clear word, nothing is lost, and all goes on
by itself when there is room.

The disk is a small file system in memory that holds the database; the log of the server lies
elsewhere, as the page on production asks for. `temp_file_limit` and quotas of a role are no
substitute: they bound other things. Who may not mount one sees the same error from a trigger.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nimburion.core.errors import BackendFull, JobNotFound
from nimburion.core.job import NewJob, State
from tests.crash.flow import Record
from tests.crash.harness import ProcessHarness
from tests.servers.binaries import Binary
from tests.servers.postgres import PostgresServer
from tests.servers.unprivileged import UNPRIVILEGED_USER, make_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SIZE, MORE = "16m", "64m"
"""An empty database takes 8 MB of it."""
PAYLOAD = b'"%b"' % b"".join(b"%08x" % (2_654_435_761 * n % 2**32) for n in range(250))


@contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of that size."""
    with make_folder() as where:
        options = f"size={SIZE},uid={UNPRIVILEGED_USER},gid={UNPRIVILEGED_USER},mode=700"
        command = ["mount", "-t", "tmpfs", "-o", options, "nb-small", where]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            pytest.skip(f"this user may not mount a small disk: {ran.stderr.strip()}")
        try:
            yield Path(where)
        finally:
            subprocess.run(["umount", "-l", where], check=True)


def use_disk(server: PostgresServer, disk: Path) -> None:
    """Let its database for jobs lie there."""
    server.ask(f"CREATE TABLESPACE small LOCATION '{disk}'")
    server.ask("CREATE DATABASE jobs TEMPLATE template0 TABLESPACE small")
    server.database = "jobs"


def free_space(disk: Path) -> None:
    """Let the disk be larger."""
    subprocess.run(["mount", "-o", f"remount,size={MORE}", disk], check=True)


async def fill(harness: ProcessHarness) -> str:
    """Enqueue until the backend is full; the id of a job that it refused."""
    while True:
        ids = [f"long-{len(harness.jobs) + n}" for n in range(10)]
        try:
            await harness.backend.producing.enqueue(
                [NewJob(one, "long", "default", PAYLOAD) for one in ids]
            )
        except BackendFull:
            return ids[0]
        harness.jobs += ids


@pytest.mark.wide
async def test_a_full_disk_rejects_jobs_and_recovers(
    tmp_path: Path, postgres_binary: Binary, record_property: Record
) -> None:
    with small_disk() as disk, PostgresServer(postgres_binary) as server:
        use_disk(server, disk)
        async with ProcessHarness(tmp_path, server.url) as harness:
            await harness.enqueue("long")
            worker = harness.start_worker(session_ttl=20.0)
            await harness.wait_until_logged("start")
            refused = await fill(harness)
            free_space(disk)
            (harness.folder / "go-1").touch()
            with pytest.raises(JobNotFound):
                await harness.backend.reads.get_job(refused)
            assert (
                sum((await harness.backend.reads.count_jobs(budget=None)).values())
                == len(harness.jobs)
                > 300
            )
            await harness.wait_until_finished()
            assert (await harness.backend.reads.count_jobs(budget=None))[State.COMPLETED] == len(
                harness.jobs
            )
            begun = Counter(line["job"] for line in harness.find_events("start"))
            assert begun == Counter(harness.jobs), "lost, or run twice"
            assert worker.poll() is None
        server.close()
    record_property(
        f"{postgres_binary.name}: jobs until its disk was full, in total", len(harness.jobs)
    )


async def test_a_worker_waits_for_disk_space(tmp_path: Path, postgres_binary: Binary) -> None:
    """It can neither settle nor reserve; what it holds it keeps, and nothing runs twice."""
    with PostgresServer(postgres_binary) as server:
        async with ProcessHarness(tmp_path, server.url) as harness:
            server.ask(
                """CREATE FUNCTION full_() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100';
                END $$"""
            )
            await harness.enqueue("long")
            harness.start_worker(session_ttl=20.0)
            await harness.wait_until_logged("start")
            for table in ("job", "lease", "finished_job", "exchange_log"):
                server.ask(
                    f"CREATE TRIGGER full_ BEFORE INSERT ON nimburion.{table} "
                    "FOR EACH STATEMENT EXECUTE FUNCTION full_()"
                )
            (harness.folder / "go-1").touch()
            await harness.wait_until_logged("end")
            with pytest.raises(BackendFull, match="nothing was written"):
                await harness.backend.producing.enqueue([NewJob("more", "quick", "default", b"{}")])
            server.ask("DROP FUNCTION full_ CASCADE")
            await harness.check_all_completed(lost=0)
            assert len(harness.find_events("start")) == 1
