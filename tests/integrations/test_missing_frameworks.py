"""An integration whose framework is not installed names the extra that installs it."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize("framework", ["django", "fastapi", "flask", "sqlalchemy"])
def test_the_extra_is_named(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"nimburion.integrations.{framework}"
    monkeypatch.setitem(sys.modules, framework, None)
    for loaded in [name for name in sys.modules if name.startswith(module)]:
        monkeypatch.delitem(sys.modules, loaded)
    for loaded in [name for name in sys.modules if name.startswith(f"{framework}.")]:
        monkeypatch.setitem(sys.modules, loaded, None)
    with pytest.raises(ImportError) as caught:
        _ = importlib.import_module(module).processor
    assert str(caught.value) == (
        f"{module} needs {framework!r}, which is not installed; "
        f"pip install 'nimburion[{framework}]'"
    )
