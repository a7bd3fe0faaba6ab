"""Handlers that block the event loop for long, on the first delivery of their job."""

from __future__ import annotations

import hashlib
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from nimburion.jobs import Context, Processor

LONG = 120.0

Note = Callable[..., Any]


def _asleep() -> None:
    """In a system call that a signal interrupts."""
    select.select([], [], [], LONG)


def _spinning() -> None:
    """In Python code."""
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        pass


def _in_c() -> None:
    """In C code that has let go of the interpreter's lock and looks for no signal."""
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 1_000_000_000)


BLOCKS = {"asleep": _asleep, "spinning": _spinning, "in_c": _in_c}


def register(processor: Processor, note: Note) -> None:
    """Give a processor a handler for each name of `BLOCKS`."""
    for name, block in BLOCKS.items():
        processor.register(name, _blocking(block, processor, note))


def _blocking(block: Callable[[], None], processor: Processor, note: Note) -> Any:
    async def run(ctx: Context, _: bytes) -> int:
        note(ctx, "start")
        if ctx.fence == 1:
            threading.Thread(target=_note_health, args=(ctx, processor, note), daemon=True).start()
            block()
        note(ctx, "end")
        return ctx.fence

    return run


def _note_health(ctx: Context, processor: Processor, note: Note) -> None:
    """Note the health once it is not the usual one."""
    never = threading.Event()
    while (health := processor.health()).state == "ready":
        never.wait(0.02)
    note(ctx, "health", state=health.state, loop=health.failures.get("loop"))
