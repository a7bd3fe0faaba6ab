"""The OpenAPI document is right: a fuzzer that reads it finds no answer that it does not allow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nimburion.server.api.operations import OPERATIONS
from nimburion.server.openapi import API_PATH
from tests.server.conftest import Api
from tests.waiting import DEADLINE

TOKEN = "0123456789abcdef"
CONFIG = """
server:
  port: 0
  tokens: [{name: all, rights: [read, payloads, operate, admin], variable: TOKEN}]
"""
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,ignored_auth"
)


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


def run_fuzzer(folder: Path, examples: int, *options: str) -> int:
    """Send generated requests to a server on SQLite; return their number. Fail on a wrong answer.

    The jobs that the fuzzer enqueues are never run.
    """
    (folder / "config.yaml").write_text(CONFIG)
    with subprocess.Popen(
        [sys.executable, "-m", "nimburion", "server"],
        cwd=folder,
        env={**os.environ, "TOKEN": TOKEN},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr
            line = next(line for line in process.stderr if "management server: " in line)
            found = re.search(r"server: (\S+)", line)
            assert found
            # The log of the changes would fill the pipe, and the server would wait.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            arguments = ["-n", str(examples), "--checks", CHECKS, *options]
            result = subprocess.run(
                [
                    *(Path(sys.executable).parent / "schemathesis", "run"),
                    f"{found[1]}/api/v1/openapi.json",
                    *("-H", f"Authorization: Bearer {TOKEN}", "--no-color", *arguments),
                ],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            process.terminate()
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
    assert result.returncode == 0, result.stdout + result.stderr
    generated = re.search(r"(\d[\d,]*) generated", result.stdout)
    assert generated
    return int(generated[1].replace(",", ""))


@pytest.mark.wide
@pytest.mark.timeout(180)
def test_no_request_causes_a_wrong_answer(tmp_path: Path) -> None:
    assert run_fuzzer(tmp_path, 5, "--phases", "coverage,fuzzing") > 1000


@pytest.mark.deep
@pytest.mark.timeout(1200)
def test_none_of_5000_requests_causes_a_wrong_answer(tmp_path: Path) -> None:
    assert run_fuzzer(tmp_path, 200, "--phases", "coverage,fuzzing") >= 5000
