"""Load the processor that MODULE:NAME names. Errors of the import are reported in one line."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nimburion.cli.exit_codes import BadInput, CommandFailed
from nimburion.core.text.escaping import escape_lines
from nimburion.core.text.redaction import redact_url
from nimburion.core.text.suggestions import find_nearest

if TYPE_CHECKING:
    from nimburion.cli.invocation import Invocation
    from nimburion.jobs import Processor

_OWN = ("<frozen", str(Path(__file__).parent.parent), importlib.__file__)
_LIBRARIES = tuple(
    {str(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_PARTIAL = "partially initialized module"
"""Text of the error that Python raises for a circular import; see `_is_circular`."""


def find_processor(target: str, *, show_traceback: bool = False) -> Processor:
    """Import the module and return its processor, or the result of the factory function it names.

    Raises `BadInput` for a value that is not a processor, a syntax error and a circular import.
    Raises `CommandFailed` for other errors in the application's code. Each message is one line.
    `show_traceback` prints the traceback of the application's code before the message.
    """
    from nimburion.jobs import Processor

    module_name, colon, path = target.partition(":")
    if "://" in target:
        raise BadInput(f"{redact_url(target)} is a URL; give MODULE:NAME, and the URL as --backend")
    if not colon or not all(module_name.split(".")) or not all(path.split(".")):
        raise BadInput(f"{target!r} is not of the form MODULE:NAME, like myapp.jobs:processor")
    with _map_application_errors(
        f"{module_name} cannot be imported", show_traceback=show_traceback
    ):
        module = _import(module_name)
    found = _attribute(module, path)
    if not isinstance(found, Processor) and _is_factory(target, found):
        with _map_application_errors(f"{target} failed", show_traceback=show_traceback):
            found = found()  # type: ignore[operator]
    if not isinstance(found, Processor):
        kind = type(found).__name__
        raise BadInput(f"{target} is a {kind}; a Processor is needed, or a function that makes one")
    return found


def export_configuration(invocation: Invocation) -> None:
    """Pass `--config` and `--backend` to `config.load()` in the application's module by
    environment variables."""
    if invocation.config is not None:
        os.environ["NIMBURION_CONFIG"] = os.path.abspath(invocation.config)  # noqa: PTH100
    if invocation.backend is not None:
        os.environ["NIMBURION_JOBS__URL"] = invocation.backend


def check_backend(processor: Processor, invocation: Invocation) -> None:
    """Raise `BadInput` if the application opens a backend other than `--backend`: the option
    would be ignored silently."""
    if invocation.backend is None:
        return
    from nimburion.backends import open_backend

    wanted = open_backend(invocation.load().jobs.url).describe()
    actual = processor.backend.describe()
    if wanted != actual:
        raise BadInput(f"the processor opens its own backend ({actual}); leave out --backend")


def _import(name: str) -> object:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (sys.path holds text)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            hint = f"; write {name.removesuffix('.py')}" if name.endswith(".py") else ""
            raise BadInput(f"there is no module {name!r} here or on the path{hint}") from None
        raise


def _attribute(found: object, path: str) -> object:
    """Resolve a dotted path. Raises `BadInput` with the most similar name if it does not exist."""
    for step in path.split("."):
        if not hasattr(found, step):
            owner = getattr(found, "__name__", found)
            near = find_nearest(
                step, [name for name in dir(found) if not isinstance(getattr(found, name), type)]
            )
            hint = (
                f"; did you mean {near}?"
                if near
                else "; create the processor outside of functions, as a global variable"
            )
            raise BadInput(f"{owner!s} has no {step!r}{hint}")
        found = getattr(found, step)
    return found


def _is_factory(target: str, found: object) -> bool:
    """Return whether `found` is a factory to call for a processor. Raises `BadInput` for a job:
    calling it would run the job."""
    from nimburion.jobs.declaration.job import find_declaration

    declaration = find_declaration(found)
    if declaration is not None:
        raise BadInput(
            f"{target} is the job {declaration.name!r}; name the Processor that it is registered "
            "with"
        )
    if isinstance(found, type) or inspect.isbuiltin(found) or not callable(found):
        return False
    if inspect.iscoroutinefunction(found):
        raise BadInput(f"{target} is an async function; one that is called, with def, is needed")
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):
        raise BadInput(
            f"{target} takes arguments; a Processor is needed, or a function without arguments "
            "that makes one"
        ) from None
    return True


@contextmanager
def _map_application_errors(what: str, *, show_traceback: bool) -> Iterator[None]:
    """Map an error of the application to a one-line error. Errors of nimburion and click pass
    unchanged."""
    from nimburion.core.errors import NimburionError

    try:
        yield
    except (NimburionError, click.ClickException):
        raise
    except Exception as error:
        if show_traceback:
            click.echo(escape_lines(_format_traceback(error)), err=True)
        raise _make_error(
            what, error, "" if show_traceback else "; --traceback shows more"
        ) from error


def _make_error(what: str, error: Exception, hint: str) -> click.ClickException:
    if isinstance(error, SyntaxError):
        place = f"{_make_relative(error.filename or '?')}, line {error.lineno}"
        return BadInput(f"{what}: {type(error).__name__}: {error.msg} ({place})")
    place = _find_error_place(error)
    if _is_circular(error):
        return BadInput(
            f"{what}: its modules import each other in a circle: {error} ({place}){hint}"
        )
    return CommandFailed(f"{what}: {type(error).__name__}: {error} ({place}){hint}")


def _is_circular(error: Exception) -> bool:
    """Return whether a module was imported from that was still being imported itself.

    Python 3.13 and later may advise to rename the module instead of saying so. Then the traceback
    shows that the code of the module was still running.
    """
    if _PARTIAL in str(error):
        return True
    return isinstance(error, ImportError) and any(
        frame.filename == error.path and frame.name == "<module>"
        for frame in traceback.extract_tb(error.__traceback__)
    )


def _find_error_place(error: Exception) -> str:
    """Return file and line of the innermost frame in the code of the application."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_foreign(frame.filename)] or frames
    return f"{_make_relative(own[-1].filename)}, line {own[-1].lineno}"


def _is_foreign(filename: str) -> bool:
    """Return whether a file belongs to Python, to an installed package or to nimburion."""
    return filename.startswith((*_OWN, *_LIBRARIES))


def _make_relative(filename: str) -> str:
    """Return the path relative to the working directory if it is below it, else unchanged."""
    path = Path(filename)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else filename


def _format_traceback(error: Exception) -> str:
    """Format the traceback without the frames of nimburion and of the import system."""
    formatted = traceback.TracebackException.from_exception(error)
    frames = [frame for frame in formatted.stack if not frame.filename.startswith(_OWN)]
    formatted.stack = traceback.StackSummary.from_list(frames)
    return "".join(formatted.format()).rstrip()
