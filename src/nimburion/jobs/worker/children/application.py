"""Loads the application in a child process: the module that holds the processor."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

from nimburion.core.errors import ConfigurationError
from nimburion.jobs.processor import Processor
from nimburion.jobs.worker.children.import_path import SCRIPT_NAME


def load_processor(path: str, script: str | None) -> Processor:
    """Import the processor that a path names.

    `script`: the file of the parent's program, if the processor is in it.
    """
    module_name, _, name = path.partition(":")
    module = importlib.import_module(module_name) if script is None else _run_script(script)
    found: object = module
    for step in name.split("."):
        found = getattr(found, step)
    if not isinstance(found, Processor) and callable(found):
        found = found()
    if not isinstance(found, Processor):
        raise ConfigurationError(f"{path} is a {type(found).__name__}, not a Processor")
    return found


def _run_script(script: str) -> ModuleType:
    loader = SourceFileLoader(SCRIPT_NAME, script)
    spec = spec_from_file_location(SCRIPT_NAME, script, loader=loader)
    if spec is None:
        raise ConfigurationError(f"{script} cannot be run as a Python program")
    module = module_from_spec(spec)
    sys.modules[SCRIPT_NAME] = sys.modules["__main__"] = module
    loader.exec_module(module)
    return module
