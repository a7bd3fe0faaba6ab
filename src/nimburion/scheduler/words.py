"""A trigger in plain words."""

from __future__ import annotations

from datetime import datetime

from nimburion.scheduler.trigger import CronTrigger, IntervalTrigger, OnceTrigger, Trigger

_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def explained(trigger: Trigger) -> str:
    """What a trigger does, for people.

    >>> from datetime import timedelta, timezone
    >>> from zoneinfo import ZoneInfo
    >>> from nimburion.scheduler.trigger import trigger_of
    >>> explained(trigger_of("*/5 9-17 * * MON-FRI", ZoneInfo("Europe/Rome")))
    'Every fifth minute from 09:00 through 17:59 on Monday through Friday, Europe/Rome'
    >>> explained(trigger_of(timedelta(minutes=90), ZoneInfo("UTC")))
    'Every 1 hour 30 minutes'
    """
    if isinstance(trigger, CronTrigger):
        return f"{_of_expression(trigger)}, {trigger.zone.key}"
    if isinstance(trigger, IntervalTrigger):
        return f"Every {_span(trigger.seconds)}"
    if isinstance(trigger, OnceTrigger):
        return f"Once, at {datetime.fromtimestamp(trigger.at).astimezone():%Y-%m-%d %H:%M:%S %z}"
    return trigger.text


def _of_expression(trigger: CronTrigger) -> str:
    from cronsim.explain import Expression  # only where somebody asks

    said = Expression(["0", *(field.text for field in trigger.expression.fields)]).explain()
    return said if trigger.expression.fixed else f"{said}, in real time"


def _span(seconds: int) -> str:
    words = []
    for unit, name in _UNITS:
        count, seconds = divmod(seconds, unit)
        if count:
            words.append(f"{count} {name}{'' if count == 1 else 's'}")
    return " ".join(words)
