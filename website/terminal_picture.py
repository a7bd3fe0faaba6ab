"""A recording of a terminal as a picture that moves.

The picture is an SVG: text and rectangles, without scripts or fonts. Readers who ask their system
for less motion see the last frame only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
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


def choose_frames(frames: Sequence[Frame]) -> list[Frame]:
    """Return the latest frame of each interval, and the last."""
    chosen = {int(frame.seconds / FRAME_SECONDS): frame for frame in frames}
    return list(chosen.values())


def draw_picture(frames: Sequence[Frame], title: str, command: str) -> str:
    """Return the frames as one SVG, under the command that shows them."""
    count = len(frames) - 1 + LAST_FRAMES
    rows = max(len(frame.lines) for frame in frames)
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, rows * ROW + TOP + MARGIN
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
            f'<text x="{width / 2:.0f}" y="25" text-anchor="middle">{escape(command)}</text>',
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


def save_picture(name: str, frames: Sequence[Frame], title: str, command: str) -> None:
    """Write the picture of a command into `docs/pictures`, and print its size."""
    chosen = choose_frames(frames)
    target = PICTURES / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(draw_picture(chosen, title, command), encoding="utf-8")
    print(f"{len(chosen)} frames are in {name}, {target.stat().st_size // 1024} KiB")
