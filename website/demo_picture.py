"""`python -m website.demo_picture`: run the demo and record it as a picture that moves.

The picture is an SVG: text and rectangles, without scripts or fonts. Readers who ask their system
for less motion see the last frame only.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from xml.sax.saxutils import escape

from rich.console import Console, Group
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from nimburion.cli.commands.demo.run import run_scenario
from nimburion.cli.commands.demo.snapshot import Snapshot
from nimburion.cli.commands.demo.views import LiveView

TARGET = Path(__file__).parents[1] / "docs" / "pictures" / "demo.svg"
COLUMNS, ROWS = 104, 24
CHARACTER, ROW, MARGIN, TOP = 8.4, 19, 16, 40
"""Sizes in pixels: a character, a row, the space around the text, and the bar above it."""
FRAME_SECONDS = 0.6
LAST_FRAMES = 6
"""For how many frames the last one stands."""
STYLES = """
  text { font: 14px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
  .frame { visibility: hidden; animation: show %(total).1fs step-end infinite; }
  .last { animation-name: show-last; }
  @keyframes show { 0%% { visibility: visible; } %(one).3f%% { visibility: hidden; } }
  @keyframes show-last { 0%% { visibility: visible; } %(last).3f%% { visibility: hidden; } }
  @media (prefers-reduced-motion: reduce) {
    .frame { animation: none; }
    .last { visibility: visible; }
  }
"""


class Frame(NamedTuple):
    """The screen at one time."""

    seconds: float
    lines: list[list[Segment]]


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


def choose_frames(frames: Sequence[Frame]) -> list[Frame]:
    """Return the latest frame of each interval, and the last."""
    chosen = {int(frame.seconds / FRAME_SECONDS): frame for frame in frames}
    return list(chosen.values())


def draw_picture(frames: Sequence[Frame], title: str) -> str:
    """Return the frames as one SVG."""
    count = len(frames) - 1 + LAST_FRAMES
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, ROWS * ROW + TOP + MARGIN
    box = f"0 0 {width:.0f} {height}"
    styles = STYLES % {
        "total": count * FRAME_SECONDS,
        "one": 100 / count,
        "last": 100 * LAST_FRAMES / count,
    }
    groups = [
        draw_frame(frame, number, is_last=number == len(frames) - 1)
        for number, frame in enumerate(frames)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{styles}</style>",
            f'<rect width="{width:.0f}" height="{height}" rx="10" fill="#1b1f27"/>',
            '<g fill="#d8dee9">',
            *(
                f'<circle cx="{20 + 18 * number}" cy="20" r="6" fill="{colour}"/>'
                for number, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
            ),
            f'<text x="{width / 2:.0f}" y="25" text-anchor="middle">nimburion demo</text>',
            *groups,
            "</g>\n</svg>\n",
        ]
    )


def draw_frame(frame: Frame, number: int, *, is_last: bool) -> str:
    """Return one frame as a group."""
    kind = "frame last" if is_last else "frame"
    texts = [text for row, line in enumerate(frame.lines) for text in draw_line(line, row)]
    start = f'<g class="{kind}" style="animation-delay:{number * FRAME_SECONDS:.1f}s">'
    return "\n".join([start, *texts, "</g>"])


def draw_line(line: Iterable[Segment], row: int) -> Iterable[str]:
    """Yield the texts of one row; spaces are left out."""
    column = 0
    for segment in line:
        if (stripped := segment.text.strip()) and not segment.control:
            left = column + len(segment.text) - len(segment.text.lstrip())
            x, y = MARGIN + left * CHARACTER, TOP + (row + 1) * ROW - 5
            length = len(stripped) * CHARACTER
            style = describe_style(segment.style)
            yield (
                f'<text x="{x:.1f}" y="{y}" textLength="{length:.1f}" xml:space="preserve"{style}>'
                f"{escape(stripped)}</text>"
            )
        column += segment.cell_length


def describe_style(style: Style | None) -> str:
    """Return the attributes of a style."""
    if style is None:
        return ""
    attributes = ' font-weight="700"' if style.bold else ""
    if style.dim:
        attributes += ' opacity="0.6"'
    if style.color is not None and not style.color.is_default:
        red, green, blue = style.color.get_truecolor(DIMMED_MONOKAI)
        attributes += f' fill="#{red:02x}{green:02x}{blue:02x}"'
    return attributes


def main() -> None:
    """Run the demo and write the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        view = RecordingView(folder)
        asyncio.run(run_scenario(folder, 1, view))
    frames = choose_frames(view.frames)
    title = "The demo: workers run jobs, one worker is killed, its jobs run again on the other."
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(draw_picture(frames, title), encoding="utf-8")
    print(f"{len(frames)} frames are in {TARGET.name}, {TARGET.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
