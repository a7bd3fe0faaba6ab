"""Pages are prepared when the server starts."""

from __future__ import annotations

import gc

import pytest
from jinja2 import DictLoader, Environment

from nimburion.core.errors import BackendUnavailable
from nimburion.server.dashboard import preparation
from nimburion.server.dashboard.preparation import PagePreparation
from tests.server.conftest import Api
from tests.waiting import wait_until


@pytest.mark.parametrize("backend_answers", [True, False])
async def test_templates_are_compiled_and_statistics_read_ahead(
    api: Api, monkeypatch: pytest.MonkeyPatch, backend_answers: bool
) -> None:
    async def fail(*_: object, **__: object) -> object:
        raise BackendUnavailable("it is down")

    environment = Environment(loader=DictLoader({"a.html": "", "b.html": ""}), autoescape=True)
    monkeypatch.setattr(preparation, "make_environment", lambda: environment)
    gc.unfreeze()
    if not backend_answers:
        monkeypatch.setattr(api.processor.backend.reads, "list_statistics", fail)
    readings = api.services.readings
    prepared = PagePreparation(api.processor.clock, readings, reads_ahead=True)
    await prepared.start()
    await wait_until(lambda: not prepared.running, "the pages are prepared")
    assert environment.cache is not None
    assert (len(environment.cache), list(readings.durations)) == (2, ["hour"])
    assert prepared.failure is None
    assert gc.get_freeze_count() > 0
    await prepared.stop()


async def test_the_server_of_a_worker_reads_nothing_ahead(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        preparation, "make_environment", lambda: Environment(loader=DictLoader({}), autoescape=True)
    )
    gc.unfreeze()
    assert api.services.preparation in api.services.background
    await api.services.preparation.run()
    assert api.services.readings.durations == {}
    assert gc.get_freeze_count() == 0
