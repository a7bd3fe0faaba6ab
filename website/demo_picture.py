"""`python -m website.demo_picture`: run the demo and record it as a picture that moves."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.text import Text

from nimburion.cli.commands.demo.run import run_scenario
from nimburion.cli.commands.demo.snapshot import Snapshot
from nimburion.cli.commands.demo.views import LiveView
from website.terminal_picture import COLUMNS, ROWS, Frame, save_picture


class RecordingView(LiveView):
    """The live view of the demo, drawn into frames instead of a terminal.

    Paths below `folder` are shown relative to it: the picture names no folder of this machine.
    """

    def __init__(self, folder: Path) -> None:
        self._prefix = f"{folder}/"
        started = time.monotonic()
        super().__init__(lambda: time.monotonic() - started)
        self.frames: list[Frame] = []
        self._console = Console(width=COLUMNS, height=ROWS, force_terminal=True)
        self._loud: list[Text] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.record()

    def write(self, line: str, *, loud: bool = False) -> None:
        """Add an event; the latest loud ones stand above the table."""
        line = line.replace(self._prefix, "")
        if loud:
            self._loud = [*self._loud, Text(f"{self._clock():5.1f} s  {line}", style="bold")][-5:]
        else:
            super().write(line)
        self.record()

    def update(self, snapshot: Snapshot) -> None:
        """Draw the snapshot."""
        super().update(snapshot)
        self.record()

    def record(self) -> None:
        """Add a frame."""
        group = Group(*self._loud, Text(), self._draw())
        options = self._console.options.update(height=ROWS)
        lines = self._console.render_lines(group, options, pad=False)
        self.frames.append(Frame(self._clock(), lines[:ROWS]))


def main() -> None:
    """Run the demo and write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        view = RecordingView(folder)
        asyncio.run(run_scenario(folder, 1, view))
    title = "The demo: workers run jobs, one worker is killed, its jobs run again on the other."
    save_picture("demo.svg", view.frames, title, "nimburion demo")


if __name__ == "__main__":
    main()
