"""The management server, and `bootstrap`: worker, scheduler and management server in one process.

The extra `server` brings what it needs: `pip install 'nimburion[server]'`.
"""

from typing import TYPE_CHECKING

from nimburion.server.application import Application, bootstrap

if TYPE_CHECKING:
    from nimburion.server.mounted import MountedManagement

__all__ = ["Application", "MountedManagement", "bootstrap"]


def __getattr__(name: str) -> object:
    if name == "MountedManagement":  # needs the extra
        from nimburion.server.mounted import MountedManagement

        return MountedManagement
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
