"""The OpenAPI document is right: a fuzzer that reads it finds no difference to the API."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from nimburion.core.bulk_operations import BulkAction, NewBulkOperation, start_bulk_operation
from nimburion.core.session import Session
from nimburion.server.management import ManagementServer
from nimburion.server.openapi import API_PATH
from nimburion.server.routes import OPERATIONS
from tests.server.conftest import Api, MakeApi

TOKEN = "0123456789abcdef"
TOKENS = [
    {
        "name": "all",
        "rights": ["read", "payloads", "stacks", "operate", "admin"],
        "variable": "FUZZER_TOKEN",
    }
]
_ROOT = Path(__file__).parents[2]
_CONFIG = """
[generation]
deterministic = true
no-shrink = true

[parameters]
"path.id" = "job"
"path.limit" = "send"
"path.name" = "nightly"
"""
"""The names and ids of what `add_records` has stored, so that not all answers are 404."""


async def test_the_document_describes_each_operation(api: Api) -> None:
    document = await api.get("/openapi.json")
    for operation in OPERATIONS:
        described = document["paths"][API_PATH + operation.path][operation.method.lower()]
        assert described["x-nimburion-right"] == operation.right
        assert described["summary"]
        names = {one["name"] for one in described["parameters"] if one["in"] == "path"}
        assert names == set(re.findall(r"\{(\w+)\}", operation.path))
    assert sum(map(len, document["paths"].values())) == len(OPERATIONS)


async def test_each_reference_of_the_document_can_be_followed(api: Api) -> None:
    response = await api.client.get("/api/v1/openapi.json")
    named = set(re.findall(r'"#/components/schemas/(\w+)"', response.text))
    assert named <= set(response.json()["components"]["schemas"])
    assert "Problem" in named


async def add_records(api: Api) -> None:
    """Store a record of each kind under the names of `_CONFIG`."""
    backend = api.processor.backend
    await api.fail("job")
    await backend.consuming.open_session(Session(id="job", queues=("default",), names=("send",)))
    await start_bulk_operation(backend, NewBulkOperation(id="job", action=BulkAction.DELETE))
    await api.services.schedules.add("nightly", "0 2 * * *", "send", '{"to":"a"}')


async def run_fuzzer(api: Api, folder: Path, examples: int) -> int:
    """Send generated requests to a server, valid ones and others; return their number.

    Fail on an answer that the document does not allow.
    """
    (folder / "schemathesis.toml").write_text(_CONFIG)
    await add_records(api)
    server = ManagementServer(api.app, api.services.config.server)
    await server.start()
    try:
        fuzzer = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).parent / "schemathesis", "run"),
            *(f"{server.url}/api/v1/openapi.json", "--no-color"),
            *("-H", f"Authorization: Bearer {TOKEN}"),
            *("-n", str(examples), "--checks", "all", "--phases", "coverage,fuzzing"),
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(_ROOT),
                "SCHEMATHESIS_HOOKS": "tests.server.fuzzing",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output = (await fuzzer.communicate())[0].decode()
        finally:
            if fuzzer.returncode is None:
                fuzzer.kill()
    finally:
        await server.stop()
    assert fuzzer.returncode == 0, output
    generated = re.search(r"(\d[\d,]*) generated", output)
    assert generated
    return int(generated[1].replace(",", ""))


@pytest.mark.slow
@pytest.mark.wide
async def test_no_request_shows_a_difference_between_the_api_and_its_document(
    make_api: MakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUZZER_TOKEN", TOKEN)
    api = await make_api(f"sqlite:///{tmp_path}/jobs.db", port=0, tokens=TOKENS)
    assert await run_fuzzer(api, tmp_path, 2) > 1000


@pytest.mark.deep
@pytest.mark.timeout(1200)
async def test_none_of_5000_requests_shows_a_difference(
    make_api: MakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUZZER_TOKEN", TOKEN)
    api = await make_api(f"sqlite:///{tmp_path}/jobs.db", port=0, tokens=TOKENS)
    assert await run_fuzzer(api, tmp_path, 60) >= 5000
