"""The management server's application, which the manifests are compared with."""

from __future__ import annotations

from tests.server.conftest import api, make_api

__all__ = ["api", "make_api"]
