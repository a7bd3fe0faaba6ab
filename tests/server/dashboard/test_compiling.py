"""Templates are compiled when the server starts."""

from __future__ import annotations

import pytest
from jinja2 import DictLoader, Environment

from nimburion.core.timing.clock import SystemClock
from nimburion.server.dashboard import compiling
from nimburion.server.dashboard.compiling import TemplateCompiler
from tests.server.conftest import Api
from tests.waiting import wait_until


async def test_every_template_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment(loader=DictLoader({"a.html": "{{ 1 }}", "b.html": "{{ 2 }}"}))
    monkeypatch.setattr(compiling, "make_environment", lambda: environment)
    compiler = TemplateCompiler(SystemClock())
    await compiler.start()
    await wait_until(lambda: not compiler.running, "all templates are compiled")
    assert environment.cache is not None
    assert len(environment.cache) == 2
    await compiler.stop()


async def test_the_compiler_is_a_service_of_the_server(api: Api) -> None:
    assert TemplateCompiler in {type(service) for service in api.services.background}
