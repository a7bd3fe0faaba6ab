"""How the demo is shown: live on a terminal, as plain lines elsewhere, not at all for machines."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

from nimburion.cli.demo.watch import NOTHING, Snapshot
from nimburion.cli.output import clean
from nimburion.core.job import State

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

OTHER_LINES = 12
"""Rows of the screen that the table, the workers and the prompt need."""
STATES = (
    (State.SCHEDULED, "dim"),
    (State.PENDING, "blue"),
    (State.PROCESSING, "yellow"),
    (State.RETRYING, "magenta"),
    (State.COMPLETED, "green"),
    (State.FAILED, "red"),
    (State.CANCELLED, "dim"),
)


class View(Protocol):
    """What the run tells."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def tell(self, line: str, *, loud: bool = False) -> None:
        """One more thing that happened; `loud` for what the demo itself does."""
        ...

    def update(self, snapshot: Snapshot) -> None:
        """The store at this moment."""
        ...


def view_for(*, plain: bool, as_json: bool) -> View:
    """The best view that there is for this output."""
    clock = _stopwatch()
    if as_json:
        return SilentView()
    if plain or not sys.stdout.isatty():
        return PlainView(clock)
    try:
        return LiveView(clock)
    except ImportError:
        return PlainView(clock)


def _stopwatch() -> Callable[[], float]:
    started = time.monotonic()
    return lambda: time.monotonic() - started


class SilentView:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def tell(self, line: str, *, loud: bool = False) -> None:
        """Nobody listens."""

    def update(self, snapshot: Snapshot) -> None:
        """Nobody looks."""


class PlainView(SilentView):
    """One line for each thing that happens."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def tell(self, line: str, *, loud: bool = False) -> None:
        """Print it with the seconds since the start."""
        mark = "--" if loud else "  "
        click.echo(f"{self._clock():5.1f} s {mark} {clean(line)}")


class LiveView(SilentView):
    """Jobs by name and state, the workers, and the latest lines, drawn again as they change."""

    def __init__(self, clock: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._clock = clock
        self._snapshot = NOTHING
        console = Console()
        self._lines: deque[str] = deque(maxlen=max(3, console.height - OTHER_LINES))
        self._live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=8, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def tell(self, line: str, *, loud: bool = False) -> None:
        """Add it to the latest lines; the loud ones stay above the live view for good."""
        stamped = f"{self._clock():5.1f} s  {clean(line)}"
        if loud:
            self._live.console.print(stamped, style="bold", markup=False, highlight=False)
        else:
            self._lines.append(stamped)

    def update(self, snapshot: Snapshot) -> None:
        """Keep it for the next drawing."""
        self._snapshot = snapshot

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in list(self._lines)]
        return Group(self._draw_jobs(), self._draw_workers(), *lines)

    def _draw_jobs(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("job", no_wrap=True)
        for state, colour in STATES:
            table.add_column(state.value, justify="right", style=colour, no_wrap=True)
        for name, counts in self._snapshot.by_name().items():
            cells = [str(counts[state] or "") for state, _ in STATES]
            table.add_row(Text(clean(name)), *cells)
        return table

    def _draw_workers(self) -> RenderableType:
        from rich.text import Text

        workers = [
            f"worker process {session.pid}: {session.running} jobs, "
            f"session ends in {max(0, session.expires_in):.0f} s"
            for session in self._snapshot.sessions
        ]
        return Text("   ".join(workers) or "no worker yet", style="cyan")
