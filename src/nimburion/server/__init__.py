"""The management server, and `bootstrap`: worker, scheduler and management server in one process.

The extra `server` brings what it needs: `pip install 'nimburion[server]'`.
"""

from nimburion.server.application import Application, bootstrap

__all__ = ["Application", "bootstrap"]
