"""Public modules say what they export."""

from __future__ import annotations

from importlib import import_module

import pytest

PUBLIC = (
    "nimburion",
    "nimburion.jobs",
    "nimburion.backends",
    "nimburion.backends.memory",
    "nimburion.backends.sqlite",
    "nimburion.backends.redis",
    "nimburion.backends.postgres",
    "nimburion.scheduler",
    "nimburion.config",
    "nimburion.server",
    "nimburion.testing",
)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_lists_its_names(name: str) -> None:
    module = import_module(name)
    assert module.__all__
    assert [one for one in module.__all__ if not hasattr(module, one)] == []
