"""Ask several backends the same question, for the commands that take `--backend` repeatedly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import click

from nimburion.cli.exit_codes import BackendNotUsable
from nimburion.cli.invocation import current_invocation, require_existing_file
from nimburion.cli.output import write_json
from nimburion.core.errors import BackendError
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from nimburion.core.backend import Backend

T = TypeVar("T")


class BackendReading(NamedTuple, Generic[T]):
    """What one of several backends answered."""

    number: int
    """The place of the backend on the command line, from 1. Tables show it."""
    backend: str
    """The description of the backend."""
    value: T | None
    error: str | None
    """Why the backend could not be read; None if it answered."""


class BackendReader:
    """Reads one of several backends, which is opened by the first reading that can."""

    def __init__(self, number: int, backend: Backend) -> None:
        self._number = number
        self._backend = backend
        self._is_open = False

    async def read(self, question: Callable[[Backend], Awaitable[T]]) -> BackendReading[T]:
        """Run `question` on the backend. A backend that cannot be used is a reading too."""
        value: T | None = None
        error: str | None = None
        try:
            if not self._is_open:
                await require_existing_file(self._backend)
                await self._backend.open()
                self._is_open = True
            value = await question(self._backend)
        except BackendNotUsable as missing:
            error = missing.message
        except BackendError as failure:
            error = str(failure)
        return BackendReading(self._number, self._backend.describe(), value, error)

    async def close(self) -> None:
        """Close the backend."""
        await self._backend.close()


def make_readers() -> list[BackendReader]:
    """Return a reader for each value of `--backend`, in their order."""
    backends = current_invocation().make_backends()
    return [BackendReader(number, backend) for number, backend in enumerate(backends, 1)]


async def read_each(
    readers: Sequence[BackendReader], question: Callable[[Backend], Awaitable[T]]
) -> list[BackendReading[T]]:
    """Run `question` on all backends at the same time, and return the readings in their order."""
    return list(await asyncio.gather(*(reader.read(question) for reader in readers)))


async def close_each(readers: Sequence[BackendReader]) -> None:
    """Close all backends."""
    await asyncio.gather(*(reader.close() for reader in readers))


def read_backends(question: Callable[[Backend], Awaitable[T]]) -> list[BackendReading[T]]:
    """Open every backend of the command, run `question` on each, and close them."""
    readers = make_readers()

    async def run() -> list[BackendReading[T]]:
        try:
            return await read_each(readers, question)
        finally:
            await close_each(readers)

    return asyncio.run(run())


def print_readings(
    readings: Sequence[BackendReading[T]],
    make_data: Callable[[T], object],
    print_text: Callable[[], None],
) -> None:
    """Print the readings as JSON or call `print_text`; then report the backends without an answer.

    In JSON, each backend has what the command prints for one backend alone as `data`. Raises
    `BackendNotUsable` if a backend has none.
    """
    if current_invocation().as_json:
        write_json({"backends": [_make_data(reading, make_data) for reading in readings]})
    else:
        print_text()
    check_readings(readings)


def _make_data(reading: BackendReading[T], make_data: Callable[[T], object]) -> dict[str, object]:
    return {
        "backend": reading.backend,
        "error": reading.error,
        "data": None if reading.value is None else make_data(reading.value),
    }


def check_readings(readings: Sequence[BackendReading[Any]]) -> None:
    """Raise `BackendNotUsable` if a backend could not be read."""
    failed = [str(reading.error) for reading in readings if reading.error is not None]
    if failed:
        raise BackendNotUsable(
            f"{len(failed)} of {len(readings)} backends cannot be used: {'; '.join(failed)}"
        )


def print_legend(readings: Sequence[BackendReading[Any]]) -> None:
    """Print one line per backend: its number in the tables, and what is wrong with it."""
    click.echo("\n".join(format_legend(readings)))


def format_legend(
    readings: Sequence[BackendReading[T]], describe: Callable[[T], str] | None = None
) -> list[str]:
    """Return one line per backend: its number, its description, and `describe` of its value.

    A backend that could not be read is shown with its error instead.
    """
    lines = []
    for reading in readings:
        text = f"{reading.number}  {reading.backend}"
        if reading.value is None:
            text += f": cannot be used: {reading.error}"
        elif describe is not None:
            text += f": {describe(reading.value)}"
        lines.append(escape_controls(text))
    return lines
