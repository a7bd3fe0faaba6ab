"""The tests run in memory, and on the URLs of the environment if it has them."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

# Before `shop` is imported, because it reads the environment.
folder = tempfile.TemporaryDirectory()
atexit.register(folder.cleanup)
os.environ.setdefault("NIMBURION_JOBS__URL", "memory://")
os.environ.setdefault("DATABASE_URL", f"sqlite+aiosqlite:///{Path(folder.name) / 'shop.db'}")


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of the running application, without jobs of earlier tests."""
    from shop import app, processor

    with TestClient(app) as client:
        processor.sync.drain()
        yield client
