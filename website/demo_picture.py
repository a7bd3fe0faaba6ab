"""`python -m website.demo_picture`: run the demo and record it as a picture that moves."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from nimburion.cli.commands.demo.run import run_scenario
from website.terminal_picture import COLUMNS, ROWS, Frame, save_picture


class Recorder:
    """The lines of the demo, drawn into frames instead of a terminal.

    Paths below `folder` are shown relative to it: the picture names no folder of this machine.
    """

    def __init__(self, folder: Path) -> None:
        self.frames: list[Frame] = []
        self._prefix = f"{folder}/"
        self._started = time.monotonic()
        self._console = Console(width=COLUMNS, height=ROWS, force_terminal=True)
        self._lines: list[Text] = []

    def show(self, line: str) -> None:
        """Add a line, and a frame with the last lines. Actions of the demo are bold."""
        seconds = time.monotonic() - self._started
        text = f"{seconds:5.1f} s {line.replace(self._prefix, '')}"
        self._lines.append(Text(text, style="bold" if line.startswith("--") else "", no_wrap=True))
        options = self._console.options.update(height=ROWS)
        screen = Text("\n").join(self._lines[-ROWS:])
        lines = self._console.render_lines(screen, options, pad=False)
        self.frames.append(Frame(seconds, lines[:ROWS]))


def main() -> None:
    """Run the demo and write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorder = Recorder(folder)
        asyncio.run(run_scenario(folder, recorder.show))
    title = "The demo: workers run jobs, one worker is killed, its jobs run again on the other."
    save_picture("demo.svg", recorder.frames, title, "nimburion demo")


if __name__ == "__main__":
    main()
