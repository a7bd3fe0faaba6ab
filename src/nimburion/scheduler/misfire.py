"""Which tick is to be decided now, given how late it is. Pure."""

from __future__ import annotations

from nimburion.scheduler.spec import Spec
from nimburion.scheduler.trigger import Timetable


def first_due(table: Timetable, spec: Spec, base: float, now: float) -> int | None:
    """The first tick after `base` that fires now; None: none does.

    Ticks that are at most `grace` seconds late are fired one by one, whatever the policy. Of those
    that are later, `skip` fires none, `fire_once` the latest, `catch_up` all that are at most
    `window` seconds late.
    """
    missed_until = max(base, now - spec.grace)
    if spec.misfire == "catch_up":
        begin = max(base, now - max(spec.grace, spec.window))
    else:
        begin = missed_until
        if spec.misfire == "fire_once" and base < missed_until:
            missed = table.latest(base, missed_until)
            if missed is not None:
                return missed
    tick = table.after(begin)
    return tick if tick is not None and tick <= now else None
