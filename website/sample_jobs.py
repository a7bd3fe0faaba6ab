"""Sample data for the dashboard: what an application with mail, reports and videos looks like.

The pictures of the documentation show it, and the tests in a browser work with it. Everything goes
through the backend, as workers and operators do it. With a fake clock, the data covers an hour;
with a real one, everything happens now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import msgspec

from nimburion.core.audit import AuditRecord, put_audit
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import BulkAction, NewBulkOperation, start_bulk_operation
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.ids import JobIds
from nimburion.core.job import AttemptError, JobOptions, NewJob
from nimburion.core.lease import Delivery
from nimburion.core.metrics.histogram import Histogram
from nimburion.core.metrics.statistics import (
    Counters,
    Statistics,
)
from nimburion.core.queries import JobFilter
from nimburion.core.session import Session, Vitals
from nimburion.core.settlement import Completed, Failed, Progressed, Retried, Settlement
from nimburion.core.text.fingerprints import compute_fingerprint
from nimburion.testing.contract.harness import make_limits
from website.sample_flow import FLOW_ID, PARTS, enqueue_import
from website.sample_flow import NAMES as FLOW_JOBS

MINUTE = 60.0
HOUR = 3600.0
LANES = {
    "send_email": "mail",
    "send_newsletter": "mail",
    "build_report": "reports",
    "encode_video": "videos",
    "sync_contacts": "imports",
    **dict.fromkeys(FLOW_JOBS, "reports"),
}
"""The queue of each name."""
SIZES = {"send_email": 90, "send_newsletter": 30, "build_report": 12, "encode_video": 4}
"""About how many jobs of some names come each minute."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Where the pages find something to show."""

    waiting: str
    """The id of a job that waits."""
    running: str
    """The id of a job that runs, with progress."""
    retrying: str
    """The id of a job that failed and will run again."""
    failed: str
    """The id of a dead letter."""
    fingerprint: str
    """The group of that dead letter."""
    operation: str
    """The id of a bulk operation."""
    flow: str
    """The id of a flow that has failed."""


def _keep_time(_: float) -> None:
    """Let no time pass."""


class SampleWorker:
    """A session that runs jobs as told."""

    def __init__(self, backend: Backend, session: Session, nonce: int) -> None:
        self.session = session
        self._backend = backend
        self._number = 0
        self._nonce = nonce

    async def open(self, vitals: Vitals) -> None:
        """Open the session and send the first heartbeat."""
        await self._backend.consuming.open_session(self.session)
        await self._backend.consuming.heartbeat(self.session.id, vitals)

    async def reserve(self, name: str, total: int) -> list[Delivery]:
        """Reserve jobs of one name."""
        return await self.settle([], ReserveRequest(total=total, lanes=(Lane(LANES[name], name),)))

    async def settle(
        self, settlements: Sequence[Settlement], request: ReserveRequest | None = None
    ) -> list[Delivery]:
        """Settle attempts, and reserve jobs."""
        self._number += 1
        wanted = request or ReserveRequest(total=0)
        nonce = (self._nonce * 1_000 + self._number).to_bytes(16, "big")
        wanted = msgspec.structs.replace(wanted, nonce=nonce)
        reply = await self._backend.consuming.exchange(
            self.session.id, self._number, settlements, wanted
        )
        return reply.deliveries


async def fill_sample(
    backend: Backend, advance: Callable[[float], None] = _keep_time, seed: int = 1
) -> Sample:
    """Fill an empty backend. `advance` moves its clock by seconds, if that is a fake one."""
    random = Random(seed)
    now = await backend.now()
    ids = JobIds(lambda: now, random.randbytes)
    workers = await open_workers(backend, advance)
    advance(2 * MINUTE)

    async def enqueue(name: str, count: int, payload: bytes, after: float = 0.0) -> list[str]:
        options = JobOptions(tenant="acme")
        jobs = [
            NewJob(ids.make(), name, LANES[name], payload, options=options, after=after)
            for _ in range(count)
        ]
        await backend.producing.enqueue(jobs)
        return [job.id for job in jobs]

    done = await enqueue("send_email", 24, b'{"to":"user@example.org","template":"welcome"}')
    await run_all(workers[0], "send_email", len(done), advance, random)
    await enqueue_import(backend, LANES["fetch_file"])
    await run_flow(workers[1], advance, random)
    await enqueue("build_report", 9, b'{"month":"2026-10","format":"pdf"}')
    await run_all(workers[1], "build_report", 9, advance, random)
    failed: list[str] = []
    for name, count, error in ERRORS:
        failed += await enqueue(name, count, b'{"to":"user@example.org","attachment":17}')
        await fail_all(workers[0], name, error, count, advance)
    retrying = await enqueue("send_email", 3, b'{"to":"user@example.org","template":"invoice"}')
    await retry_all(workers[0], len(retrying))
    await enqueue("sync_contacts", 140, b'{"account":4711}')
    await backend.maintenance.pause_queue(
        "imports",
        paused=True,
        by="ops",
        reason="the CRM is down for maintenance",
        until=None,
    )
    advance(3 * MINUTE)
    running = await enqueue("encode_video", 14, b'{"video":"intro.mov","height":1080}')
    deliveries = await workers[2].reserve("encode_video", 2)
    reached = [(0.62, "frame 1488 of 2400"), (0.07, "frame 168 of 2400")]
    await workers[2].settle(
        [
            Progressed(one.lease, fraction, text)
            for one, (fraction, text) in zip(deliveries, reached, strict=True)
        ]
    )
    advance(0.7 * MINUTE)
    waiting = await enqueue("send_newsletter", 42, b'{"issue":88,"to":"user@example.org"}')
    await enqueue("send_email", 5, b'{"to":"user@example.org","template":"reminder"}', after=5_400)
    await put_audit_records(backend)
    operation = await start_bulk_operation(
        backend,
        NewBulkOperation(
            id=ids.make(),
            action=BulkAction.REPLAY,
            which=JobFilter(fingerprint=ERRORS[1][2].fingerprint),
            by="ops",
            origin="dashboard",
            rate=10.0,
            limit=1,
        ),
    )
    for worker, vitals in zip(workers[:3], VITALS, strict=True):
        await backend.consuming.heartbeat(worker.session.id, vitals)
    advance(2.0)
    await put_minutes(backend, await backend.now(), random)
    await put_week_before(backend, await backend.now(), random)
    return Sample(
        waiting=waiting[0],
        running=running[0],
        retrying=retrying[0],
        failed=failed[0],
        fingerprint=ERRORS[0][2].fingerprint,
        operation=operation.id,
        flow=FLOW_ID,
    )


def make_error(
    name: str, error_type: str, message: str, line: str, module: str = ""
) -> AttemptError:
    """Return the error of an attempt, with a traceback as a worker keeps it."""
    traceback = (
        "Traceback (most recent call last):\n"
        f'  File "app/jobs.py", line 41, in {name}\n    {line}\n'
        '  File "app/client.py", line 88, in call\n    return self.transport.send(request)\n'
        '  File "/usr/lib/python3.13/site-packages/transport/session.py", line 589, in send\n'
        "    answer = self.read(self.write(request))\n"
        '  File "/usr/lib/python3.13/socket.py", line 719, in readinto\n'
        "    return self._sock.recv_into(buffer)\n"
        f"{error_type}: {message}\n"
    )
    fingerprint = compute_fingerprint("failure", error_type, f"app.jobs.{name}", message)
    return AttemptError(
        1, "failure", error_type, message, traceback, fingerprint=fingerprint, module=module
    )


ERRORS = [
    (
        "send_email",
        11,
        make_error(
            "send_email",
            "SMTPServerDisconnected",
            "Connection unexpectedly closed",
            "client.call(message)",
            "smtplib",
        ),
    ),
    (
        "send_newsletter",
        4,
        make_error("send_newsletter", "KeyError", "'unsubscribe_url'", "render(template, reader)"),
    ),
    (
        "build_report",
        2,
        make_error(
            "build_report",
            "OperationalError",
            "canceling statement due to statement timeout after 30000 ms",
            "rows = fetch(month)",
            "psycopg.errors",
        ),
    ),
]
"""The errors of the dead letters: name, number of jobs and error."""

VITALS = [
    Vitals(
        slots=16,
        busy=5,
        loop_lag=0.004,
        rss=96_468_992,
        lease_margin=24.1,
        version="0.1.0",
        python="3.13.1",
        code_version="2026.11.27",
    ),
    Vitals(
        slots=8,
        busy=1,
        loop_lag=0.011,
        rss=132_120_576,
        lease_margin=22.8,
        version="0.1.0",
        python="3.13.1",
        code_version="2026.11.27",
    ),
    Vitals(
        slots=2,
        busy=2,
        loop_lag=0.382,
        rss=488_636_416,
        lease_margin=9.6,
        version="0.1.0",
        python="3.12.8",
        code_version="2026.11.20",
    ),
]
"""What the live workers report."""


async def open_workers(backend: Backend, advance: Callable[[float], None]) -> list[SampleWorker]:
    """Open the sessions of three workers on two hosts. The older version starts first."""
    day = 86_400.0
    sessions = [
        Session(
            id="a1" * 16,
            ttl=day,
            host="web-1",
            pid=4711,
            owner="shop",
            queues=("mail", "imports"),
            names=("send_email", "send_newsletter", "sync_contacts"),
        ),
        Session(
            id="b2" * 16,
            ttl=day,
            host="web-1",
            pid=4712,
            owner="shop",
            queues=("reports",),
            names=("build_report", *FLOW_JOBS),
        ),
        Session(
            id="c3" * 16,
            ttl=day,
            host="video-1",
            pid=902,
            owner="shop",
            queues=("videos",),
            names=("encode_video",),
            limits=make_limits({"encode_video": 2}),
        ),
    ]
    workers = [SampleWorker(backend, one, number) for number, one in enumerate(sessions, 1)]
    *newer, older = zip(workers, VITALS, strict=True)
    for worker, vitals in (older, *newer):
        await worker.open(vitals)
        advance(20 * MINUTE if worker is older[0] else 0.0)
    return workers


async def run_all(
    worker: SampleWorker, name: str, count: int, advance: Callable[[float], None], random: Random
) -> None:
    """Complete the waiting jobs of a name, one after the other."""
    for _ in range(count):
        deliveries = await worker.reserve(name, 1)
        advance(random.uniform(0.2, 4.0))
        await worker.settle([Completed(one.lease, b'"sent"') for one in deliveries])


async def run_flow(worker: SampleWorker, advance: Callable[[float], None], random: Random) -> None:
    """Run the import: one of its parts fails."""
    await run_all(worker, "fetch_file", 1, advance, random)
    await run_all(worker, "count_rows", PARTS - 1, advance, random)
    error = make_error("count_rows", "ValueError", "row 4711 has 3 columns", "read(row)")
    deliveries = await worker.reserve("count_rows", 1)
    await worker.settle([Failed(one.lease, "permanent", error) for one in deliveries])
    await run_all(worker, "tidy_up", 1, advance, random)
    await run_all(worker, "call_operator", 1, advance, random)


async def fail_all(
    worker: SampleWorker,
    name: str,
    error: AttemptError,
    count: int,
    advance: Callable[[float], None],
) -> None:
    """Make dead letters of the waiting jobs of a name, each after a retry."""
    for delivery in await worker.reserve(name, count):
        advance(1.3)
        await worker.settle([Retried(delivery.lease, 0.0, error)])
    last = msgspec.structs.replace(error, attempt=2)
    for delivery in await worker.reserve(name, count):
        advance(45.0)
        await worker.settle([Failed(delivery.lease, "exhausted", last)])


async def retry_all(worker: SampleWorker, count: int) -> None:
    """Let the waiting mails fail once, to run again later."""
    error = make_error(
        "send_email", "TimeoutError", "no answer within 10 s", "client.call(message)"
    )
    deliveries = await worker.reserve("send_email", count)
    await worker.settle([Retried(one.lease, 3_600.0, error) for one in deliveries])


async def put_week_before(backend: Backend, until: float, random: Random) -> None:
    """Store the statistics of four hours a week before."""
    last = int(until // HOUR * HOUR) - 7 * 24 * int(HOUR)
    for hour in range(4):
        rows = []
        for name, size in SIZES.items():
            completed = round(60 * size * random.uniform(1.0, 1.3))
            counters = Counters(
                enqueued=completed,
                completed=completed,
                retried=completed // 30,
                wait=_spread(200, 0.5, random),
                run=_spread(200, 1.1, random),
            )
            start = last - int(HOUR) * hour
            rows.append(
                Statistics(step=3600, start=start, queue=LANES[name], name=name, counters=counters)
            )
        await backend.consuming.put_statistics("sample week", rows)


async def put_minutes(backend: Backend, until: float, random: Random) -> None:
    """Store the statistics of the last hour."""
    last = int(until // MINUTE * MINUTE)
    for minute in range(60):
        rows = []
        for name, size in SIZES.items():
            enqueued = round(size * (1.3 + math.sin(minute / 9)) * random.uniform(0.8, 1.2))
            retried = enqueued // 6 if name == "send_email" and minute > 44 else 0
            failed = int(retried > 0 and minute % 2)
            counters = Counters(
                enqueued=enqueued,
                started=enqueued,
                completed=enqueued - retried - failed,
                retried=retried,
                failed=failed,
                wait=_spread(enqueued, 0.4 if name != "encode_video" else 95.0, random),
                run=_spread(enqueued, 0.8 if name != "encode_video" else 70.0, random),
            )
            start = last - int(MINUTE) * (59 - minute)
            rows.append(
                Statistics(step=60, start=start, queue=LANES[name], name=name, counters=counters)
            )
        await backend.consuming.put_statistics("sample", rows)


def _spread(count: int, typical: float, random: Random) -> Histogram:
    histogram = Histogram()
    for _ in range(count):
        histogram.observe(random.lognormvariate(math.log(typical), 0.7))
    return histogram


async def put_audit_records(backend: Backend) -> None:
    """Store what operators did."""
    records = [
        AuditRecord(
            id="sample-1",
            action="dead_letters.replay",
            target="",
            by="ops",
            origin="api",
            details={"fingerprint": ERRORS[0][2].fingerprint},
            outcome="done",
            changed=3,
        ),
        AuditRecord(
            id="sample-2",
            action="queue.pause",
            target="imports",
            by="ops",
            origin="dashboard",
            details={"reason": "the CRM is down for maintenance"},
            outcome="done",
            changed=1,
        ),
        AuditRecord(
            id="sample-3",
            action="schedule.run",
            target="nightly_report",
            by="root@web-1",
            origin="cli",
            outcome="failed",
            error="no such schedule",
        ),
    ]
    for record in records:
        await put_audit(backend, record)
