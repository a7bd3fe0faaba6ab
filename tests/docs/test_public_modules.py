"""Public modules say what they export."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from tests.docs.pages import every_page
from tests.house.tree import python_files

PUBLIC = (
    "nimburion",
    "nimburion.jobs",
    "nimburion.backends",
    "nimburion.backends.memory",
    "nimburion.backends.sqlite",
    "nimburion.backends.redis",
    "nimburion.backends.postgres",
    "nimburion.scheduler",
    "nimburion.types",
    "nimburion.config",
    "nimburion.server",
    "nimburion.testing",
)

FOR_AUTHORS_OF_BACKENDS = {"write-a-backend.md", "states.md"}
"""Pages that show the inside of nimburion."""


def test_pages_and_examples_import_from_public_modules_only() -> None:
    """`nimburion` has all that an application needs; tests, telemetry and frameworks add some."""
    public = (
        r"nimburion|nimburion\.(errors|types|testing|telemetry|integrations|config|server)(\..*)?"
    )
    found = {}
    examples = [path for path in python_files("examples") if "tests" not in path.name]
    for path in [*(page.path for page in every_page()), *examples]:
        if path.parent.name == "decisions" or path.name in FOR_AUTHORS_OF_BACKENDS:
            continue
        text = path.read_text(encoding="utf-8")
        modules = re.findall(r"^ *(?:from|import) (nimburion[\w.]*)", text, re.MULTILINE)
        inner = [module for module in modules if not re.fullmatch(public, module)]
        if inner:
            found[path.name] = inner
    assert found == {}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_lists_its_names(name: str) -> None:
    module = import_module(name)
    assert module.__all__
    assert [one for one in module.__all__ if not hasattr(module, one)] == []
