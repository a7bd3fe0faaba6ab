"""`nimburion worker` called by a program that has other work to do: only the program may end it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, threading
from nimburion.cli import main
from nimburion.jobs import Processor

processor = Processor("sqlite:///jobs.db", grace=0.1)


@processor.job
def never_return() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()


if __name__ == "__main__":
    processor.sync.enqueue(never_return.job())
    processor.sync.close()
    try:
        main(["worker", "program:processor", *sys.argv[1:]])
    except SystemExit as ended:
        print("the command ended with", ended.code or 0)
"""


@pytest.mark.parametrize(
    "options", [[], ["--server", "--server-port", "0"]], ids=["alone", "server"]
)
def test_a_handler_that_does_not_return_leaves_the_process_to_its_program(
    options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = subprocess.run(
        [sys.executable, "program.py", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, "the command ended with 0\n"), ended.stderr
