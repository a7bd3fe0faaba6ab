"""An integration whose framework is not installed names the extra that installs it."""

from __future__ import annotations

import importlib
import sys

import pytest

from nimburion.integrations.flask import make_dashboard


@pytest.mark.parametrize("framework", ["django", "fastapi", "flask"])
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


def test_the_dashboard_names_both_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nimburion.server.sync_dashboard", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(ImportError) as caught:
        make_dashboard(lambda: None)
    assert str(caught.value) == (
        "nimburion.integrations.flask needs 'starlette', which is not installed; "
        "pip install 'nimburion[flask,server]'"
    )
