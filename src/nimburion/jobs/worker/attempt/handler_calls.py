"""Calls a handler inside its hooks, where the caller runs: in a task, a thread or a child process.

A process that a handler forked ends when the handler returns there. The hooks, which share
resources with its parent, do not run in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import Any

from nimburion.jobs.declaration.registry import Handler
from nimburion.jobs.handling.context import Context
from nimburion.jobs.handling.handler_setup import HandlerSetup
from nimburion.jobs.worker.attempt.forking import ForkGuard

HandlerCall = Callable[[Context[Any]], Any]
"""Calls a handler with a context, inside its hooks. Returns a coroutine if the handler is async."""


def make_handler_call(handler: Handler, setup: HandlerSetup, guard: ForkGuard) -> HandlerCall:
    """Return a function that decodes the payload of a context and calls the handler."""
    decode, function = handler.decode, handler.call
    if handler.is_async:

        async def call_async(context: Context) -> object:
            context.job = job = decode(context.payload)
            try:
                return await function(job, context)
            finally:
                if guard.in_child:
                    guard.check(sys.exc_info()[1])

        return _add_hooks(handler, setup, call_async)

    def call(context: Context) -> object:
        context.job = job = decode(context.payload)
        try:
            return function(job, context)
        finally:
            if guard.in_child:
                guard.check(sys.exc_info()[1])

    return _add_hooks(handler, setup, call)


def surround_call(
    handler: Handler, setup: HandlerSetup, guard: ForkGuard, function: HandlerCall
) -> HandlerCall:
    """Return `function`, which calls a batch handler, inside the hooks of its kind of handlers."""
    if handler.is_async:

        async def call_async(context: Context) -> object:
            try:
                return await function(context)
            finally:
                if guard.in_child:
                    guard.check(sys.exc_info()[1])

        return _add_hooks(handler, setup, call_async)

    def call(context: Context) -> object:
        try:
            return function(context)
        finally:
            if guard.in_child:
                guard.check(sys.exc_info()[1])

    return _add_hooks(handler, setup, call)


def _add_hooks(handler: Handler, setup: HandlerSetup, call: HandlerCall) -> HandlerCall:
    """Return `call` inside the hooks for handlers of this kind; the first hook is the outermost."""
    if handler.is_async:
        for async_hook in reversed(setup.async_hooks):
            call = partial(_await_inside, async_hook, call)
        return call
    for hook in reversed(setup.blocking_hooks):
        call = partial(_call_inside, hook, call)
    return call


def _call_inside(
    hook: Callable[[Context[Any]], AbstractContextManager[None]],
    call: HandlerCall,
    context: Context,
) -> object:
    result = None
    with hook(context):
        result = call(context)
    return result  # noqa: RET504 - None if the hook suppressed an exception


async def _await_inside(
    hook: Callable[[Context[Any]], AbstractAsyncContextManager[None]],
    call: HandlerCall,
    context: Context,
) -> object:
    result = None
    async with hook(context):
        result = await call(context)
    return result  # noqa: RET504 - None if the hook suppressed an exception
