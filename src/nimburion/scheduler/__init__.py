"""Turns ticks into jobs: cron expressions, intervals, and schedulers that need no leader."""

from nimburion.core.errors import ScheduleNotFound
from nimburion.scheduler.scheduler import Scheduler
from nimburion.scheduler.schedules import ScheduleInfo, Schedules

__all__ = ["ScheduleInfo", "ScheduleNotFound", "Scheduler", "Schedules"]
