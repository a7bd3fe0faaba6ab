"""Dead letters over the API."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nimburion.core.errors import EnqueueBlocked
from nimburion.core.job import Enqueued, NewJob
from tests.server.conftest import Api


async def test_dead_letters_are_listed_and_filtered(api: Api) -> None:
    await api.fail("a", "b")
    await api.fail("c", queue="mail")
    await api.enqueue("d")
    for query, expected in (
        ("", ["c", "b", "a"]),
        ("?queue=mail", ["c"]),
        ("?reason=permanent&limit=1", ["c"]),
        ("?reason=lost", []),
    ):
        assert [job["id"] for job in (await api.get(f"/dead-letters{query}"))["jobs"]] == expected


async def test_dead_letters_are_grouped_by_their_error(api: Api) -> None:
    await api.fail("a", "b")
    await api.fail("c", queue="mail")
    found = await api.get("/failure-groups")
    (group,) = found["groups"]
    assert (group["count"], group["type"], found["complete"]) == (3, "Broken", True)
    (group,) = (await api.get("/failure-groups?queue=mail"))["groups"]
    assert (group["count"], group["job_id"]) == (1, "c")


async def test_replaying_twice_does_nothing_the_second_time(api: Api) -> None:
    await api.fail("a")
    await api.enqueue("b")
    body = {"ids": ["a", "b", "none"]}
    misses = {"b": "it is pending, not failed", "none": "no such job"}
    report = await api.post("/dead-letters/replay", body)
    assert report == {"replayed": ["a"], "held": [], "not_replayed": misses, "next": None}
    again = await api.post("/dead-letters/replay", body)
    assert again["replayed"] == []
    assert again["not_replayed"] == {"a": "it is pending, not failed", **misses}


async def test_a_replay_is_bounded_and_continues(api: Api) -> None:
    await api.fail(*"abc")
    replayed: list[str] = []
    after = None
    while True:
        body = {"all": True, "limit": 1, **({"after": after} if after else {})}
        report = await api.post("/dead-letters/replay", body)
        replayed += report["replayed"]
        after = report["next"]
        if after is None:
            break
    assert sorted(replayed) == ["a", "b", "c"]


async def test_a_purge_is_bounded_and_says_whether_more_is_left(api: Api) -> None:
    await api.fail(*"abc")
    await api.fail("d", queue="mail")
    first = await api.post("/dead-letters/purge", {"queue": "default", "limit": 2})
    second = await api.post("/dead-letters/purge", {"queue": "default", "limit": 2})
    assert (len(first["purged"]), first["more"], len(second["purged"]), second["more"]) == (
        2,
        True,
        1,
        False,
    )
    report = await api.post("/dead-letters/purge", {"ids": ["d", "none"]})
    assert (report["purged"], report["not_purged"]) == (["d"], {"none": "no such job"})


async def test_the_dead_letters_must_be_selected(api: Api) -> None:
    await api.fail("a")
    for verb in ("replay", "purge"):
        response = await api.client.post(f"/api/v1/dead-letters/{verb}", json={})
        assert response.status_code == 422
    assert len((await api.get("/dead-letters"))["jobs"]) == 1


async def test_a_dead_letter_runs_again_with_other_arguments(api: Api) -> None:
    await api.fail("a")
    path = "/dead-letters/a/replay-edited"
    changed = {"payload": {"to": "b"}}
    checked = await api.post(path, {**changed, "dry_run": True})
    assert checked == {"id": None, "deleted": False, "validated": True}
    first = await api.post(path, changed)
    again = await api.post(path, {**changed, "delete": True})
    assert first == {"id": again["id"], "deleted": False, "validated": True}
    assert again["deleted"]
    (job,) = (await api.get("/jobs"))["jobs"]
    assert (job["id"], job["name"], job["state"]) == (first["id"], "send", "pending")
    contents = await api.get(f"/jobs/{job['id']}/contents")
    assert contents["headers"] == {"nimburion-replay-of": "a"}
    assert contents["payload"] == {"to": "b"}


async def test_an_edited_job_that_an_open_transaction_blocks_is_repeated(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.fail("a")
    backend = api.processor.backend
    enqueue, blocked = backend.producing.enqueue, [EnqueueBlocked("a transaction is still open")]

    async def block_once(jobs: Sequence[NewJob]) -> list[Enqueued]:
        if blocked:
            raise blocked.pop()
        return await enqueue(jobs)

    monkeypatch.setattr(backend.producing, "enqueue", block_once)
    await api.post("/dead-letters/a/replay-edited", {"payload": {"to": "b"}})
    assert await api.processor.pending_count() == 1


async def test_other_arguments_must_fit_and_the_job_must_be_dead(api: Api) -> None:
    await api.fail("a")
    await api.enqueue("b")
    for job_id, payload, status in (("a", {"to": 1}, 422), ("a", [], 422), ("b", {"to": ""}, 409)):
        response = await api.client.post(
            f"/api/v1/dead-letters/{job_id}/replay-edited", json={"payload": payload}
        )
        assert response.status_code == status, response.text
    assert len((await api.get("/jobs"))["jobs"]) == 2
