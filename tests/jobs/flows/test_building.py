"""Flows that cannot be built, and what is said about them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from nimburion import Flow, chain
from nimburion.core.errors import DefinitionError, InvalidJob
from nimburion.core.flows import MAX_CONDITIONS
from nimburion.jobs.flows import Member
from nimburion.jobs.flows import flow as flows
from nimburion.jobs.flows.flow import OnName
from tests.jobs.flows.flow_jobs import (
    Checked,
    Measure,
    add_up,
    count_rows,
    fail,
    fetch,
    keep_nothing,
    limited_path,
    note,
    show,
    take_path,
)

NOT_KNOWN = "the result of member 'fetch' is not known while the flow is built"


def test_names_are_those_of_the_jobs_and_repeat_with_a_number() -> None:
    flow = Flow("names")
    names = [flow.add(fetch.job("a")).name for _ in range(3)]
    assert names == ["fetch", "fetch-2", "fetch-3"]
    assert flow.add_all([note.job("a")]).name == "note"
    assert flow.add_all([]).name == "group"
    assert flow.add(fetch.job("a"), name="fetch-5").name == "fetch-5"
    assert len(flow) == 5


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda result: f"{result}", id="format"),
        pytest.param(str, id="str"),
        pytest.param(bool, id="bool"),
        pytest.param(len, id="len"),
        pytest.param(list, id="list"),
        pytest.param(hash, id="hash"),
        pytest.param(lambda result: result + "x", id="add"),
        pytest.param(lambda result: "x" + result, id="add to a text"),
        pytest.param(lambda result: result == "x", id="compare"),
        pytest.param(lambda result: result[0], id="item"),
        pytest.param(lambda result: result.strip(), id="attribute"),
        pytest.param(lambda result: Checked(path=result), id="in a constructor"),
    ],
)
def test_a_result_is_not_a_value(use: Callable[[object], object]) -> None:
    member = Flow("import").add(fetch.job("a"))
    assert repr(member.result) == "<the result of member 'fetch'>"
    with pytest.raises(InvalidJob, match=NOT_KNOWN):
        use(member.result)


@pytest.mark.parametrize("name", ["fetch", "on_failure", "a.b", "", "a b"])
def test_a_name_that_is_not_possible(name: str) -> None:
    flow = Flow("import")
    flow.add(fetch.job("a"))
    with pytest.raises(InvalidJob, match="name"):
        flow.add(note.job("a"), name=name)
    assert len(flow) == 1


Add = Callable[[Flow, Member[str]], object]


@pytest.mark.parametrize(
    "add",
    [
        pytest.param(lambda flow, other: flow.add(note.job("a"), depends_on=[other]), id="depends"),
        pytest.param(lambda flow, other: flow.add(show.job(other.result)), id="result"),
        pytest.param(
            lambda flow, other: flow.add_all([show.job("a"), show.job(other.result)]), id="group"
        ),
    ],
)
def test_a_member_of_another_flow(add: Add) -> None:
    other = Flow("other").add(fetch.job("a"))
    flow = Flow("import")
    with pytest.raises(InvalidJob, match="'fetch' of flow 'other'> is in another flow"):
        add(flow, other)
    assert len(flow) == 0


@pytest.mark.parametrize("depends_on", ["fetch", ["fetch"], 5, [fetch.job("a")], [None]])
def test_a_dependency_that_is_no_member(depends_on: object) -> None:
    flow = Flow("import")
    flow.add(fetch.job("a"))
    with pytest.raises(InvalidJob, match=r"depends_on takes members, not .*`flow\.add` returns"):
        flow.add(note.job("a"), depends_on=depends_on)  # type: ignore[arg-type]


@pytest.mark.parametrize("on", ["x", "any"])
def test_an_end_that_is_unknown(on: str) -> None:
    flow = Flow("import")
    first = flow.add(fetch.job("a"))
    with pytest.raises(
        InvalidJob, match=f"on is one of 'success', 'failure', 'finished', not {on!r}"
    ):
        flow.add(note.job("a"), depends_on=first, on=on)  # type: ignore[arg-type]


@pytest.mark.parametrize("on", ["failure", "finished"])
def test_an_end_without_a_dependency(on: OnName) -> None:
    """A result alone needs success, so `on` would be ignored there too."""
    flow = Flow("import")
    parts = flow.add_all([count_rows.job("", 1)])
    message = f'on="{on}" says how the members of depends_on end, and there are none'
    for job in (note.job("a"), add_up.job(parts.results)):
        with pytest.raises(InvalidJob, match=message):
            flow.add(job, on=on)
    with pytest.raises(InvalidJob, match=message):
        flow.add_all([note.job("a")], on=on, depends_on=[])
    assert len(flow) == 1


@pytest.mark.parametrize("on", ["failure", "finished"])
def test_a_result_needs_success(on: OnName) -> None:
    flow = Flow("import")
    first = flow.add(fetch.job("a"))
    with pytest.raises(InvalidJob, match=f"'text' is the result of 'fetch'.*cannot.*on=\"{on}\""):
        flow.add(show.job(first.result), depends_on=first, on=on)


def test_the_results_of_a_group_need_its_end() -> None:
    flow = Flow("import")
    parts = flow.add_all([count_rows.job("", 1)])
    flow.add(add_up.job(parts.results), depends_on=parts, on="finished")
    with pytest.raises(InvalidJob, match='cannot depend on it with on="failure"'):
        flow.add(add_up.job(parts.results), depends_on=parts, on="failure")


@pytest.mark.parametrize("tolerance", [-1, True, 0.5, "5", "x%", "101%", None])
def test_a_tolerance_that_is_none(tolerance: object) -> None:
    message = "max_failed is a whole number or a percentage like '5%'"
    with pytest.raises(InvalidJob, match=message):
        Flow("import", max_failed=tolerance)  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match=message):
        Flow("import").add_all([], max_failed=tolerance)  # type: ignore[arg-type]


def test_what_is_no_job() -> None:
    flow = Flow("import")
    with pytest.raises(InvalidJob, match=re.escape("pass fetch.job(…)")):
        flow.add(fetch)  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match=r"add_all takes several jobs, .* not fetch"):
        flow.add_all(fetch.job("a"))  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match="is not a job"):
        flow.add_all([fetch.job("a"), 5])  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match="is not a job"):
        Flow("import", on_failure=note)  # type: ignore[arg-type]
    assert len(flow) == 0


def test_a_result_that_is_not_kept() -> None:
    flow = Flow("import")
    member, group = flow.add(keep_nothing.job()), flow.add_all([keep_nothing.job()])
    with pytest.raises(InvalidJob, match="'keep_nothing' is not kept: its job is declared with"):
        show.job(member.result)
    with pytest.raises(InvalidJob, match="'keep_nothing-2' is not kept: its job is declared with"):
        show.job(group.results)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("job", "what"),
    [(take_path, "the unique key"), (limited_path, "a limit")],
    ids=["unique", "limit"],
)
def test_a_key_of_a_result(job: object, what: str) -> None:
    flow = Flow("import")
    file = flow.add(fetch.job("a"))
    with pytest.raises(InvalidJob, match=f"{what} needs the argument 'path', whose value is a"):
        flow.add(job.job(file.result))  # type: ignore[attr-defined]


def test_more_dependencies_than_a_member_can_have() -> None:
    flow = Flow("import")
    members = [flow.add(fail.job(number)) for number in range(MAX_CONDITIONS + 1)]
    flow.add(note.job("a"), depends_on=members[1:])
    with pytest.raises(InvalidJob, match="1001 dependencies, over the limit of 1000; add these"):
        flow.add(note.job("a"), depends_on=members)
    with pytest.raises(InvalidJob, match="1001 dependencies"):
        flow.add(Measure(path=members[0].result), depends_on=members[1:])  # type: ignore[arg-type]


def test_more_members_than_a_flow_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "MAX_MEMBERS", 3)
    flow = Flow("import")
    flow.add_all(fail.job(number) for number in range(3))
    with pytest.raises(InvalidJob, match="would have 4 jobs, over the limit of 3"):
        flow.add(note.job("a"))


def test_more_results_than_an_argument_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "MAX_RESULTS", 3)
    flow = Flow("import")
    group = flow.add_all(fail.job(number) for number in range(4))
    with pytest.raises(InvalidJob, match="4 jobs, and an argument takes at most 3 results"):
        add_up.job(group.results)


def test_a_callback_takes_no_result() -> None:
    first = Flow("import").add(fetch.job("a"))
    with pytest.raises(InvalidJob, match="on_success of flow 'b': a callback takes no results"):
        Flow("b", on_success=show.job(first.result))


def test_a_chain_has_one_member_for_each_link() -> None:
    flow = chain(fetch.job("a"), [note.job("b"), note.job("c")], show.job("d"), name="three")
    assert [entry.name for entry in flows.list_entries(flow)] == ["fetch", "note", "show"]
    assert [len(entry.conditions) for entry in flows.list_entries(flow)] == [0, 1, 1]
    assert repr(flow) == "<flow 'three', 4 jobs>"


def test_the_name_of_a_flow() -> None:
    with pytest.raises((InvalidJob, DefinitionError), match="the name of a flow"):
        Flow("my import")


def test_reprs() -> None:
    flow = Flow("import")
    assert repr(flow.add(fetch.job("a"))) == "<member 'fetch' of flow 'import'>"
    parts = flow.add_all([count_rows.job("a", 1)])
    assert repr(parts) == "<group 'count_rows' of flow 'import', 1 jobs>"
    assert (len(parts), add_up.job(parts.results)) is not None
