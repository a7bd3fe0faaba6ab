"""A flow for the sample data: an import, one part of which has failed."""

from __future__ import annotations

from nimburion.core.backend import Backend
from nimburion.core.flows import NewFlow, On, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import JobOptions, NewJob

FLOW_ID = "import-2026-11-27"
PARTS = 8
NAMES = ("fetch_file", "count_rows", "make_report", "send_report", "tidy_up", "call_operator")
"""The names of the jobs of the flow."""


async def enqueue_import(backend: Backend, queue: str) -> None:
    """Store a flow that fetches a file, counts its parts, and reports. One part may fail."""
    fetch, parts = _wait_for_job("fetch_file"), WaitSource(SourceKind.FLOW, f"{FLOW_ID}.parts")
    group = f"{FLOW_ID}.parts"
    jobs = [
        _make_job("fetch_file", queue, JobOptions(flow=FLOW_ID)),
        *(
            _make_job(
                "count_rows",
                queue,
                JobOptions(flow=FLOW_ID, group=group, conditions=(fetch,)),
                member=f"parts.{number}",
            )
            for number in range(PARTS)
        ),
        _make_job(
            "make_report", queue, JobOptions(flow=FLOW_ID, conditions=(WaitCondition(parts),))
        ),
        _make_job(
            "send_report",
            queue,
            JobOptions(flow=FLOW_ID, conditions=(_wait_for_job("make_report"),)),
        ),
        _make_job(
            "tidy_up",
            queue,
            JobOptions(flow=FLOW_ID, conditions=(WaitCondition(parts, On.FINISHED), fetch)),
        ),
        _make_job(
            "call_operator",
            queue,
            JobOptions(
                flow=FLOW_ID,
                group="",
                conditions=(WaitCondition(WaitSource(SourceKind.FLOW, FLOW_ID), On.FAILURE),),
            ),
            member="on_failure",
        ),
    ]
    flows = [
        NewFlow(id=FLOW_ID, name="import", members=5),
        NewFlow(id=group, name="parts", members=PARTS, parent=FLOW_ID),
    ]
    await backend.producing.enqueue(jobs, flows)


def _wait_for_job(name: str) -> WaitCondition:
    return WaitCondition(WaitSource(SourceKind.JOB, f"{FLOW_ID}.{name}"))


def _make_job(name: str, queue: str, options: JobOptions, member: str | None = None) -> NewJob:
    return NewJob(
        f"{FLOW_ID}.{member or name}", name, queue, b'{"day":"2026-11-27"}', options=options
    )
