"""The pages of jobs in Django's admin. They only read.

A user needs the permission `nimburion.view_storedjob` to see the pages, and
`nimburion.view_arguments` to see arguments, results and error messages on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlencode

import django
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from nimburion.actions.search import SEARCH_BUDGET, UnusableSearch, parse_search
from nimburion.core.errors import InvalidJob, JobNotFound, NimburionError
from nimburion.core.job import JobRecord, State
from nimburion.core.queries import JobFilter, Page
from nimburion.integrations.django import get_processor
from nimburion.integrations.django.models import StoredJob

if TYPE_CHECKING:
    from nimburion.jobs.client.client import Client

    JobAdminBase = admin.ModelAdmin[StoredJob]
else:
    JobAdminBase = admin.ModelAdmin

_PAGE_SIZE = 50
_STATE_WORD = re.compile(r"(?<!\S)state:\S+")


@admin.register(StoredJob)
class JobAdmin(JobAdminBase):
    """Lists the jobs of the backend, newest first, and shows each of them."""

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        """Return False: the application adds jobs."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: StoredJob | None = None) -> bool:  # noqa: ARG002
        """Return False: nothing is changed here."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: StoredJob | None = None) -> bool:  # noqa: ARG002
        """Return False: nothing is deleted here."""
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show a page of jobs: those that the text `q` of the query describes."""
        self._require_view(request)
        text = request.GET.get("q", "")
        context: dict[str, Any] = {"jobs": [], "next": None, "problem": None}
        try:
            which = parse_search(text, timezone.now().timestamp())
            page = get_processor().sync.call(_list_jobs, which, request.GET.get("after"))
        except (NimburionError, UnusableSearch) as error:
            context["problem"] = str(error)
        else:
            context["jobs"] = [_describe(record) for record in page.jobs]
            if page.next is not None:
                context["next"] = "?" + urlencode({"q": text, "after": page.next})
        return self._render(
            request,
            "changelist",
            {
                **context,
                "title": "Jobs",
                "text": text,
                "is_first": "after" not in request.GET,
                "states": _link_states(text),
                "breadcrumbs": [(None, "Jobs")],
                **(extra_context or {}),
            },
        )

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",  # noqa: ARG002 (there is no form)
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one job with its attempts."""
        self._require_view(request)
        try:
            record = get_processor().sync.call(_get_job, object_id)
        except (JobNotFound, InvalidJob) as error:
            raise Http404(str(error)) from error
        user: Any = request.user
        shows_arguments = user.has_perm("nimburion.view_arguments")
        return self._render(
            request,
            "detail",
            {
                "title": record.name,
                "subtitle": record.id,
                "dashboard": _find_dashboard(record.id),
                "facts": _list_facts(record),
                "breadcrumbs": [
                    (reverse("admin:nimburion_storedjob_changelist"), "Jobs"),
                    (None, record.id),
                ],
                "attempts": [
                    {
                        "number": attempt.number,
                        "worker": attempt.session,
                        "host": attempt.host,
                        "started": _to_datetime(attempt.started_at),
                        "ended": _to_datetime(attempt.ended_at),
                        "outcome": attempt.outcome,
                    }
                    for attempt in record.attempts
                ],
                "errors": record.history if shows_arguments else [],
                "shows_arguments": shows_arguments,
                "unique_key": record.options.described_key,
                "headers": record.options.headers,
                "payload": _to_text(record.payload),
                "result": _to_text(record.result),
                **(extra_context or {}),
            },
        )

    def history_view(
        self,
        request: HttpRequest,
        object_id: str,
        extra_context: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> HttpResponse:
        """Answer with status 404: there is no table of changes. `nimburion audit` lists them."""
        return self._refuse_page(request, object_id)

    def delete_view(
        self,
        request: HttpRequest,
        object_id: str,
        extra_context: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> HttpResponse:
        """Answer with status 404: nothing is deleted here."""
        return self._refuse_page(request, object_id)

    def _refuse_page(self, request: HttpRequest, object_id: str) -> NoReturn:
        self._require_view(request)
        raise Http404(f"the pages of jobs only read; job {object_id!r} has no such page")

    def _require_view(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied

    def _render(
        self, request: HttpRequest, template: str, context: Mapping[str, Any]
    ) -> HttpResponse:
        return TemplateResponse(
            request,
            f"admin/nimburion/storedjob/{template}.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "has_list_of_breadcrumbs": django.VERSION >= (6, 1),
                **context,
            },
        )


async def _list_jobs(client: Client, which: JobFilter, after: str | None) -> Page:
    return await client.backend.reads.list_jobs(
        which, limit=_PAGE_SIZE, after=after, budget=SEARCH_BUDGET
    )


async def _get_job(client: Client, job_id: str) -> JobRecord:
    return await client.backend.reads.get_job(job_id)


def _find_dashboard(job_id: str) -> str | None:
    """Return the address of a job in the dashboard, if the project includes it."""
    try:
        return reverse("nimburion:dashboard", kwargs={"path": f"dashboard/jobs/{job_id}"})
    except NoReverseMatch:
        return None


def _link_states(text: str) -> list[tuple[str, str, bool]]:
    """Return the links that narrow a search to one state: label, address, and whether chosen."""
    others = _STATE_WORD.sub("", text).strip()
    found = _STATE_WORD.findall(text)
    links = [("All", "?" + urlencode({"q": others}), not found)]
    for state in State:
        word = f"state:{state.value}"
        search = urlencode({"q": f"{others} {word}".strip()})
        links.append((state.value.capitalize(), f"?{search}", word in found))
    return links


def _describe(record: JobRecord) -> dict[str, Any]:
    """Return the columns of a job in the list."""
    return {
        "id": record.id,
        "name": record.name,
        "queue": record.queue,
        "state": record.state.value,
        "attempt": record.attempt,
        "created": _to_datetime(record.created_at),
        "due": _to_datetime(record.due),
        "error": None if record.error is None else record.error.type,
    }


def _list_facts(record: JobRecord) -> list[tuple[str, object]]:
    """Return what the page of a job says about it: a label and a value each."""
    options = record.options
    facts: list[tuple[str, object]] = [
        ("State", record.state.value),
        ("Reason", record.reason),
        ("Queue", record.queue),
        ("Priority", record.priority),
        ("Attempt", record.attempt),
        ("Created", _to_datetime(record.created_at)),
        ("Due", _to_datetime(record.due)),
        ("Started", _to_datetime(record.started_at)),
        ("Finished", _to_datetime(record.finished_at)),
        ("Error", record.error and record.error.type),
        ("Tenant", options.tenant),
        ("Correlation id", options.correlation_id),
        ("Tags", ", ".join(options.tags)),
    ]
    return [(label, value) for label, value in facts if value not in (None, "")]


def _to_datetime(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _to_text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "backslashreplace")
