"""Views of the demo: live on a terminal, plain lines elsewhere, JSON for programs."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click
import msgspec

from nimburion.cli.commands.demo.snapshot import EMPTY, Snapshot, Totals, count_totals
from nimburion.cli.output import print_table, write_json
from nimburion.core.job import State
from nimburion.core.text.escaping import escape_controls

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

OTHER_LINES = 12
"""Screen rows for the table, the workers and the prompt."""
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
    """A view that shows the events and the state of the demo."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def write(self, line: str, *, loud: bool = False) -> None:
        """Show one event; `loud` marks actions of the demo itself."""
        ...

    def update(self, snapshot: Snapshot) -> None:
        """Show the current state of all jobs."""
        ...


def choose_view(*, plain: bool, as_json: bool) -> View:
    """Return the view for this output."""
    clock = _start_stopwatch()
    if as_json:
        return SilentView()
    if plain or not sys.stdout.isatty():
        return PlainView(clock)
    try:
        return LiveView(clock)
    except ImportError:
        return PlainView(clock)


def _start_stopwatch() -> Callable[[], float]:
    started = time.monotonic()
    return lambda: time.monotonic() - started


class SilentView:
    """A view that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def write(self, line: str, *, loud: bool = False) -> None:
        """Show nothing."""

    def update(self, snapshot: Snapshot) -> None:
        """Show nothing."""


class PlainView(SilentView):
    """A view that prints one line per event."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def write(self, line: str, *, loud: bool = False) -> None:
        """Print the event with the seconds since the start."""
        mark = "--" if loud else "  "
        click.echo(f"{self._clock():5.1f} s {mark} {escape_controls(line)}")


class LiveView(SilentView):
    """A view of the jobs by name and state, the workers and the latest events, redrawn on
    changes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._clock = clock
        self._snapshot = EMPTY
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

    def write(self, line: str, *, loud: bool = False) -> None:
        """Add the event to the latest lines; loud events stay above the live view."""
        stamped = f"{self._clock():5.1f} s  {escape_controls(line)}"
        if loud:
            self._live.console.print(stamped, style="bold", markup=False, highlight=False)
        else:
            self._lines.append(stamped)

    def update(self, snapshot: Snapshot) -> None:
        """Store the snapshot for the next redraw."""
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
        for name, counts in self._snapshot.count_by_name().items():
            cells = [str(counts[state] or "") for state, _ in STATES]
            table.add_row(Text(escape_controls(name)), *cells)
        return table

    def _draw_workers(self) -> RenderableType:
        from rich.text import Text

        workers = [
            f"worker process {session.pid}: {session.running} jobs, "
            f"session ends in {max(0, session.expires_in):.0f} s"
            for session in self._snapshot.sessions
        ]
        return Text("   ".join(workers) or "no worker yet", style="cyan")


def show_result(
    folder: Path, ids: set[str], snapshot: Snapshot, *, right: bool, as_json: bool
) -> None:
    """Show the totals, the files and the next commands to try."""
    rows = count_totals(ids, snapshot)
    if as_json:
        write_json({"ok": right, "folder": str(folder), "jobs": msgspec.to_builtins(rows)})
        return
    click.echo()
    print_table(Totals.__struct_fields__, [msgspec.structs.astuple(row) for row in rows], "nothing")
    click.echo("\n" + _describe_total(rows[-1], right=right))
    _show_files(folder)
    _show_next_commands(folder, snapshot)


def _describe_total(total: Totals, *, right: bool) -> str:
    sum_ = f"{total.completed} completed + {total.failed} failed + {total.cancelled} cancelled"
    if right:
        return f"{total.enqueued} enqueued = {sum_}: every job is accounted for"
    return f"{total.enqueued} enqueued, but {sum_}: NOT EVERY JOB IS ACCOUNTED FOR"


def _show_files(folder: Path) -> None:
    files = len(list((folder / "compressed").iterdir()))
    mails = len(list((folder / "mail" / "new").iterdir()))
    click.echo(f"\nfiles in {escape_controls(folder)}:")
    click.echo(f"  compressed/ ({files} files), report.csv, mail/ ({mails} messages)")
    click.echo("  notes.txt (in the order of priority), worker-1.log, worker-2.log, nimburion.db")


def _show_next_commands(folder: Path, snapshot: Snapshot) -> None:
    failed = [record.id for record in snapshot.jobs.values() if record.state is State.FAILED]
    program = shlex.quote(_find_program())
    click.echo("\nwhat to try next:")
    click.echo(f"  cd {shlex.quote(os.fspath(folder))}")
    click.echo(f"  {program} dead list")
    click.echo(f"  {program} jobs show {failed[0] if failed else 'ID'}")
    click.echo(f"  {program} jobs list --state completed")
    click.echo(f"remove it all with: rm -r {shlex.quote(os.fspath(folder))}")


def _find_program() -> str:
    """Return the command that runs `nimburion` from a shell outside of this environment."""
    if shutil.which("nimburion"):
        return "nimburion"
    return str(Path(sys.executable).parent / "nimburion")
