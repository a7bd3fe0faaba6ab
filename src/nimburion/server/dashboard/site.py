"""All pages and actions of the dashboard, and its navigation."""

from __future__ import annotations

from typing import NamedTuple

from nimburion.server.dashboard.page import AnyPage, DashboardAction
from nimburion.server.dashboard.pages import (
    about,
    audit,
    backend,
    bulk_operations,
    dead_letters,
    limits,
    metrics,
    overview,
    schedules,
    search,
    workers,
)
from nimburion.server.dashboard.pages.flows import flow, flow_list, flow_replay
from nimburion.server.dashboard.pages.jobs import job, job_list, running
from nimburion.server.dashboard.pages.queues import queue, queue_list


class NavigationEntry(NamedTuple):
    """An entry of the navigation."""

    label: str
    path: str
    key: str
    """The key that opens it."""


SECTIONS = (
    NavigationEntry("Overview", "", "o"),
    NavigationEntry("Queues", "/queues", "q"),
    NavigationEntry("Jobs", "/jobs", "j"),
    NavigationEntry("Flows", "/flows", "f"),
    NavigationEntry("Dead letters", "/dead-letters", "d"),
    NavigationEntry("Running", "/running", "n"),
    NavigationEntry("Workers", "/workers", "w"),
    NavigationEntry("Schedules", "/schedules", "s"),
    NavigationEntry("Limits", "/limits", "l"),
    NavigationEntry("Metrics", "/metrics", "m"),
    NavigationEntry("Backend", "/backend", "b"),
    NavigationEntry("Operations", "/operations", "p"),
    NavigationEntry("Audit", "/audit", "a"),
    NavigationEntry("About", "/about", "i"),
)

PAGES: tuple[AnyPage, ...] = (
    overview.OVERVIEW,
    queue_list.QUEUES,
    queue.QUEUE,
    job_list.JOBS,
    job.JOB,
    flow_list.FLOWS,
    flow.FLOW,
    flow_replay.FLOW_REPLAY,
    dead_letters.DEAD_LETTERS,
    dead_letters.DEAD_LETTER_GROUP,
    dead_letters.ARGUMENTS,
    running.RUNNING,
    workers.WORKERS,
    schedules.SCHEDULES,
    limits.LIMITS,
    metrics.METRICS,
    backend.BACKEND,
    bulk_operations.OPERATIONS,
    bulk_operations.NEW_OPERATION,
    audit.AUDIT,
    about.ABOUT,
    search.SEARCH,
)

ACTIONS: tuple[DashboardAction, ...] = (
    *queue_list.ACTIONS,
    *job_list.ACTIONS,
    *job.ACTIONS,
    *flow.ACTIONS,
    *flow_replay.ACTIONS,
    *dead_letters.ACTIONS,
    *running.ACTIONS,
    *limits.ACTIONS,
    *workers.ACTIONS,
    *schedules.ACTIONS,
    *bulk_operations.ACTIONS,
)
