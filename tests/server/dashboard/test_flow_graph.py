"""The graph of a flow: what becomes a box, how many there are, and where they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from nimburion.actions.flow_members import FlowMembers
from nimburion.actions.flows import FlowTree
from nimburion.core.flows import On, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import JobOptions, JobRecord, State
from nimburion.server.dashboard.flows.graph import MAX_BOXES, NOT_ENDED, FlowBox, make_boxes
from nimburion.server.dashboard.flows.layout import BOX_HEIGHT, BOX_WIDTH, arrange
from nimburion.server.dashboard.flows.picture import draw_flow, draw_state_bar


def make_record(
    job_id: str,
    sources: Iterable[str] = (),
    *,
    name: str = "work",
    state: State = State.COMPLETED,
    group: str | None = None,
    groups: Iterable[str] = (),
    on: On = On.SUCCESS,
) -> JobRecord:
    """Return a member of the flow `f` that waits for these members and groups."""
    conditions = [
        *(WaitCondition(WaitSource(SourceKind.JOB, f"f.{source}"), on) for source in sources),
        *(WaitCondition(WaitSource(SourceKind.FLOW, f"f.{source}"), on) for source in groups),
    ]
    return JobRecord(
        id=f"f.{job_id}",
        name=name,
        queue="default",
        state=state,
        priority=5,
        payload=None,
        due=0.0,
        created_at=0.0,
        options=JobOptions(flow="f", group=group, conditions=tuple(conditions)),
    )


def make_members(
    records: Iterable[JobRecord], groups: Mapping[str, FlowTree] | None = None
) -> FlowMembers:
    found = {record.id: record for record in records}
    trees = tuple((groups or {}).values())
    tree = FlowTree(id="f", name="flow", members=len(found), unfinished=0, groups=trees)
    return FlowMembers(tree=tree, records=found, examined=0, start=None, missing=0)


def make_group(name: str, members: int, *, unfinished: int = 0, failed: int = 0) -> FlowTree:
    return FlowTree(
        id=f"f.{name}",
        name=name,
        parent="f",
        members=members,
        unfinished=unfinished,
        completed=members - unfinished - failed,
        failed=failed,
    )


def name_sources(boxes: list[FlowBox], box: FlowBox) -> list[str]:
    return [boxes[source.box].label for source in box.sources]


def test_an_import_with_a_group_and_a_callback() -> None:
    records = [
        make_record("fetch", name="fetch"),
        make_record("parts.0", ["fetch"], name="count", group="f.parts"),
        make_record("report", groups=["parts"], name="report", state=State.SUSPENDED),
        make_record("on_failure", name="alert", group="", state=State.SUSPENDED),
    ]
    parts = make_group("parts", 10_000, unfinished=9_000, failed=2)
    boxes = make_boxes(make_members(records, {"parts": parts}))
    assert [(box.label, box.kind, box.layer, box.jobs) for box in boxes] == [
        ("fetch", "job", 0, 1),
        ("parts", "group", 1, 10_000),
        ("report", "job", 2, 1),
        ("on_failure", "callback", 3, 1),
    ]
    assert [name_sources(boxes, box) for box in boxes] == [[], ["fetch"], ["parts"], []]
    group = boxes[1]
    assert (group.job_name, group.state, group.counts[NOT_ENDED]) == ("count", "failed", 9_000)
    assert (group.link, boxes[2].link) == ("/flows/f?group=f.parts", "/jobs/f.report")


def test_few_equal_jobs_keep_their_boxes_and_many_are_one() -> None:
    few = [make_record("first"), *(make_record(f"w{n}", ["first"]) for n in range(5))]
    assert len(make_boxes(make_members(few))) == 6
    many = [
        make_record("first", name="first"),
        *(make_record(f"w{n}", ["first"], name="work") for n in range(500)),
        *(make_record(f"v{n}", [f"w{n}"], name="verify", on=On.FINISHED) for n in range(500)),
        make_record("w500", ["first"], name="work", state=State.FAILED),
    ]
    boxes = make_boxes(make_members(many))
    assert [(box.label, box.jobs, box.state) for box in boxes] == [
        ("first", 1, "completed"),
        ("work", 501, "failed"),
        ("verify", 500, "completed"),
    ]
    assert [source.on for source in boxes[2].sources] == [On.FINISHED]
    assert boxes[1].link == "/jobs?q=flow%3Af+name%3Awork"


@pytest.mark.parametrize("shape", ["chain", "wide", "groups", "names", "diamond"])
def test_any_flow_has_few_boxes_and_loses_no_job(shape: str) -> None:
    count = 3_000
    groups: dict[str, FlowTree] = {}
    if shape == "chain":
        records = [make_record(f"c{n}", [f"c{n - 1}"] if n else []) for n in range(count)]
    elif shape == "wide":
        records = [make_record(f"w{n}", name=f"name{n}") for n in range(count)]
    elif shape == "names":
        records = [
            make_record(f"c{n}", [f"c{n - 1}"] if n else [], name=f"name{n % 700}")
            for n in range(count)
        ]
    elif shape == "diamond":
        records = [
            make_record(f"d{n}", [f"d{m}" for m in range(max(0, n - 3), n)], name=f"name{n}")
            for n in range(count)
        ]
    else:
        records = []
        groups = {f"g{n}": make_group(f"g{n}", 2) for n in range(count)}
    boxes = make_boxes(make_members(records, groups))
    assert len(boxes) <= MAX_BOXES
    assert sum(box.boxes for box in boxes) == count
    assert sum(box.jobs for box in boxes) == count * (2 if groups else 1)
    assert sum(sum(box.counts.values()) for box in boxes) == sum(box.jobs for box in boxes)
    for number, box in enumerate(boxes):
        assert all(source.box < number for source in box.sources)
        assert all(boxes[source.box].layer < box.layer for source in box.sources)
    assert draw_flow(boxes, "/dashboard").count('class="box ') == len(boxes)


def test_a_cycle_is_drawn_too() -> None:
    records = [make_record("a", ["b"]), make_record("b", ["a"]), make_record("c")]
    assert len(make_boxes(make_members(records))) == 3


def test_no_box_covers_another_one_and_lines_keep_clear_of_boxes() -> None:
    records = [
        *(make_record(f"a{n}") for n in range(7)),
        *(make_record(f"b{n}", [f"a{n}", f"a{(n * 3) % 7}"]) for n in range(7)),
        make_record("end", [*(f"b{n}" for n in range(7)), "a0", "a6"]),
    ]
    boxes = make_boxes(make_members(records))
    layout = arrange(boxes)
    corners = layout.boxes
    for number, one in enumerate(corners):
        assert 0 <= one.x <= layout.width - BOX_WIDTH
        assert 0 <= one.y <= layout.height - BOX_HEIGHT
        for other in corners[:number]:
            assert one.x != other.x or abs(one.y - other.y) >= BOX_HEIGHT
    passed = [point for line in layout.lines.values() for point in line]
    assert len(passed) == 2
    for point in passed:
        column = [one.y for one in corners if one.x < point.x < one.x + BOX_WIDTH]
        assert all(not y < point.y < y + BOX_HEIGHT for y in column)


def test_texts_of_a_picture_are_no_markup() -> None:
    picture = draw_flow(make_boxes(make_members([make_record("a<b>", name="<i>\u202e")])), "/d")
    assert "<b>" not in picture
    assert "<i>" not in picture
    assert "\u202e" not in picture


def test_a_bar_shows_a_single_failure_among_many() -> None:
    bar = draw_state_bar({"completed": 99_999, "failed": 1, NOT_ENDED: 0})
    assert "99\u202f999 completed, 1 failed" in bar
    widths = [float(part.split('"')[0]) for part in bar.split(' width="')[1:]]
    assert min(widths) >= 20
    assert "no members" in draw_state_bar({})
