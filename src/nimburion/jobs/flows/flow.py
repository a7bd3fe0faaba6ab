"""Build a flow: its members, what they wait for, and the jobs that are called at its end.

```python
flow = Flow("import", on_failure=alert.job("the import failed"))
file = flow.add(fetch.job("https://example.com/f.csv"))
parts = flow.add_all(count_rows.job(file.result, n) for n in range(100))
flow.add(make_report.job(parts.results))
flow_id = await processor.enqueue_flow(flow)
```

A flow is a description. It stores nothing until it is enqueued.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.flows import ENDS, MAX_CONDITIONS, On
from nimburion.core.size_limits import check_name
from nimburion.core.text.shortening import shorten
from nimburion.jobs.declaration.job import (
    AnyJob,
    Declaration,
    JobCall,
    JobReturning,
    require_declaration,
)
from nimburion.jobs.flows.placeholder import MemberResult
from nimburion.jobs.options.uniqueness import ALL_FIELDS

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

OnName = Literal["success", "failure", "finished"]
"""Which end of a member meets a dependency: the values of `On`."""
Tolerance = int | str
"""How many members may fail: a number, or a percentage such as `"5%"`."""

MAX_MEMBERS = 1_000_000
"""The most members of a flow."""
MAX_RESULTS = 10_000
"""The most results that one argument takes."""
CALLBACKS = ("on_success", "on_failure", "on_finished")
"""The names of the callbacks of a flow. No member has one of them."""

_PERCENTAGE = re.compile(r"(\d+(?:\.\d+)?)%")


class Member(Generic[R_co]):
    """A job of a flow, whose result is an `R`. Made by `Flow.add`."""

    def __init__(self, flow: Flow, name: str, *, keeps_result: bool = True) -> None:
        self.flow: Flow = flow
        """The flow that it is in."""
        self.name: str = name
        """Its name in the flow. The id of its job is `FLOW_ID.NAME`."""
        self._keeps_result = keeps_result

    def __repr__(self) -> str:
        return f"<member {self.name!r} of flow {self.flow.name!r}>"

    @property
    def result(self) -> R_co:
        """The result, to be passed as an argument of another member.

        At run time it is a placeholder, which the worker replaces. Every other use raises
        `InvalidJob`.
        """
        if not self._keeps_result:
            raise InvalidJob(_explain_missing_result(self.name))
        return cast("R_co", MemberResult(self))


class Members(Generic[R_co]):
    """A group of jobs of a flow, each with the result `R`. Made by `Flow.add_all`."""

    def __init__(self, flow: Flow, name: str, count: int, *, keeps_results: bool = True) -> None:
        self.flow: Flow = flow
        """The flow that it is in."""
        self.name: str = name
        """Its name in the flow. The ids of its jobs are `FLOW_ID.NAME.0` and so on."""
        self._count = count
        self._keeps_results = keeps_results

    def __repr__(self) -> str:
        return f"<group {self.name!r} of flow {self.flow.name!r}, {self._count} jobs>"

    def __len__(self) -> int:
        return self._count

    @property
    def results(self) -> list[R_co]:
        """The results of the jobs that completed, in the order of the jobs, to be passed as an
        argument of another member.

        At run time it is a placeholder, as `Member.result` is.
        """
        if not self._keeps_results:
            raise InvalidJob(_explain_missing_result(self.name))
        if self._count > MAX_RESULTS:
            raise InvalidJob(
                f"the group {self.name!r} has {self._count} jobs, and an argument takes at most "
                f"{MAX_RESULTS} results; let the jobs store them, and pass `depends_on`"
            )
        return cast("list[R_co]", MemberResult(self))


AnyMember = Member[Any] | Members[Any]
"""What a member can depend on."""
Dependencies = AnyMember | Iterable[AnyMember]
"""What `depends_on` takes."""


class FlowEntry(NamedTuple):
    """What one call of `add` or `add_all` added."""

    name: str
    jobs: Sequence[AnyJob]
    conditions: Mapping[AnyMember, On]
    """The dependencies that the call named, without those that results add."""
    max_failed: Tolerance | None = None
    """The tolerance of a group; None: a single job."""


class Flow:
    """Jobs that wait for each other, and what runs at their end.

    `on_success`, `on_failure` and `on_finished` are jobs. `on_failure` is due as soon as more
    members have failed or were cancelled than `max_failed`, a number or a percentage such as
    `"5%"`. The two others are due when the last member has ended.

    ```python
    flow = Flow("import", on_failure=alert.job("the import failed"))
    file = flow.add(fetch.job("https://example.com/f.csv"))
    parts = flow.add_all((count_rows.job(file.result, n) for n in range(100)), max_failed="5%")
    flow.add(make_report.job(parts.results))
    await processor.enqueue_flow(flow, id="import-2026-11-30")
    ```

    A member whose dependency does not complete is cancelled, and so are those that depend on it.

    With `fail_fast=True`, all members that have not started are cancelled as soon as the flow has
    failed: at the first failure, or when more than `max_failed` members failed.

    With `open=True`, the flow does not end before `processor.flows.close`. Until then,
    `processor.flows.add` adds members.
    """

    def __init__(
        self,
        name: str,
        *,
        on_success: JobReturning[Any] | None = None,
        on_failure: JobReturning[Any] | None = None,
        on_finished: JobReturning[Any] | None = None,
        max_failed: Tolerance = 0,
        fail_fast: bool = False,
        open: bool = False,  # noqa: A002 (the name of the option)
    ) -> None:
        self.name: str = check_name("the name of a flow", name)
        """What the flow does, for people; flows of one kind share it."""
        self.max_failed: Tolerance = _check_tolerance(f"flow {name!r}", max_failed)
        """How many members may fail or be cancelled before the flow fails."""
        self.fail_fast: bool = fail_fast
        """Whether its failure cancels the members that have not started."""
        self.open: bool = open
        """Whether more members may come after it was enqueued, until it is closed."""
        if open and isinstance(max_failed, str):
            raise InvalidJob(
                f"flow {name!r}: the number of members of an open flow is not known, so max_failed "
                f"is a whole number, not {max_failed!r}"
            )
        self._callbacks: dict[str, AnyJob] = {}
        self._entries: list[FlowEntry] = []
        self._names: set[str] = set()
        self._taken: set[str] = set()
        self._count = 0
        for kind, job in zip(CALLBACKS, (on_success, on_failure, on_finished), strict=True):
            if job is not None:
                if find_results(job):
                    raise InvalidJob(f"{kind} of flow {name!r}: a callback takes no results")
                self._callbacks[kind] = cast("AnyJob", job)

    def __repr__(self) -> str:
        return f"<flow {self.name!r}, {self._count} jobs>"

    def __len__(self) -> int:
        """Return the number of jobs, without the callbacks."""
        return self._count

    def add(
        self,
        job: JobReturning[R],
        *,
        name: str | None = None,
        depends_on: Dependencies = (),
        on: On | OnName = "success",
    ) -> Member[R]:
        """Add a job, and return it as a member.

        It runs when the members of `depends_on`, and those whose results it takes, have completed.
        With `on="finished"`, the members of `depends_on` may also have failed; with
        `on="failure"`, they must have. The result of a single member needs its success; those of a
        group may also be taken with `on="finished"`. `name` is by default the name of the job, with
        `-2` and so on if it repeats.

        `InvalidJob` is raised for a member of another flow, a name that is taken, too many members
        or dependencies, and another `on` than `"success"` without `depends_on`.
        """
        declaration = require_declaration(job)
        conditions = self._read_conditions(depends_on, on)
        chosen = self._choose_name(name, declaration.name)
        self._check_member(chosen, job, conditions)
        self._add_entry(FlowEntry(chosen, (cast("AnyJob", job),), conditions))
        return Member(self, chosen, keeps_result=declaration.policy.result)

    def add_all(
        self,
        jobs: Iterable[JobReturning[R]],
        *,
        name: str | None = None,
        depends_on: Dependencies = (),
        on: On | OnName = "success",
        max_failed: Tolerance = 0,
    ) -> Members[R]:
        """Add a group of jobs, and return it.

        What depends on the group runs when all of its jobs have ended, and at most `max_failed` of
        them failed or were cancelled: a number, or a percentage such as `"5%"`. If more did, the
        group has failed, and counts as one failed member of the flow. A group without jobs
        succeeds at once. The other arguments are those of `add`.
        """
        members = list_jobs(jobs)
        conditions = self._read_conditions(depends_on, on)
        first = require_declaration(members[0]) if members else None
        chosen = self._choose_name(name, first.name if first else "group")
        tolerance = _check_tolerance(f"group {chosen!r}", max_failed)
        keeps_results = True
        for number, job in enumerate(members):
            keeps_results &= require_declaration(job).policy.result
            self._check_member(f"{chosen}.{number}", job, conditions)
        self._add_entry(FlowEntry(chosen, members, conditions, tolerance))
        return Members(self, chosen, len(members), keeps_results=keeps_results)

    def _add_entry(self, entry: FlowEntry) -> None:
        count = self._count + len(entry.jobs)
        if count > MAX_MEMBERS:
            raise InvalidJob(
                f"flow {self.name!r} would have {count} jobs, over the limit of {MAX_MEMBERS}; "
                "enqueue several flows"
            )
        self._count = count
        self._names.add(entry.name)
        self._entries.append(entry)

    def _choose_name(self, name: str | None, job_name: str) -> str:
        """Return the name of a new member. Raises `InvalidJob` if the caller's name is not
        possible."""
        if name is None:
            base, number = job_name.replace(".", "_"), 1
            chosen = base
            while chosen in self._names or chosen in CALLBACKS:
                number += 1
                chosen = f"{base}-{number}"
            return chosen
        check_name("the name of a member", name)
        if "." in name:
            raise InvalidJob(f"the name of a member has no dot: {name!r}")
        if name in CALLBACKS:
            raise InvalidJob(f"the name {name!r} belongs to a callback; use another one")
        if name in self._names:
            raise InvalidJob(f"flow {self.name!r} has a member {name!r} already; use another name")
        return name

    def _read_conditions(self, depends_on: Dependencies, on: On | OnName) -> dict[AnyMember, On]:
        if isinstance(depends_on, Member | Members):
            depends_on = (depends_on,)
        if isinstance(depends_on, str | MemberResult) or not isinstance(depends_on, Iterable):
            raise InvalidJob(
                f"depends_on takes members, not {depends_on!r}; `flow.add` returns one"
            )
        if on not in ENDS:
            known = ", ".join(repr(str(one)) for one in ENDS)
            raise InvalidJob(f"on is one of {known}, not {on!r}")
        end = On(on)
        conditions: dict[AnyMember, On] = {}
        for one in depends_on:
            if not isinstance(one, Member | Members):
                raise InvalidJob(
                    f"depends_on takes members, not {shorten(repr(one), 80)}; `flow.add` returns "
                    "one"
                )
            self._check_own(one)
            conditions[one] = end
        if end is not On.SUCCESS and not conditions:
            raise InvalidJob(
                f'on="{end}" says how the members of depends_on end, and there are none; pass '
                "depends_on"
            )
        return conditions

    def _check_own(self, source: AnyMember) -> None:
        if source.flow is not self:
            raise InvalidJob(
                f"{source!r} is in another flow: a member depends on members of its own flow only"
            )

    def _check_member(self, name: str, job: object, conditions: Mapping[AnyMember, On]) -> None:
        """Note whose results a job takes. Raise `InvalidJob` if it cannot be a member with these
        conditions.
        """
        results = find_results(job)
        count = len(conditions)
        if results:
            check_key_arguments(name, require_declaration(job), results)
            for argument, result in results.items():
                source = result.source
                self._check_own(source)
                on = conditions.get(source, On.SUCCESS)
                if on is On.FAILURE or (on is On.FINISHED and isinstance(source, Member)):
                    raise InvalidJob(
                        f"member {name!r}: the argument {argument!r} is the result of "
                        f"{source.name!r}, so it needs the success of that member; it cannot "
                        f'depend on it with on="{on}"'
                    )
                self._taken.add(source.name)
            count = len({*conditions, *(result.source for result in results.values())})
        if count > MAX_CONDITIONS:
            raise InvalidJob(
                f"member {name!r} has {count} dependencies, over the limit of {MAX_CONDITIONS}; "
                "add these jobs with `add_all`, and depend on the group"
            )


def chain(
    *links: JobReturning[Any] | Sequence[JobReturning[Any]],
    name: str = "chain",
    on_success: JobReturning[Any] | None = None,
    on_failure: JobReturning[Any] | None = None,
    on_finished: JobReturning[Any] | None = None,
) -> Flow:
    """Return a flow of jobs that run one after the other.

    Each link starts when the one before has completed. A list of jobs is a group, whose jobs run
    at the same time. No link gets the result of another one. To pass results, build a `Flow`.

    ```python
    await processor.enqueue_flow(chain(fetch.job(), [resize.job(1), resize.job(2)], publish.job()))
    ```
    """
    flow = Flow(name, on_success=on_success, on_failure=on_failure, on_finished=on_finished)
    before: list[AnyMember] = []
    for link in links:
        if isinstance(link, list | tuple):
            before = [flow.add_all(link, depends_on=before)]
        else:
            before = [flow.add(cast("JobReturning[Any]", link), depends_on=before)]
    return flow


def list_entries(flow: Flow) -> list[FlowEntry]:
    """Return what was added to a flow, in this order."""
    return flow._entries


def list_taken(flow: Flow) -> set[str]:
    """Return the names of the members and groups whose results other members take."""
    return flow._taken


def list_callbacks(flow: Flow) -> dict[str, AnyJob]:
    """Return the jobs that are called at the end of a flow, by `on_success` and the like."""
    return flow._callbacks


def find_results(job: object) -> dict[str, MemberResult]:
    """Return the arguments of a job that are results of other members."""
    if isinstance(job, JobCall) and MemberResult not in map(type, msgspec.structs.astuple(job)):
        return {}  # most members have none
    arguments = require_declaration(job).read_arguments(job)
    return {name: value for name, value in arguments.items() if type(value) is MemberResult}


def count_tolerated(tolerance: Tolerance, members: int) -> int:
    """Return how many members may fail.

    >>> count_tolerated(2, 100), count_tolerated("5%", 100), count_tolerated("5%", 19)
    (2, 5, 0)
    """
    if isinstance(tolerance, int):
        return tolerance
    return int(Decimal(tolerance.removesuffix("%")) * members / 100)


def check_key_arguments(name: str, declaration: Declaration, results: Iterable[str]) -> None:
    """Raise `InvalidJob` if a unique key or a limit needs an argument that is a result."""
    unique = declaration.policy.unique
    needed: dict[str, str] = {}
    if unique is not None and unique.key is None:
        fields = tuple(results) if unique.fields == (ALL_FIELDS,) else unique.fields
        needed |= dict.fromkeys(fields, "the unique key")
    for limit in declaration.policy.limits:
        needed |= {value: "a limit" for value in (limit.key, limit.cost) if isinstance(value, str)}
    for argument in results:
        if argument in needed:
            raise InvalidJob(
                f"member {name!r}: {needed[argument]} needs the argument {argument!r}, whose value "
                "is a result that is not known yet; pass a value that is known"
            )


def list_jobs(jobs: object) -> list[AnyJob]:
    """Return the jobs of an iterable. Raises `InvalidJob` if it is none."""
    if isinstance(jobs, str) or not isinstance(jobs, Iterable):
        raise InvalidJob(
            f"add_all takes several jobs, as a list or a generator, not {shorten(repr(jobs), 80)}"
        )
    return list(jobs)


def _check_tolerance(what: str, tolerance: object) -> Tolerance:
    if isinstance(tolerance, int) and not isinstance(tolerance, bool) and tolerance >= 0:
        return tolerance
    if isinstance(tolerance, str):
        found = _PERCENTAGE.fullmatch(tolerance)
        if found is not None and Decimal(found[1]) <= 100:
            return tolerance
    raise InvalidJob(
        f"{what}: max_failed is a whole number or a percentage like '5%', not {tolerance!r}"
    )


def _explain_missing_result(name: str) -> str:
    return (
        f"the result of member {name!r} is not kept: its job is declared with result=False; remove "
        "that, or pass `depends_on`"
    )
