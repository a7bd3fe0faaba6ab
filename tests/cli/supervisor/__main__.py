"""Run a supervisor with the arguments of its classes, as JSON: for tests that set its intervals."""

from __future__ import annotations

import asyncio
import json
import sys

from nimburion.cli.commands.worker import start_logging
from nimburion.cli.supervisor.file_watch import FileWatch
from nimburion.cli.supervisor.messages import WorkerOptions
from nimburion.cli.supervisor.supervisor import Supervisor, SupervisorSettings
from nimburion.core.settings import Recycle

DEFAULTS = {
    "config_file": None,
    "backend": None,
    "queues": None,
    "concurrency": None,
    "log_level": "info",
    "log_format": None,
    "until_empty": False,
    "max_jobs": None,
    "traceback": False,
}

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    start_logging("debug", "text")
    supervisor = Supervisor(
        WorkerOptions(**{**DEFAULTS, **given["options"]}),
        Recycle(**given["recycle"]),
        SupervisorSettings(**given["settings"]),
        watch=FileWatch(".", interval=0.02) if given["reload"] else None,
    )
    sys.exit(asyncio.run(supervisor.run()))
