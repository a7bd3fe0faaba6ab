"""Simulations log nothing: thousands of expected warnings are of no use to anybody."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log = logging.getLogger("nimburion")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)
