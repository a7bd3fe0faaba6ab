"""The event loop of a process that nimburion runs."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable

_log = logging.getLogger("nimburion.worker")


def find_fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the loop factory of uvloop if it is installed (extra `fast`); None for the standard
    loop."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


EXIT_TIMEOUT = 3.0
"""Seconds that a process has to end after its worker has stopped and its backend is closed."""
_LOG_TIMEOUT = 0.5
"""Seconds to wait for a log record: a thread that does not end may hold a lock of logging."""


def limit_exit(
    loop: asyncio.AbstractEventLoop, seconds: float = EXIT_TIMEOUT
) -> Callable[[], None]:
    """End this process after `seconds`, unless it has ended until then.

    Call it when the work is done. asyncio waits for tasks that catch their cancellation, and Python
    for threads, such as those of `asyncio.to_thread`, without a limit. So a task or a thread that a
    handler left behind would keep the process for ever.

    Returns a function that lifts the limit. Call it when the loop is closed, if the process has
    other work to do.
    """
    lifted = threading.Event()
    threading.Thread(
        target=_end_process, args=(loop, seconds, lifted), name="nimburion-exit", daemon=True
    ).start()
    return lifted.set


def _end_process(loop: asyncio.AbstractEventLoop, seconds: float, lifted: threading.Event) -> None:
    if lifted.wait(seconds):
        return
    log = threading.Thread(target=_log_left, args=(loop,), daemon=True)
    log.start()
    log.join(_LOG_TIMEOUT)
    os._exit(0)


def _log_left(loop: asyncio.AbstractEventLoop) -> None:
    left = [f"thread {each.name}" for each in threading.enumerate() if _keeps_process(each)]
    left += [f"task {each.get_name()}" for each in asyncio.all_tasks(loop)]
    _log.warning(
        "the worker has stopped, and what handlers left behind does not end (%s); the process ends "
        "without it. Let handlers await their tasks, and give blocking calls a timeout",
        ", ".join(left) or "an exit function",
    )
    logging.shutdown()


def _keeps_process(thread: threading.Thread) -> bool:
    return not thread.daemon and thread is not threading.main_thread()
