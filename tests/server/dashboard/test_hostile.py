"""Nothing from a job, a pause or a worker is ever markup, a command or invisible."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

from nimburion.core.audit import AuditRecord, put_audit
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import BulkAction, NewBulkOperation, start_bulk_operation
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.flows import NewFlow
from nimburion.core.job import AttemptError, JobOptions, NewJob
from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.core.queries import JobFilter
from nimburion.core.session import Session, Vitals
from nimburion.core.settlement import Failed, Progressed
from nimburion.jobs.client.client import Client
from nimburion.scheduler.schedules import Schedules
from nimburion.server.dashboard.page import AnyPage
from nimburion.server.dashboard.rendering import finalize_value, format_lines, format_state
from nimburion.testing.contract.harness import make_limits
from tests.server.conftest import Api
from tests.server.dashboard.conftest import every_page, make_path

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\" autofocus onfocus='alert(1)"
    " {{ 7*7 }} ${7*7} \x1b[31mred\x1b[0m \u202eevil\u202c \u2066x\u2069 javascript:alert(1)"
)
MEBIBYTE = "<b>" * 350_000
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


async def fill_with_hostile_texts(client: Client, until: float | None = 1e10) -> None:
    """Store hostile texts wherever the backend takes text."""
    backend = client.backend
    options = JobOptions(
        headers={"x": HOSTILE}, tenant="<b>t", correlation_id="<b>c", unique_key="<b>u"
    )
    payload = b'{"to":"<script>alert(1)</script>\\u0000","big":"%s"}' % MEBIBYTE[:900_000].encode()
    jobs = [NewJob(job_id, "send", "mail", payload, options=options) for job_id in ("a", "c")]
    jobs[0] = NewJob("a", "send", "mail", b'{"to":"\xe2\x80\xae<script>"}', options=JobOptions())
    await backend.producing.enqueue(jobs)
    session = Session(id="h" * 32, host=HOSTILE, owner=HOSTILE, queues=("mail",), names=("send",))
    await backend.consuming.open_session(session)
    reply = await backend.consuming.exchange(
        session.id, 1, [], ReserveRequest(total=2, lanes=(Lane("mail", "send"),))
    )
    error = AttemptError(
        1, "permanent", "<b>Broken", HOSTILE, f"Traceback\n  {HOSTILE}\n{MEBIBYTE[:60_000]}"
    )
    settled = [Failed(one.lease, "permanent", error) for one in reply.deliveries]
    await backend.consuming.exchange(session.id, 2, settled, ReserveRequest(total=0))
    await backend.maintenance.pause_queue(
        "mail", paused=True, by=HOSTILE, reason=HOSTILE, until=until
    )
    await Schedules(client).add("daily", "@daily", "send")
    member = JobOptions(flow="import", tenant=HOSTILE)
    await backend.producing.enqueue(
        [NewJob("import.a", "send", "mail", b"{}", options=member)],
        [NewFlow(id="import", name=HOSTILE, members=2)],
    )
    await fill_other_pages(backend)


async def fill_other_pages(backend: Backend) -> None:
    """Store hostile texts on the pages of workers, running jobs, metrics, operations and audit."""
    await backend.producing.enqueue([NewJob("runs", "send", "bank", b"{}")])
    session = Session(
        id="i" * 32,
        host="<b>",
        queues=("bank",),
        names=("send", HOSTILE),
        limits=make_limits({HOSTILE: 1}),
    )
    await backend.consuming.open_session(session)
    await backend.consuming.heartbeat(session.id, Vitals(version=HOSTILE, code_version=HOSTILE))
    request = ReserveRequest(total=1, lanes=(Lane("bank", "send"),))
    reply = await backend.consuming.exchange(session.id, 1, [], request)
    progress = [Progressed(one.lease, 0.5, HOSTILE) for one in reply.deliveries]
    await backend.consuming.exchange(session.id, 2, progress, ReserveRequest(total=0))
    which = JobFilter(tenant=HOSTILE, correlation_id=HOSTILE)
    await start_bulk_operation(
        backend, NewBulkOperation(id="a", action=BulkAction.REPLAY, which=which, by=HOSTILE)
    )
    await put_audit(backend,
        AuditRecord(
            id="1", action=HOSTILE, target=HOSTILE, by=HOSTILE, origin=HOSTILE,
            details={HOSTILE: HOSTILE}, outcome="failed", error=HOSTILE,
        )
    )  # fmt: skip
    start = int(await backend.now()) // 60 * 60
    counters = Counters(enqueued=1, completed=1)
    rows = [Statistics(step=60, start=start, queue=HOSTILE, name=HOSTILE, counters=counters)]
    await backend.consuming.put_statistics(HOSTILE, rows)


class ActiveMarkup(HTMLParser):
    """Collects elements and attributes that only hostile texts bring into a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, object]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in {"b", "iframe", "object", "style"} or (tag == "script" and "nonce" not in values):
            self.found.append((tag, values))
        for name, value in attrs:
            is_link = name in {"href", "src", "action", "hx-post"}
            if name.startswith("on") or (is_link and (value or "")[:1] not in {"/", "?", "#"}):
                self.found.append((name, value))


def find_active_markup(text: str) -> list[tuple[str, object]]:
    """Return what a browser would run or load beyond the page's own."""
    parser = ActiveMarkup()
    parser.feed(text)
    return parser.found


@every_page
async def test_hostile_texts_are_inert(api: Api, page: AnyPage) -> None:
    await fill_with_hostile_texts(api.processor)
    for form in ("html", "fragment"):
        response = await api.client.get(make_path(page), params={"format": form})
        assert response.status_code == 200, response.text[:500]
        text = response.text
        assert len(text) < 400_000
        assert FORBIDDEN.findall(text.replace("\n", "")) == []
        assert find_active_markup(text) == []


@every_page
async def test_the_twin_has_the_texts_unchanged(api: Api, page: AnyPage) -> None:
    await fill_with_hostile_texts(api.processor)
    response = await api.client.get(make_path(page), params={"format": "json"})
    assert response.status_code == 200
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_values_are_escaped_by_the_environment() -> None:
    assert finalize_value("a\x00\u202eb") == r"a\x00\u202eb"
    assert finalize_value(None) == ""
    assert format_lines("<i>\n\x1b") == html.escape("<i>") + "\n\\x1b"
    assert "<x>" not in format_state("<x>")


def test_active_markup_is_found() -> None:
    for text in ("<b>", "<script>", "<i onclick=x>", "<a href='javascript:x'>", "<img src=x>"):
        assert find_active_markup(text), text


def test_long_texts_are_cut_and_say_so() -> None:
    shown = format_lines("x" * 70_000)
    assert len(shown) < 66_000
    assert shown.endswith("more characters")
