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
    """The options that every command takes.

    `--backend` may be repeated for a command that reads several backends. Of the others, the last
    value counts.
    """

    reads_application: bool = False
    """Whether `load` reads the settings of a web application. The worker processes of a supervisor
    cannot, so they are told what they need.
    """

    def __init__(self) -> None:
        self.config: str | None = None
        self.backends: tuple[str, ...] = ()
        self.as_json = False
        self.owns_process: bool = False
        """Whether the process ends after the command, so that a worker may end it."""

    @property
    def backend(self) -> str | None:
        """The value of `--backend`, or None. Raises `BadInput` if it was given more than once."""
        if len(self.backends) > 1:
            raise BadInput(
                f"--backend is given {len(self.backends)} times, and this command uses one backend;"
                " `top`, `stats` and `queues list` take several"
            )
        return self.backends[0] if self.backends else None

    @property
    def has_several_backends(self) -> bool:
        """Whether `--backend` was given more than once."""
        return len(self.backends) > 1

    def load(self, **arguments: object) -> Config:
        """Load the configuration; `--backend` overrides its URL, and `arguments` other settings."""
        from nimburion import config

        if self.backend is not None:
            arguments["jobs"] = {"url": self.backend}
        try:
            return config.load(self.config, **arguments)
        except config.ConfigurationError as error:
            raise config.ConfigurationError(_name_option(str(error))) from error

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

        backend = open_shared_backend(self.load().jobs.url)
        return asyncio.run(
            _run_on_backend(backend, question, may_create=may_create, unopened=unopened)
        )

    def make_backends(self) -> list[Backend]:
        """Return the backends of all values of `--backend`, in their order; none is opened.

        Raises `BadInput` for a backend that lives in one process.
        """
        from nimburion import config

        urls = [config.load(self.config, jobs={"url": url}).jobs.url for url in self.backends]
        return [open_shared_backend(url) for url in dict.fromkeys(urls)]


_OPTIONS_OF_SETTINGS = {
    "jobs.url": "--backend",
    "server.host": "--host",
    "server.port": "--port",
}
"""The options that set a setting."""


def _name_option(message: str) -> str:
    """Return the message of a wrong setting with the option that set it in place of `load()`."""
    place, _, rest = message.partition(": ")
    setting, _, problem = rest.partition(": ")
    if place != "load()" or setting not in _OPTIONS_OF_SETTINGS:
        return message
    return f"{_OPTIONS_OF_SETTINGS[setting]}: {problem}"


def open_shared_backend(url: str) -> Backend:
    """Return the backend of a URL, not opened. Raises `BadInput` if it lives in one process."""
    from nimburion.backends import open_backend
    from nimburion.core.text.redaction import redact_url

    backend = open_backend(url)
    require_shared(backend, redact_url(url))
    return backend


def require_shared(backend: Backend, description: str) -> None:
    """Raise `BadInput` for a backend that lives in one process."""
    if not backend.capabilities.shared:
        raise BadInput(
            f"{description} exists only inside one process; other processes cannot use it"
        )


async def require_existing_file(backend: Backend) -> None:
    """Raise `BackendNotUsable` if the backend has no data yet."""
    if not await backend.exists():
        raise BackendNotUsable(
            f"{backend.describe()} does not exist; enqueue a job first, or pass the URL that your "
            f"code uses, with --backend{_find_example()} or as NIMBURION_JOBS__URL"
        )


def _find_example() -> str:
    """Return the value of `--backend` for a database in the working directory, if there is one."""
    from pathlib import Path  # only for this hint

    found = min(Path.cwd().glob("*.db"), default=None)
    return "" if found is None else f", like sqlite:///{found.name}"


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


def _keep_backends(ctx: click.Context, _: click.Parameter, urls: tuple[str, ...]) -> None:
    """Keep the values of the group and of the command. The same URL counts once."""
    invocation = ctx.ensure_object(Invocation)
    for url in urls:
        _refuse_processor(url)
    invocation.backends = tuple(dict.fromkeys((*invocation.backends, *urls)))


def _refuse_processor(url: str) -> None:
    """Raise `BadInput` for MODULE:NAME, which is no URL."""
    module, _, name = url.partition(":")
    if name.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        raise BadInput(
            f"--backend takes the URL of a backend, like sqlite:///jobs.db, and {url!r} names a "
            f"processor: pass the URL that your code gives to {name!r}. To run its jobs, write "
            f"`nimburion worker {url}`"
        )


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
        multiple=True,
        expose_value=False,
        callback=_keep_backends,
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
