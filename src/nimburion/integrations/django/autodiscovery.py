"""Find the jobs of a project: import `jobs.py` and `tasks.py` of each app, and register them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from django.apps import apps
from django.utils.module_loading import autodiscover_modules

from nimburion.jobs.declaration.job import Job, find_declaration
from nimburion.jobs.processor import Processor


def discover_jobs(processor: Processor, modules: Sequence[str]) -> None:
    """Import these modules of every installed app, and register the jobs that they declare.

    That covers `class SendEmail(Job)` and `@job` functions. `@processor.job` has registered its
    function itself. An error of the import is raised, with the module in its traceback.
    """
    autodiscover_modules(*modules)
    for config in apps.get_app_configs():
        for name in modules:
            module = sys.modules.get(f"{config.name}.{name}")
            if module is not None:
                _register_declared(processor, module.__name__)


def _register_declared(processor: Processor, module: str) -> None:
    """Register the jobs that a module declares itself, not those that it imports."""
    for value in list(vars(sys.modules[module]).values()):
        declaration = find_declaration(value)
        if (
            declaration is not None
            and declaration.target is value
            and getattr(value, "__module__", None) == module
            and getattr(value, "process", None) is not Job.process  # a base of job classes
        ):
            processor.register(declaration.target)
