"""A picture of the figures: six small bar charts in one SVG file, without a library."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from benchmarks.report import rounded

WIDTH, MARGIN = 960, 32
COLUMNS = 3
PANEL, GAP = (WIDTH - 2 * MARGIN - 2 * 32) // COLUMNS, 32
TOP, ROW, BAR = 104, 30, 18
LABEL, VALUE = 86, 62
"""The width of a backend's name, and of the number behind its bar."""
STYLE = """
  svg { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
  .page { fill: #ffffff; } .text { fill: #1f2933; } .quiet { fill: #66727f; }
  .title { font-size: 21px; font-weight: 650; } .panel { font-size: 14px; font-weight: 600; }
  .small { font-size: 12px; } .first { fill: #2563eb; } .second { fill: #93b4f5; }
  .axis { stroke: #d5dbe1; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #14181d; } .text { fill: #e6eaee; } .quiet { fill: #98a4b0; }
    .first { fill: #5b8def; } .second { fill: #33507f; } .axis { stroke: #39424c; }
  }
"""


class Bar(NamedTuple):
    """A bar: a first part, and a lighter one behind it."""

    name: str
    first: float
    second: float = 0.0
    text: str = ""

    @property
    def end(self) -> float:
        """The length of both parts."""
        return self.first + self.second


class Panel(NamedTuple):
    """A chart: a title, what the bars mean, and the bars."""

    title: str
    meaning: str
    bars: Sequence[Bar]


def draw_speed(found: Mapping[str, Any]) -> str:
    """Return the picture of the figures that `python3 dev.py bench` measured."""
    conditions = found["conditions"]
    subtitle = (
        f"One worker process, no-op jobs, 250 bytes of arguments. Commit {conditions['commit']}, "
        f"{conditions['date']}, Python {conditions['python']}, {conditions['cpu']}."
    )
    return draw("nimburion: speed on each backend", subtitle, make_panels(found))


def make_panels(found: Mapping[str, Any]) -> list[Panel]:
    """Return the charts."""
    titles = {name: one["title"] for name, one in found["backends"].items()}
    speeds = {
        one["title"]: middles(one["subjects"]["nimburion"]["default"])
        for one in found["backends"].values()
    }
    servers = {title: one for title, one in speeds.items() if title != "memory"}
    costs = {name: middles(costs) for name, costs in found["costs"].items()}

    def rates(name: str, backends: Mapping[str, Mapping[str, float]]) -> list[Bar]:
        return [Bar(title, one.get(name, 0.0)) for title, one in backends.items()]

    return [
        Panel("Run jobs", "jobs a second", rates("drain_rate", speeds)),
        Panel("Enqueue 1,000 a call", "jobs a second", rates("enqueue_bulk_rate", speeds)),
        Panel(
            "Enqueue one by one",
            "jobs a second, one call after another",
            rates("enqueue_one_rate", servers),
        ),
        Panel(
            "From enqueue to handler",
            "milliseconds: median, and 99 % (lighter)",
            [make_pickup_bar(title, one) for title, one in servers.items()],
        ),
        Panel(
            "CPU time of a job",
            "µs: worker, and server (lighter)",
            [
                make_cost_bar(titles[name], one["drain_cpu"], one["drain_server_cpu"])
                for name, one in costs.items()
            ],
        ),
        Panel(
            "Cost of a job",
            "in bare asyncio tasks",
            [Bar(titles[name], one["bare_tasks"]) for name, one in costs.items()],
        ),
    ]


def middles(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: statistics.median(values) for name, values in figures.items()}


def make_pickup_bar(title: str, found: Mapping[str, float]) -> Bar:
    """Return the bar of the median, which the time of 99 % of the jobs extends."""
    middle, late = found.get("pickup_p50", 0.0), found.get("pickup_p99", 0.0)
    return Bar(title, middle, late - middle, f"{rounded(middle)} · {rounded(late)}")


def make_cost_bar(title: str, worker: float, server: float) -> Bar:
    """Return the bar of the worker's time, which the server's extends."""
    text = f"{rounded(worker)} + {rounded(server)}" if server else rounded(worker)
    return Bar(title, worker, server, text)


def draw(title: str, subtitle: str, panels: Sequence[Panel]) -> str:
    """Return panels in rows of three as SVG."""
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    y = TOP
    drawn: list[str] = []
    for row in rows:
        for number, panel in enumerate(row):
            drawn.append(draw_panel(panel, MARGIN + number * (PANEL + GAP), y))
        y += 62 + ROW * max(len(panel.bars) for panel in row) + 18
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" '
        f'height="{y}" role="img">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
        f'<rect class="page" width="{WIDTH}" height="{y}" rx="8"/>\n'
    )
    head += write(MARGIN, 46, title, "text title") + write(MARGIN, 72, subtitle, "quiet small")
    return head + "".join(drawn) + "</svg>\n"


def draw_panel(panel: Panel, x: int, y: int) -> str:
    """Return one chart, its upper left corner at this place."""
    parts = [write(x, y + 14, panel.title, "text panel")]
    parts.append(write(x, y + 33, panel.meaning, "quiet small"))
    top, left = y + 48, x + LABEL
    longest = max(bar.end for bar in panel.bars) or 1
    texts = [bar.text or rounded(bar.end) for bar in panel.bars]
    room = PANEL - LABEL - max(VALUE, 8 * max(map(len, texts)))
    for number, (bar, text) in enumerate(zip(panel.bars, texts, strict=True)):
        line = top + number * ROW
        first, second = (round(part / longest * room, 1) for part in (bar.first, bar.second))
        parts.append(write(left - 10, line + 14, bar.name, "text", anchor="end"))
        parts.append(draw_bar(left, line, first, "first"))
        if bar.second > 0:
            parts.append(draw_bar(left + first, line, second, "second"))
        parts.append(write(left + first + second + 7, line + 14, text, "text"))
    bottom = top + len(panel.bars) * ROW - (ROW - BAR)
    parts.append(f'<path class="axis" d="M{left} {top - 4}V{bottom + 4}"/>\n')
    return "".join(parts)


def draw_bar(x: float, y: int, width: float, part: str) -> str:
    """Return one part of a bar."""
    return f'<rect class="{part}" x="{x}" y="{y}" width="{max(width, 1)}" height="{BAR}" rx="2"/>\n'


def write(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    """Return a line of text."""
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>\n'
