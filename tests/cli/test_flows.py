"""`nimburion flows`: list, show, cancel and replay flows; what a suspended job waits for."""

from __future__ import annotations

import json

from nimburion import Flow, Processor, job
from nimburion.core.backend import Backend
from nimburion.core.flows import NewFlow
from tests.cli.conftest import CommandLine


@job
async def part(number: int) -> int:
    if number == 1:
        raise ValueError("damaged")
    return number


@job
async def add_up(counts: list[int]) -> int:
    return sum(counts)


async def store(backend: Backend, flow_id: str = "i") -> None:
    flow = Flow("import")
    parts = flow.add_all((part.job(number) for number in range(3)), name="parts")
    flow.add(add_up.job(parts.results))
    async with Processor(backend) as processor:
        await processor.enqueue_flow(flow, id=flow_id)


async def run(backend: Backend) -> None:
    processor = Processor(backend, max_retries=0)
    processor.register(part, add_up)
    async with processor:
        await processor.drain()


def test_flows_are_listed_by_their_state(nimburion: CommandLine) -> None:
    async def add_several(backend: Backend) -> None:
        running = [NewFlow(id=f"r{n}", name="other", members=1) for n in range(150)]
        ended = [NewFlow(id=f"e{n}", name="other") for n in range(3)]
        await backend.producing.enqueue([], [*ended, *running])

    for change in (store, run, add_several):
        nimburion.call_backend(change)

    def list_ids(*options: str) -> list[str]:
        return [flow["id"] for flow in nimburion("flows", "list", "--json", *options).data["flows"]]

    assert list_ids("--state", "failed") == ["i"]
    assert list_ids("--state", "cancelled") == []
    assert list_ids("--state", "running", "--limit", "2") == ["r149", "r148"]
    first = nimburion("flows", "list", "--state", "completed", "--limit", "2", "--json").data
    assert ([flow["id"] for flow in first["flows"]], first["examined"]) == (["e2", "e1"], 152)
    assert list_ids("--state", "completed", "--after", first["next"]) == ["e0"]
    cut = nimburion("flows", "list", "--state", "completed", "--limit", "1").out.splitlines()[-1]
    assert cut.startswith("examined 151 flows; more: add --after ")
    mixed = nimburion("flows", "list", "--running", "--state", "failed")
    assert (mixed.code, "either --running or --state" in mixed.err) == (2, True)


def test_a_search_for_flows_is_bounded(nimburion: CommandLine) -> None:
    async def add_many(backend: Backend) -> None:
        flows = [NewFlow(id=f"f{n}", name="other") for n in range(1_001)]
        await backend.producing.enqueue([], flows)

    nimburion.call_backend(add_many)
    printed = nimburion("flows", "list", "--state", "failed").out.splitlines()
    assert printed[0] == "no such flows"
    assert printed[1].startswith("examined 1000 flows; more: add --after ")


def test_a_flow_is_listed_and_shown(nimburion: CommandLine) -> None:
    nimburion.call_backend(store)
    listed = nimburion("flows", "list", "--running", "--json").data
    (flow,) = listed["flows"]
    assert (flow["id"], flow["state"], flow["unfinished"]) == ("i", "running", 2)
    assert nimburion("flows", "list").out.splitlines()[1].split()[:4] == [
        "i",
        "import",
        "running",
        "2",
    ]
    shown = nimburion("flows", "show", "i")
    assert "groups:" in shown.out
    assert "i.parts" in shown.out
    assert nimburion("flows", "show", "i", "--json").data["groups"][0]["members"] == 3
    unknown = nimburion("flows", "show", "other")
    assert (unknown.code, "no flow 'other'" in unknown.err) == (4, True)
    nimburion.call_backend(run)
    assert nimburion("flows", "list", "--running").out == "no such flows\n"
    members = nimburion("jobs", "list", "--flow", "i", "--json").data["jobs"]
    assert len(members) == 4


def test_why_a_member_waits(nimburion: CommandLine) -> None:
    nimburion.call_backend(store)
    why = nimburion("why", "i.add_up").out
    assert "It waits for 3 of 3 members of i.parts." in why
    (row,) = nimburion("jobs", "list", "--state", "suspended").out.splitlines()[1:]
    assert row.split()[-3:] == ["5", "-", "-"]
    nimburion.call_backend(run)
    why = nimburion("why", "i.add_up").out
    assert "It is cancelled, reason: dependency" in why


def test_the_failed_part_is_shown_and_replayed(nimburion: CommandLine) -> None:
    nimburion.call_backend(store)
    nimburion.call_backend(run)
    preview = nimburion("flows", "replay", "i")
    assert preview.code == 2
    assert "i.parts.1" in preview.out
    assert "1 job cancelled because others did not complete" in preview.out
    assert "1 job of flow i would be replayed; nothing was done" in preview.err
    assert nimburion("flows", "replay", "i", "--yes").out == "1 job replayed\n"
    assert nimburion("flows", "show", "i", "--json").data["state"] == "running"


def test_the_rest_of_a_flow_is_cancelled(nimburion: CommandLine) -> None:
    nimburion.call_backend(store)
    counted = nimburion("flows", "cancel", "i")
    assert (counted.code, counted.err[:53]) == (
        2,
        "nimburion: 2 members of flow i would be cancelled; no",
    )
    cancelled = nimburion("flows", "cancel", "i", "--yes", "--json").data["cancelled"]
    assert set(cancelled) <= {"i.add_up", "i.parts.0", "i.parts.1", "i.parts.2"}
    assert nimburion("flows", "show", "i", "--json").data["state"] in {"cancelled", "failed"}
    assert "flows.cancel" in nimburion("audit").out


def test_a_flow_in_place_of_a_job_is_refused(nimburion: CommandLine) -> None:
    nimburion.call_backend(lambda backend: store(backend, "import-1"))
    for command in (["why"], ["status"], ["jobs", "show"]):
        refused = nimburion(*command, "import-1")
        assert (refused.code, refused.err) == (
            2,
            "nimburion: 'import-1' is a flow, not a job: use `nimburion flows show import-1`\n",
        )
    assert "'import-1.parts' is a group of a flow" in nimburion("why", "import-1.parts").err


def test_a_group_is_not_changed_in_place_of_its_flow(nimburion: CommandLine) -> None:
    nimburion.call_backend(store)
    for action in ("cancel", "replay"):
        for options in ((), ("--yes",)):
            refused = nimburion("flows", action, "i.parts", *options)
            assert refused.code == 2
            assert "'i.parts' is a group: pass the id of its flow, 'i'" in refused.err
    assert "'i.parts' is a group" in nimburion("flows", "export", "i.parts").err
    assert nimburion("flows", "show", "i", "--json").data["unfinished"] == 2


def test_a_flow_with_nothing_to_change(nimburion: CommandLine) -> None:
    nimburion.call_backend(store)
    assert "nothing to replay" in nimburion("flows", "replay", "i").err
    nimburion("flows", "cancel", "i", "--yes")
    assert "nothing to cancel" in nimburion("flows", "cancel", "i").err
    assert nimburion("flows", "close", "i").out == "i was not open\n"
    assert nimburion("flows", "close", "other").code == 4


def test_a_flow_is_exported_for_support_without_data(nimburion: CommandLine) -> None:
    nimburion.call_backend(store)
    nimburion.call_backend(run)
    nimburion("flows", "replay", "i", "--reason", "mended", "--yes")
    nimburion.call_backend(run)
    data = json.loads(nimburion("flows", "export", "i").out)
    assert (data["flow"]["state"], data["flow"]["groups"][0]["failed"]) == ("failed", 1)
    jobs = {job["id"]: job for job in data["jobs"]}
    assert {*jobs} == {"i.parts.0", "i.parts.1", "i.parts.2", "i.add_up"}
    assert [error["message"] for error in jobs["i.parts.1"]["errors"]] == ["damaged"] * 2
    assert jobs["i.add_up"]["conditions"] == [{"source": {"kind": "flow", "id": "i.parts"}}]
    assert [(one["action"], one["details"]) for one in data["audit"]] == [
        ("flows.replay", {"reason": "mended"})
    ]
    assert "Traceback" not in str(data)
    assert nimburion("flows", "export", "other").code == 4
