"""The stacks of running handlers: files, lines and functions, and no values."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from nimburion.jobs.worker.attempt.attempt import Attempt

if TYPE_CHECKING:
    from nimburion.core.stacks import Place


def read_stack(attempt: Attempt, loop_thread: int) -> tuple[Place, str]:
    """Return where the handler of an attempt runs, and its stack, as far as it can be found.

    Safe from any thread. `loop_thread` is the thread of the worker's event loop.
    """
    call = attempt.find_thread_call()
    if call is not None:
        return "thread", format_frames(find_thread_frames(call.thread))
    task = attempt.task
    frames = [] if task is None else find_task_frames(task, loop_thread)
    return "event loop", format_frames(frames)


def find_thread_frames(thread: int) -> list[FrameType]:
    """Return the frames of a thread, the outermost first."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - as in `threading`
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def find_task_frames(task: asyncio.Task[Any], loop_thread: int) -> list[FrameType]:
    """Return the frames of a task, the outermost first: those of the thread of its loop, if it runs
    there now, or those in which it waits.

    `Task.get_stack` returns one of them only.
    """
    frames: list[FrameType] = []
    waiting: object = task.get_coro()
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if isinstance(frame, FrameType):
            frames.append(frame)
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    running = find_thread_frames(loop_thread)
    if frames and frames[0] in running:
        return running[running.index(frames[0]) :]
    return frames


def format_frames(frames: Sequence[FrameType]) -> str:
    """Return frames as lines of a traceback; empty without frames."""
    numbered = ((frame, frame.f_lineno or 0) for frame in frames)
    return "".join(traceback.StackSummary.extract(numbered).format()).rstrip()
