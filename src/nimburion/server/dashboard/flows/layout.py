"""Places for the boxes of a flow: layers from left to right, with few crossings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nimburion.server.dashboard.flows.graph import FlowBox

BOX_WIDTH = 184
BOX_HEIGHT = 52
COLUMN_WIDTH = BOX_WIDTH + 52
ROW_HEIGHT = BOX_HEIGHT + 18
BYPASS_HEIGHT = 18
"""The height of a line that passes a layer."""
MAX_BYPASSES = 400
"""If lines pass more layers than this, they are drawn straight, behind the boxes."""
MARGIN = 8
_SWEEPS = 4


class Point(NamedTuple):
    """A place in the picture."""

    x: float
    y: float


class Layout(NamedTuple):
    """Where the boxes and the lines of a picture are."""

    width: float
    height: float
    boxes: list[Point]
    """The upper left corner of each box."""
    lines: dict[tuple[int, int], list[Point]]
    """By source and box: the points that the line goes through between the two."""


class _Cell:
    """A place of a layer: a box, or a line that passes the layer."""

    def __init__(self, layer: int, *, box: int | None) -> None:
        self.layer = layer
        self.box = box
        self.height = BYPASS_HEIGHT if box is None else ROW_HEIGHT
        self.before: list[_Cell] = []
        self.after: list[_Cell] = []
        self.y = 0.0
        """The middle."""


def arrange(boxes: Sequence[FlowBox]) -> Layout:
    """Return the layout of the boxes of a flow."""
    cells = [_Cell(box.layer, box=number) for number, box in enumerate(boxes)]
    bypasses = _connect(boxes, cells)
    columns: list[list[_Cell]] = [[] for _ in range(max((c.layer for c in cells), default=-1) + 1)]
    for cell in (*cells, *(one for passed in bypasses.values() for one in passed)):
        columns[cell.layer].append(cell)
    _place(columns)
    for sweep in range(_SWEEPS):
        goes_right = sweep % 2 == 0
        for column in columns if goes_right else reversed(columns):
            column.sort(key=lambda cell: _find_middle(cell, goes_right=goes_right))
            _place([column])
    height = max((_measure(column) for column in columns), default=0.0)
    for column in columns:
        _place([column], (height - _measure(column)) / 2)
    return Layout(
        width=max(len(columns) * COLUMN_WIDTH - COLUMN_WIDTH + BOX_WIDTH, 0) + 2 * MARGIN,
        height=height + 2 * MARGIN,
        boxes=[
            Point(MARGIN + cell.layer * COLUMN_WIDTH, MARGIN + cell.y - BOX_HEIGHT / 2)
            for cell in cells
        ],
        lines={
            edge: [
                Point(MARGIN + cell.layer * COLUMN_WIDTH + BOX_WIDTH / 2, MARGIN + cell.y)
                for cell in passed
            ]
            for edge, passed in bypasses.items()
        },
    )


def _connect(boxes: Sequence[FlowBox], cells: list[_Cell]) -> dict[tuple[int, int], list[_Cell]]:
    """Connect the cells. Return the cells that each line passes between its ends."""
    passed = sum(
        max(0, box.layer - boxes[source.box].layer - 1) for box in boxes for source in box.sources
    )
    lines: dict[tuple[int, int], list[_Cell]] = {}
    for number, box in enumerate(boxes):
        for source in box.sources:
            first, last = cells[source.box], cells[number]
            between = range(first.layer + 1, last.layer) if passed <= MAX_BYPASSES else ()
            path = [_Cell(layer, box=None) for layer in between]
            for left, right in zip([first, *path], [*path, last], strict=True):
                left.after.append(right)
                right.before.append(left)
            lines[source.box, number] = path
    return lines


def _find_middle(cell: _Cell, *, goes_right: bool) -> float:
    """Return the mean height of the cells that a cell is connected to on one side."""
    others = cell.before if goes_right else cell.after
    return sum(other.y for other in others) / len(others) if others else cell.y


def _place(columns: Sequence[Sequence[_Cell]], top: float = 0.0) -> None:
    """Set the heights of the cells of columns, in their order."""
    for column in columns:
        y = top
        for cell in column:
            cell.y = y + cell.height / 2
            y += cell.height


def _measure(column: Sequence[_Cell]) -> float:
    return float(sum(cell.height for cell in column))
