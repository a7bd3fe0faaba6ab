"""Waits for the end of a thread without blocking the event loop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress


async def join_thread(thread: threading.Thread) -> None:
    """Return when a thread has ended.

    A thread of its own waits. The threads of the loop's default executor may all be occupied, by
    handlers that call `asyncio.to_thread`.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def wait() -> None:
        thread.join()
        with suppress(RuntimeError):  # the loop is closed: no task waits any more
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait, name="nimburion-join", daemon=True).start()
    await ended.wait()
