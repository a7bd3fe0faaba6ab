"""`manage.py nimburion …`: the command line of nimburion with the settings of the project."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any, Literal, NoReturn

from django.conf import settings
from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    DjangoHelpFormatter,
    SystemCheckError,
)
from django.db import connections
from django.utils import autoreload

from nimburion.cli import main
from nimburion.cli.django import AUTORELOAD, project_group
from nimburion.cli.exit_codes import BAD_INPUT
from nimburion.cli.invocation import Invocation
from nimburion.core.settings import Config
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.project_settings import load_config, read_project_settings

_RELOAD_GRACE = 5.0
"""Seconds that handlers get to finish when a file has changed."""


class ProjectInvocation(Invocation):
    """A call of the command line that reads the settings of the project."""

    reads_application: bool = True

    def load(self, **arguments: object) -> Config:
        """Load the setting `NIMBURION`; `--backend` overrides its URL."""
        if self.config is not None:
            return super().load(**arguments)
        if self.backend is not None:
            arguments["jobs"] = {"url": self.backend}
        return load_config(**arguments)


class Command(BaseCommand):
    """Runs a command of nimburion in the project."""

    help = "Run, enqueue and manage background jobs: manage.py nimburion worker, … --help."
    requires_system_checks: list[str] | tuple[str, ...] | tuple[()] | Literal["__all__"] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._invocation = ProjectInvocation()

    def run_from_argv(self, argv: list[str]) -> None:
        """Run the command of `manage.py nimburion …`; options of Django come off first."""
        known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        known.add_argument("--settings")
        known.add_argument("--pythonpath")
        _, rest = known.parse_known_args(argv[2:])
        self._invocation.owns_process = True
        try:
            self._run(rest)
        except CommandError as error:
            self._report(error)

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Return the parser for `call_command`, which passes every argument on."""
        parser = CommandParser(
            prog=f"{prog_name} {subcommand}", formatter_class=DjangoHelpFormatter, **kwargs
        )
        parser.add_argument("arguments", nargs=argparse.REMAINDER)
        return parser

    def print_help(self, prog_name: str, subcommand: str) -> None:  # noqa: ARG002 (Django names them)
        """Print the help for `manage.py help nimburion`: the list of the commands."""
        self._run(["--help"])

    def execute(self, *args: str, **options: Any) -> None:
        """Run the command of `call_command("nimburion", "queues", "list")`.

        Raises `CommandError` in place of ending the process with an error.
        """
        try:
            self._run([*args, *options.get("arguments", ())])
        except SystemExit as ended:
            if ended.code not in {0, None}:
                raise CommandError(
                    "the command failed; its message is on standard error",
                    returncode=ended.code if isinstance(ended.code, int) else 1,
                ) from None

    def _run(self, arguments: list[str]) -> None:
        try:
            if arguments[:1] != ["worker"] or {"-h", "--help"} & set(arguments):
                self._call(arguments)
            elif AUTORELOAD in arguments:
                rest = [argument for argument in arguments if argument != AUTORELOAD]
                self._invocation.owns_process = False  # the worker is a thread of the reloader
                self.run_with_reloader(rest[1:])
            else:
                self.run_worker(arguments[1:])
        finally:
            connections.close_all()

    def run_worker(self, arguments: list[str]) -> None:
        """Check the project, then run a worker until a signal stops it.

        Raises `CommandError` for a wrong setting, and for every other error of the system checks.
        """
        errors = read_project_settings().errors
        if errors:
            raise CommandError("\n".join(map(str, errors)), returncode=BAD_INPUT)
        self.check()
        if not settings.LOGGING:
            _remove_console_of_django()
        self._call(["worker", *arguments])

    def run_with_reloader(self, arguments: list[str]) -> None:
        """Run a worker in a thread, and restart the process when a file of the project changes.

        Handlers get five seconds to finish; then their jobs are released. After a wrong setting,
        the process waits for the change that mends it.
        """
        try:
            autoreload.run_with_reloader(self._run_reported_worker, arguments)
        finally:
            get_processor().stop_from_thread(_RELOAD_GRACE)

    def _run_reported_worker(self, arguments: list[str]) -> None:
        try:
            self.run_worker(arguments)
        except CommandError as error:
            self._report(error)

    def _report(self, error: CommandError) -> NoReturn:
        """Print the error as Django does, without a traceback, and exit with its code."""
        prefix = "" if isinstance(error, SystemCheckError) else "CommandError: "
        self.stderr.write(f"{prefix}{error}")
        sys.exit(error.returncode)

    def _call(self, arguments: list[str]) -> None:
        main(
            arguments,
            invocation=self._invocation,
            group=project_group,
            program="manage.py nimburion",
        )


def _remove_console_of_django() -> None:
    """Remove the handler by which Django logs to the console by default: the worker logs there too,
    and each record would appear twice."""
    logger = logging.getLogger("django")
    for handler in list(logger.handlers):
        if type(handler) is logging.StreamHandler:
            logger.removeHandler(handler)
