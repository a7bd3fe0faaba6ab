"""The command line in this process, in a folder of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import pytest
from click.testing import CliRunner

from nimburion import cli
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import AttemptError, NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Failed

T = TypeVar("T")


class Ended(NamedTuple):
    """How a call ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The JSON on standard output."""
        return json.loads(self.out)


class CommandLine:
    """Calls `main` as a shell would, and reaches the backend behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, stdin: str | bytes | None = None) -> Ended:
        @click.command(context_settings={"ignore_unknown_options": True})
        def call() -> None:
            cli.main(arguments)

        result = CliRunner().invoke(call, [], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)

    def call_backend(self, operation: Callable[[Backend], Awaitable[T]]) -> T:
        """Do something with the backend in the folder."""

        async def opened() -> T:
            backend = SQLiteBackend(self.folder / "nimburion.db")
            await backend.open()
            try:
                return await operation(backend)
            finally:
                await backend.close()

        return asyncio.run(opened())

    def enqueue(
        self, *ids: str, name: str = "send", queue: str = "default", after: float = 0.0
    ) -> None:
        """Store jobs that are due after some seconds."""
        jobs = [NewJob(one, name, queue, b'{"to":"a"}', after=after) for one in ids]
        self.call_backend(lambda backend: backend.producing.enqueue(jobs))

    def fail(self, *ids: str, name: str = "send", queue: str = "default") -> None:
        """Store jobs and make dead letters of them."""
        self.enqueue(*ids, name=name, queue=queue)
        self.call_backend(lambda backend: fail_all(backend, Lane(queue, name), len(ids)))


async def fail_all(backend: Backend, lane: Lane, count: int) -> None:
    """Reserve and fail so many jobs of a lane."""
    session = Session(id=f"{lane.name:0<32}", queues=(lane.queue,), names=(lane.name,))
    await backend.consuming.open_session(session)
    reply = await backend.consuming.exchange(
        session.id, 1, [], ReserveRequest(total=count, lanes=(lane,))
    )
    error = AttemptError(1, "permanent", "Broken\x1b[31m", "no\x07 good", "Traceback\n  line 1")
    settled = [Failed(one.lease, "permanent", error) for one in reply.deliveries]
    await backend.consuming.exchange(session.id, 2, settled, ReserveRequest(total=0))
    await backend.consuming.close_session(session.id)


@pytest.fixture
def nimburion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # `worker` looks in the folder first
    return CommandLine(tmp_path)
