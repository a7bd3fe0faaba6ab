"""How children find the processor, and what happens when they cannot."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import ConfigurationError, DefinitionError
from nimburion.core.job import State
from nimburion.jobs import Processor, job
from nimburion.jobs.worker.children.import_path import find_import_path
from tests.jobs.worker.children import application as app
from tests.jobs.worker.children.conftest import Make
from tests.jobs.worker.test_worker import lose
from tests.waiting import DEADLINE, wait_until, wait_until_finished

SCRIPT = """
import asyncio
from nimburion.jobs import Processor, job

@job(execution="process")
def name() -> str:
    return __name__

processor = Processor("memory://")
processor.register(name)

async def main():
    async with processor:
        await processor.start()
        job_id = await processor.enqueue(name.job(), max_retries=0)
        try:
            print(await processor.wait(job_id, 3))
        except Exception as error:
            print(type(error).__name__)

"""
GUARD = 'if __name__ == "__main__":\n    asyncio.run(main())\n'


def test_a_global_processor_of_a_module_is_found() -> None:
    found = find_import_path(app.processor, app.processor.import_path)
    assert found == (f"{app.__name__}:processor", None)


def test_the_main_module_is_found_under_its_own_name_beside_multiprocessing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`import multiprocessing` gives the main module the second name `__mp_main__`."""
    main = ModuleType("__main__")
    main.__spec__ = ModuleSpec("application.worker", None)
    vars(main)["processor"] = processor = Processor(MemoryBackend())
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(sys.modules, "__mp_main__", main)
    assert find_import_path(processor, processor.import_path) == (
        "application.worker:processor",
        None,
    )


def test_another_processor_is_not_found() -> None:
    assert find_import_path(Processor(MemoryBackend()), None) is None


@pytest.mark.parametrize("path", ["", "module", "module:", ":name", "a b:c", "module:name()", 3])
def test_an_import_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="module:name"):
        Processor(MemoryBackend(), import_path=path)


async def test_a_worker_that_a_child_cannot_find_does_not_start() -> None:
    @job(execution="process")
    def work() -> None: ...

    processor = Processor(MemoryBackend())
    processor.register(work)
    with pytest.raises(DefinitionError, match="import_path="):
        await processor.start()
    await processor.close()


@pytest.mark.parametrize(
    "path", ["no_such_module:processor", f"{app.__name__}:missing", f"{app.__name__}:Odd"]
)
async def test_a_job_waits_while_no_child_can_start(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    processor = Processor(MemoryBackend(), import_path=path)
    processor.register(app.add)
    await processor.start()
    job_id = await processor.enqueue(app.add.job(1, 2))

    async def is_released() -> bool:
        return (await processor.get_status(job_id)).state is State.SCHEDULED

    await wait_until(is_released, "the job is released")
    record = await processor.backend.reads.get_job(job_id)
    assert (record.failures, record.lost) == (0, 0)
    assert any("a child process could not start" in r.getMessage() for r in caplog.records)
    await processor.close()


async def test_a_job_that_the_child_does_not_know_is_released(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    @job(execution="process")
    def unknown() -> None: ...

    processor = make()
    processor.register(unknown)
    await processor.start()
    job_id = await processor.enqueue(unknown.job())

    async def is_released() -> bool:
        return (await processor.get_status(job_id)).state is State.SCHEDULED

    await wait_until(is_released, "the job is released")
    assert any("has no job 'unknown'" in r.getMessage() for r in caplog.records)


def run_script(folder: Path, text: str) -> str:
    script = folder / "program.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=50, check=True
    ).stdout


def test_a_program_is_run_under_another_name(tmp_path: Path) -> None:
    assert run_script(tmp_path, SCRIPT + GUARD) == "__nimburion_main__\n"


def test_a_program_without_a_guard_runs_no_second_worker(tmp_path: Path) -> None:
    assert run_script(tmp_path, f"{SCRIPT}\nasyncio.run(main())\n") == "WaitTimeout\n"


async def test_a_suspect_runs_in_a_child() -> None:
    backend = MemoryBackend()
    processor = Processor(backend, import_path=f"{app.__name__}:processor", children=1)
    processor.register(app.die_in_worker, app.run_anywhere)
    await processor.open()
    suspect = await processor.enqueue(app.die_in_worker.job(), max_retries=0)
    for _ in range(2):
        await lose(backend, "die_in_worker")
    await processor.start()
    record = await wait_until_finished(processor, suspect)
    assert (record.state, record.history[-1].type) == (State.FAILED, "ChildProcessDied")
    other = await processor.enqueue(app.run_anywhere.job())
    assert await processor.wait(other, DEADLINE) is not None
    await processor.close()


async def test_a_suspect_that_no_child_can_run_runs_in_the_worker() -> None:
    ran: list[int] = []

    @job
    def local() -> None:
        ran.append(1)

    backend = MemoryBackend()
    processor = Processor(backend, import_path=f"{app.__name__}:processor", children=1)
    processor.register(local)
    await processor.open()
    suspect = await processor.enqueue(local.job(), timeout=30)
    for _ in range(2):
        await lose(backend, "local")
    await processor.start()
    assert (await wait_until_finished(processor, suspect)).state is State.COMPLETED
    assert ran == [1]
    await processor.close()
