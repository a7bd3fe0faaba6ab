"""Runs several workers in one process, until it is asked to stop (SIGTERM).

    python -m benchmarks.chaos.several_workers

Each worker has a session and connections of its own. CHAOS_SESSIONS says how many there are.
"""

from __future__ import annotations

import asyncio
import os
import signal

from benchmarks.chaos.application import make_processor


async def run_workers(count: int) -> None:
    """Start the workers, wait for the signal, and stop them."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    processors = [make_processor() for _ in range(count)]
    await asyncio.gather(*(processor.start() for processor in processors))
    await stop.wait()
    await asyncio.gather(*(processor.close() for processor in processors))


if __name__ == "__main__":
    asyncio.run(run_workers(int(os.environ["CHAOS_SESSIONS"])))
