"""How a child process finds the processor of its parent: an import path, `module:name`.

`nimburion worker MODULE:NAME` knows the path. A processor that a module holds in a global variable
is found by itself. In a program that runs as `__main__`, the child runs the file under another
name, as `multiprocessing` does, so what is below `if __name__ == "__main__"` does not run there.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

from nimburion.core.errors import ConfigurationError

SCRIPT_NAME = "__nimburion_main__"
"""The name under which a child runs the file that its parent runs as `__main__`."""

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class ImportPath(NamedTuple):
    """Where a child finds the processor."""

    path: str
    """`module:name`; the name may be that of a function without arguments that makes it."""
    script: str | None = None
    """The file of a program that runs as `__main__`, if the processor is in it."""


def check_import_path(path: object) -> str:
    """Return the path. `ConfigurationError` says what to write instead."""
    if isinstance(path, str) and _PATH.fullmatch(path):
        return path
    raise ConfigurationError(
        f"import_path must be of the form 'module:name', like 'myapp.jobs:processor', not {path!r}"
    )


def find_import_path(processor: object, known: str | None) -> ImportPath | None:
    """Return where a child finds this processor; None if it cannot. `known`: its import path, if it
    was told.
    """
    if known is not None:
        return _resolve_main(known)
    names = _find_global_names(processor)
    if names:
        return ImportPath(names[0])
    main_names = [
        name for name, value in vars(sys.modules["__main__"]).copy().items() if value is processor
    ]
    return _resolve_main(f"__main__:{main_names[0]}") if main_names else None


def _find_global_names(processor: object) -> list[str]:
    """Return the import paths of a processor in modules that another process can import.

    `multiprocessing` also registers the main module as `__mp_main__`.
    """
    main = sys.modules["__main__"]
    return [
        f"{module_name}:{name}"
        for module_name, module in sys.modules.copy().items()
        if getattr(module, "__spec__", None) is not None
        if module is not main and module_name != SCRIPT_NAME
        for name, value in vars(module).copy().items()
        if value is processor
    ]


def _resolve_main(path: str) -> ImportPath | None:
    """Replace `__main__` by the name of its module, or by its file. None: it has neither."""
    module_name, _, name = path.partition(":")
    if module_name not in {"__main__", SCRIPT_NAME}:
        return ImportPath(path)
    main = sys.modules["__main__"]
    if main.__spec__ is not None:  # python -m package.module
        return ImportPath(f"{main.__spec__.name}:{name}")
    script = getattr(main, "__file__", None)
    return None if script is None else ImportPath(f"{SCRIPT_NAME}:{name}", script)
