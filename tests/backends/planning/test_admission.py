"""The limits that a plan makes itself are not those that workers declare."""

from __future__ import annotations

import re

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.planning.admission import REPLY_LIMIT
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.limits import LIMIT_PATTERN, LimitRule
from nimburion.core.session import Session
from nimburion.core.settlement import Completed


def test_no_declared_limit_has_the_name_of_the_limit_of_a_reply() -> None:
    assert re.fullmatch(LIMIT_PATTERN, REPLY_LIMIT) is None


async def test_a_limit_named_reply_counts_its_jobs() -> None:
    backend, session = MemoryBackend(), "0" * 32
    await backend.open()
    options = JobOptions(limit_keys={"reply": "acme"})
    await backend.producing.enqueue(
        [NewJob(job_id, "send", "mail", b"{}", options=options) for job_id in ("a", "b")]
    )
    limits = {"send": {"reply": LimitRule(concurrency=1)}}
    await backend.consuming.open_session(
        Session(id=session, queues=("mail",), names=("send",), limits=limits)
    )
    request = ReserveRequest(total=9, lanes=(Lane("mail", "send"),))
    first = await backend.consuming.exchange(session, 1, [], request)
    (limit,) = await backend.reads.list_limits(name="reply")
    assert ([one.lease.job_id for one in first.deliveries], limit.in_use) == (["a"], 1)
    done = Completed(first.deliveries[0].lease)
    second = await backend.consuming.exchange(session, 2, [done], request)
    assert [one.lease.job_id for one in second.deliveries] == ["b"]
    await backend.close()
