"""Integrations with web frameworks. Each module needs its framework, which an extra installs."""

from __future__ import annotations


def explain_missing(missing: ModuleNotFoundError, extra: str, *further: str) -> ModuleNotFoundError:
    """Return the error for a framework that is not installed, with the extras that install it."""
    package = (missing.name or extra).partition(".")[0]
    return ModuleNotFoundError(
        f"nimburion.integrations.{extra} needs {package!r}, which is not installed; "
        f"pip install 'nimburion[{','.join([extra, *further])}]'",
        name=missing.name,
    )
