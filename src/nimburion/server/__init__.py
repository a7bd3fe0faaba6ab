"""The management server, and `bootstrap`: worker, scheduler and management server in one process.

The extra `server` brings what it needs: `pip install 'nimburion[server]'`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nimburion.server.application import Application, bootstrap

if TYPE_CHECKING:
    from nimburion.server.access import Caller
    from nimburion.server.mounted import MountedManagement
    from nimburion.server.sync_dashboard import SyncDashboard

__all__ = ["Application", "Caller", "MountedManagement", "SyncDashboard", "bootstrap"]


_NEEDING_THE_EXTRA = {
    "Caller": "nimburion.server.access",
    "MountedManagement": "nimburion.server.mounted",
    "SyncDashboard": "nimburion.server.sync_dashboard",
}


def __getattr__(name: str) -> object:
    if name in _NEEDING_THE_EXTRA:
        return getattr(import_module(_NEEDING_THE_EXTRA[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
