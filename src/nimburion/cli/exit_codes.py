"""Exit codes and the one-line error messages of the command line."""

from __future__ import annotations

import os
import sys

import click

DONE, FAILED, BAD_INPUT, BACKEND, NOT_FOUND, INTERRUPTED = 0, 1, 2, 3, 4, 130


class CommandFailed(click.ClickException):
    """The command failed."""

    exit_code = FAILED


class BadInput(click.ClickException):
    """The input is invalid."""

    exit_code = BAD_INPUT


class BackendNotUsable(click.ClickException):
    """The backend cannot be used."""

    exit_code = BACKEND


def report_error(error: BaseException) -> int:
    """Print the error in one line on standard error and return the exit code. Bugs are
    re-raised."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return _silence_broken_pipe()
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        click.echo(str(error), err=True)  # the help text has several lines
        return BAD_INPUT
    if isinstance(error, click.ClickException):
        return _print_error(error.format_message(), error.exit_code)
    code = _find_exit_code(error)
    if code is None:
        raise error
    return _print_error(str(error), code)


def _find_exit_code(error: BaseException) -> int | None:
    """Return the exit code of a nimburion error; None for any other error."""
    from nimburion.core import errors  # a help text must not import msgspec

    codes: list[tuple[type[errors.NimburionError], int]] = [
        (errors.JobNotFound, NOT_FOUND),
        (errors.ScheduleNotFound, NOT_FOUND),
        (errors.BulkOperationNotFound, NOT_FOUND),
        (errors.FlowNotFound, NOT_FOUND),
        (errors.LimitNotFound, NOT_FOUND),
        (errors.WorkerNotFound, NOT_FOUND),
        (errors.BackendError, BACKEND),
        (errors.ConfigurationError, BAD_INPUT),
        (errors.InvalidJob, BAD_INPUT),
        (errors.DefinitionError, BAD_INPUT),
        (errors.NimburionError, FAILED),
    ]
    return next((code for kind, code in codes if isinstance(error, kind)), None)


def _print_error(message: str, code: int) -> int:
    from nimburion.core.text.escaping import escape_controls

    line = escape_controls(" ".join(message.split()))
    click.echo(f"nimburion: {line}", err=True)
    return code


def _silence_broken_pipe() -> int:
    """Redirect standard output to the null device: its reader has closed the pipe (`… | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
