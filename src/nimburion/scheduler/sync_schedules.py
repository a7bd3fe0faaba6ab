"""The actions on schedules as blocking calls: `processor.sync.schedules`."""

from __future__ import annotations

from nimburion.jobs.client.sync_actions import SyncActions, make_sync, make_sync_list
from nimburion.scheduler.schedules import Schedules


class SyncSchedules(SyncActions):
    """List, add, pause, resume, remove and run schedules."""

    @make_sync_list(Schedules.list)
    def list(self) -> None: ...
    @make_sync(Schedules.get)
    def get(self) -> None: ...
    @make_sync(Schedules.add)
    def add(self) -> None: ...
    @make_sync(Schedules.pause)
    def pause(self) -> None: ...
    @make_sync(Schedules.resume)
    def resume(self) -> None: ...
    @make_sync(Schedules.remove)
    def remove(self) -> None: ...
    @make_sync(Schedules.run_now)
    def run_now(self) -> None: ...
    @make_sync(Schedules.history)
    def history(self) -> None: ...
