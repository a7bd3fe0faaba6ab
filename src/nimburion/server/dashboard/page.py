"""Pages and actions of the dashboard as data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar, cast

import msgspec

from nimburion.server.access import Caller
from nimburion.server.api.operation import AnyOperation, NoQuery
from nimburion.server.dashboard.readings import PageReadings
from nimburion.server.services import ManagementServices

UPDATE_INTERVAL = 1.0
"""The usual interval of live updates in seconds."""

QueryT = TypeVar("QueryT", bound=msgspec.Struct)


class PageRequest(msgspec.Struct, Generic[QueryT], frozen=True):
    """A request for a page, with its parts parsed."""

    services: ManagementServices
    caller: Caller
    path: dict[str, str]
    """The parameters of the path. All are names or ids, and valid ones."""
    query: QueryT
    readings: PageReadings
    """Reads the backend; the viewers of all pages share what it reads."""


class DashboardPage(msgspec.Struct, Generic[QueryT], frozen=True, kw_only=True):
    """One page: HTML, the same as JSON, and live updates of its block `live`."""

    path: str
    """Below `/dashboard`, with parameters in braces: `/queues/{queue}`."""
    title: str
    """The title, which may hold the parameters of the path: `Queue {queue}`."""
    section: str
    """The entry of the navigation that the page belongs to."""
    read: Callable[[PageRequest[QueryT]], Awaitable[msgspec.Struct]]
    """Returns what the page shows. The JSON twin is this value."""
    template: str
    right: str = "read"
    query: type[QueryT] = cast("type[QueryT]", NoQuery)
    """Parameters must be enumerations, bounded numbers, names or checked texts."""
    interval: float | None = UPDATE_INTERVAL
    """Seconds between two live updates, at most; None: the page is not live."""

    tables: tuple[str, ...] = ()
    """The tables that the page has as CSV, the most important one first: fields of what `read`
    returns, or of a field of it (`report.checks`).
    """
    redirect: Callable[[Any], str | None] | None = None
    """Returns the path below `/dashboard` of a page to open instead, from what `read` returns. A
    page with it that is not live waits for its values.
    """
    constants: dict[str, Any] = msgspec.field(default_factory=dict)
    """Further values for the template, the same for each request."""

    @property
    def name(self) -> str:
        """The name of the page, which is that of its template without its folder."""
        return self.template.rpartition("/")[2].removesuffix(".html")

    def list_rows(self, shown: msgspec.Struct, table: str) -> list[msgspec.Struct]:
        """Return the rows of one of `tables`, from what the page shows."""
        rows: Any = shown
        for field in table.split("."):
            rows = getattr(rows, field, ())
        return list(rows)


AnyPage = DashboardPage[Any]


def find_operation(operations: Iterable[AnyOperation], name: str) -> AnyOperation:
    """Return the operation of this name, for an action."""
    return next(operation for operation in operations if operation.name == name)


class DashboardAction(msgspec.Struct, frozen=True, kw_only=True):
    """A form of a page that calls an operation of the API, with its right and its audit record."""

    path: str
    """Below `/dashboard`, with parameters in braces."""
    operation: AnyOperation
    done: str
    """What happened, for people; may hold the parameters of the path: `Queue {queue} is paused.`"""
    back: str
    """The path of the page to show afterwards, where no script runs."""
    describe: Callable[[Any], str] | None = None
    """Returns what happened from the answer of the operation; None: `done` says it."""
    fixed: dict[str, str] = msgspec.field(default_factory=dict)
    """Fields of the body that are the same for each use of the form."""
    body_from_path: dict[str, str] = msgspec.field(default_factory=dict)
    """Fields of the body that are parameters of the path: field and parameter."""

    form_page: AnyPage | None = None
    """The page of the form. Where no script runs, it is shown again with what was written, after
    an error and after a check that changes nothing.
    """
    refill: Callable[[Any, dict[str, str]], Any] | None = None
    """Returns what `form_page` shows, with the fields of the form in it."""

    @property
    def name(self) -> str:
        """The name of the action, unique in the dashboard."""
        return self.path.strip("/").replace("/", ".").replace("{", "").replace("}", "")
