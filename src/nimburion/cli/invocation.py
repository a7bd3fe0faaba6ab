"""The shared options of one command-line call: configuration, backend and output format."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from nimburion.cli.exit_codes import BackendNotUsable, BadInput

if TYPE_CHECKING:
    from nimburion.core.backend import Backend
    from nimburion.core.settings import Config

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])


class Invocation:
    """The options that every command takes; if an option is repeated, the last value counts."""

    def __init__(self) -> None:
        self.config: str | None = None
        self.backend: str | None = None
        self.as_json = False

    def load(self, **arguments: object) -> Config:
        """Load the configuration; `--backend` overrides its URL, and `arguments` other settings."""
        from nimburion import config

        if self.backend is not None:
            arguments["jobs"] = {"url": self.backend}
        return config.load(self.config, **arguments)

    def run(
        self,
        question: Callable[[Backend], Awaitable[T]],
        *,
        may_create: bool = False,
        unopened: bool = False,
    ) -> T:
        """Open the backend, run `question` on it, close it and return the result.

        `unopened` skips the opening. A backend file that does not exist is created only with
        `may_create`: a command in the wrong folder must not leave an empty file. Raises `BadInput`
        for a backend that lives in one process.
        """
        import asyncio  # takes a fifth of the start time, so help texts do not import it

        from nimburion.backends import open_backend
        from nimburion.core.text.redaction import redact_url

        url = self.load().jobs.url
        backend = open_backend(url)
        if not backend.capabilities.shared:
            raise BadInput(
                f"{redact_url(url)} exists only inside one process; other processes cannot use it"
            )
        return asyncio.run(
            _run_on_backend(backend, question, may_create=may_create, unopened=unopened)
        )


async def require_existing_file(backend: Backend) -> None:
    """Raise `BackendNotUsable` if the backend has no data yet."""
    if not await backend.exists():
        raise BackendNotUsable(
            f"{backend.describe()} does not exist; enqueue a job first, or say which with --backend"
        )


async def _run_on_backend(
    backend: Backend,
    question: Callable[[Backend], Awaitable[T]],
    *,
    may_create: bool,
    unopened: bool,
) -> T:
    try:
        if not may_create:
            await require_existing_file(backend)
        if not unopened:
            await backend.open()
        return await question(backend)
    finally:
        await backend.close()


def current_invocation() -> Invocation:
    """Return the invocation of the running command."""
    return click.get_current_context().ensure_object(Invocation)


def add_shared_options(command: F) -> F:
    """Add the options `--config`, `--backend` and `--json`, which are kept in the `Invocation`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _keep_option(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    if value:
        setattr(ctx.ensure_object(Invocation), str(parameter.name), value)


_OPTIONS = (
    click.option(
        "--config",
        metavar="FILE",
        expose_value=False,
        callback=_keep_option,
        help="The configuration file to read.",
    ),
    click.option(
        "--backend",
        metavar="URL",
        expose_value=False,
        callback=_keep_option,
        help="Use this backend instead of the configured one, like sqlite:///jobs.db.",
    ),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        expose_value=False,
        callback=_keep_option,
        help="Print JSON.",
    ),
)
