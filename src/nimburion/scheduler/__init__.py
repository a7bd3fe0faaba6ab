"""Schedules: cron expressions, intervals and one-off times that enqueue jobs, without a leader."""

from nimburion.core.errors import ScheduleNotFound
from nimburion.scheduler.scheduler import Scheduler
from nimburion.scheduler.schedules import ScheduleInfo, Schedules

__all__ = ["ScheduleInfo", "ScheduleNotFound", "Scheduler", "Schedules"]
