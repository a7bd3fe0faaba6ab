"""A program that runs a worker, with handlers that end its process while neighbours run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import NoReturn

from nimburion.jobs import Context, Processor

EXIT_CODE = 7

_all_run = threading.Barrier(3)
"""Passed when the harmful handler and both neighbours run."""


def exit_in_thread(_: Context, __: bytes) -> NoReturn:
    _all_run.wait()
    os._exit(EXIT_CODE)


async def exit_on_loop(_: Context, __: bytes) -> None:
    await asyncio.to_thread(_all_run.wait)
    os._exit(EXIT_CODE)


async def run_out_of_memory(_: Context, __: bytes) -> None:
    """End as the kernel ends a process when there is no more memory."""
    await asyncio.to_thread(_all_run.wait)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_in_thread(_: Context, __: bytes) -> None:
    _all_run.wait()
    threading.Event().wait()


async def wait_on_loop(_: Context, __: bytes) -> None:
    await asyncio.to_thread(_all_run.wait)
    await asyncio.Event().wait()


HARMFUL = {
    "exit on the loop": exit_on_loop,
    "exit in a thread": exit_in_thread,
    "out of memory": run_out_of_memory,
}


async def main(url: str, how: str) -> None:
    processor = Processor(url)
    processor.register("harmful", HARMFUL[how])
    processor.register("in_thread", wait_in_thread)
    processor.register("on_loop", wait_on_loop)
    await processor.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
