"""Kinds of values that options take."""

from __future__ import annotations

from datetime import datetime

import click


class Duration(click.ParamType[float]):
    """Seconds, or a text like `1h30m`."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from nimburion.config.kinds import Unfit, seconds_of
        from nimburion.config.scalars import scalar

        try:
            seconds = seconds_of(scalar(str(value)))
        except Unfit:
            seconds = -1.0
        if seconds < 0:
            self.fail(f"{value!r} is no duration; write 30s, 5m, 1h30m or seconds", param, ctx)
        return seconds


class Moment(click.ParamType[datetime]):
    """A date and time with a time zone."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time; write it like 2030-01-31T09:00+01:00", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone; add Z or +01:00", param, ctx)
        return moment


class PriorityWord(click.ParamType[int]):
    """0 to 9, or a word."""

    name = "priority"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        words = {"lowest": 1, "low": 3, "normal": 5, "high": 7, "highest": 9}
        text = str(value).lower()
        if text not in words and text not in tuple("0123456789"):
            self.fail(f"{value!r} is neither 0 to 9 nor one of {', '.join(words)}", param, ctx)
        return words[text] if text in words else int(text)
