"""What jobs take from the web request that enqueues them."""

from __future__ import annotations

from typing import Any

import pytest

from nimburion import Processor, get_current_context, job
from nimburion.core.errors import InvalidJob
from nimburion.jobs.handling.context import CURRENT, RequestContext

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("request_id", [None, "", "a\nb", "x" * 513, "a\x00", "a\x85", "\ud800"])
@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        PARENT.upper(),
        f"{PARENT}-",
        f"ff{PARENT[2:]}",
        PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        PARENT.replace("00f067aa0ba902b7", "0" * 16),
    ],
)
def test_values_that_cannot_be_used_are_ignored(
    request_id: str | None, traceparent: str | None
) -> None:
    assert RequestContext.read(request_id, traceparent) is None


async def test_a_job_takes_what_the_request_has_and_the_call_wins() -> None:
    @job
    async def send(to: str) -> None: ...

    async with Processor("memory://") as processor:
        token = CURRENT.set(RequestContext.read("req-7", PARENT))
        try:
            assert get_current_context() is None
            taken = await processor.enqueue(send.job("a"), headers={"own": "1"})
            own = await processor.enqueue(
                send.job("a"), correlation_id="own", headers={"traceparent": "mine"}
            )
            many = await processor.enqueue_many([send.job("b")])
        finally:
            CURRENT.reset(token)
        statuses = [await processor.get_status(one) for one in (taken, own, *many)]
    assert [one.correlation_id for one in statuses] == ["req-7", "own", "req-7"]
    assert [one.headers for one in statuses] == [
        {"traceparent": PARENT, "own": "1"},
        {"traceparent": "mine"},
        {"traceparent": PARENT},
    ]


@pytest.mark.parametrize("headers", [["a"], 5, "a"])
async def test_wrong_headers_are_reported_inside_a_request_too(headers: Any) -> None:
    @job
    async def send(to: str) -> None: ...

    async with Processor("memory://") as processor:
        token = CURRENT.set(RequestContext.read("req-7", PARENT))
        try:
            with pytest.raises(InvalidJob, match="headers must be a dict of str to str"):
                await processor.enqueue(send.job("a"), headers=headers)
        finally:
            CURRENT.reset(token)
