"""Workers over the API."""

from __future__ import annotations

from nimburion.core.session import Session, Vitals, WorkerCommand
from tests.server.conftest import Api


async def test_workers_are_listed_in_pages_oldest_first(api: Api) -> None:
    backend = api.processor.backend
    for name in ("b", "a", "c"):
        session = Session(id=name, host="h", pid=1, queues=("default",), names=("send",))
        await backend.consuming.open_session(session)
        await backend.consuming.heartbeat(name, Vitals(slots=10, busy=3))
    first = await api.get("/workers?limit=2")
    second = await api.get("/workers", params={"limit": 2, "after": first["next"]})
    found = [worker for page in (first, second) for worker in page["workers"]]
    assert sorted(worker["id"] for worker in found) == ["a", "b", "c"]
    assert second["next"] is None
    assert (found[0]["live"], found[0]["queues"], found[0]["running"]) == (True, ["default"], 0)
    assert found[0]["vitals"] == {"slots": 10, "busy": 3}
    assert (await api.get("/queues"))["queues"] == []


async def test_a_worker_gets_its_command_with_the_next_heartbeat(api: Api) -> None:
    backend = api.processor.backend
    await backend.consuming.open_session(Session(id="w", queues=("default",), names=("send",)))
    for word, command in (
        ("quiet", WorkerCommand.QUIET),
        ("stop", WorkerCommand.STOP),
        ("resume", None),
    ):
        sent = await api.post("/workers/w/command", {"command": word})
        assert sent == {"worker": "w", "command": word}
        assert (await backend.consuming.heartbeat("w")).command == command
        (worker,) = (await api.get("/workers"))["workers"]
        assert worker["command"] == command


async def test_an_unknown_worker_or_command_is_an_error(api: Api) -> None:
    path = "/api/v1/workers/none/command"
    response = await api.client.post(path, json={"command": "stop"})
    assert (response.status_code, response.json()["title"]) == (404, "Worker not found")
    response = await api.client.post(path, json={"command": "dance"})
    assert response.status_code == 422
