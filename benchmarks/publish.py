"""`python3 dev.py bench publish`: write the newest saved figures into README and docs.

A page marks the place of a figure table with two comments:

    <!-- figures: NAME -->
    <!-- end of figures -->

`BLOCKS` says what stands between them. The picture `docs/pictures/speed.svg` is drawn anew, too.
`tests/docs/test_figures.py` fails when a page shows other figures than the newest results, so no
figure is typed by hand.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.conditions import ROOT, load_newest
from benchmarks.cost import BACKENDS, summarize
from benchmarks.fleet import FleetSize
from benchmarks.fleet import compare as compare_with_one
from benchmarks.flow_peers import FIGURES as FLOW_FIGURES
from benchmarks.flow_peers import TITLES as FLOW_TITLES
from benchmarks.picture import draw_speed
from benchmarks.report import Rows, rounded
from benchmarks.speed import OURS, SYNC, compare, find_better

BLOCK = re.compile(
    r"(?P<begin><!-- figures: (?P<name>\w+) -->\n)(?P<text>.*?)(?P<end><!-- end of figures -->)",
    re.DOTALL,
)
PICTURE = ROOT / "docs" / "pictures" / "speed.svg"
Link = Callable[[Path], str]
"""Returns the link from a page to a file of the checkout."""


def make_rates(link: Link) -> str:
    """Rates and pickup beside the best peer."""
    path, found = load_newest("peers")
    backends = found["backends"]
    rows: Rows = []
    for name, title in (
        ("drain_rate", "run"),
        ("enqueue_bulk_rate", "enqueue 1,000 a call"),
        ("enqueue_one_rate", "enqueue one by one"),
        ("pickup_p50", "enqueue to handler, median, ms"),
    ):
        ours = [read_middle(one, OURS, name) for one in backends.values()]
        rows.append([f"{title}, nimburion", *ours])
        if name == "enqueue_one_rate":
            blocking = [read_middle(one, SYNC.title, name) for one in backends.values()]
            rows.append([f"{title}, nimburion, `processor.sync`", *blocking])
        rows.append([f"{title}, best peer", *(name_best(one, name) for one in backends.values())])
    rates = make_table(["", *(one["title"] for one in backends.values())], rows)
    return f"{rates}\n{describe(path, found, link)}\n"


def make_costs(link: Link) -> str:
    """CPU time of a job, in microseconds and in bare asyncio tasks."""
    path, found = load_newest("speed")
    costs = found["costs"]
    rows = [
        [title, *(show_middle(one[name]) for one in costs.values())]
        for name, title in (
            ("drain_cpu", "run: CPU time of the worker, µs a job"),
            ("drain_server_cpu", "run: CPU time of the server, µs a job"),
            ("bare_tasks", "run: the worker's, in bare asyncio tasks"),
            ("enqueue_one_cpu", "enqueue one by one: CPU time of the caller, µs a job"),
        )
    ]
    head = ["", *(BACKENDS[name] for name in costs)]
    return f"{make_table(head, rows)}\n{describe(path, found, link)}\n"


def make_against(link: Link) -> str:
    """The CPU time of a job beside an older commit, with and without kept arguments."""
    path, found = load_newest("against")
    forgetting_path, forgetting = load_newest("against-forget")
    runs = [(BACKENDS[name], pairs) for name, pairs in found["costs"].items()]
    runs += [
        (f"{BACKENDS[name]}, arguments not kept", pairs)
        for name, pairs in forgetting["costs"].items()
    ]
    rows = []
    for title, pairs in runs:
        row = [title]
        for name in (
            "drain_cpu",
            "bare_tasks",
            "drain_server_cpu",
            "enqueue_one_cpu",
            "enqueue_one_server_cpu",
            "wal",
        ):
            ours, theirs = (
                statistics.median(summarize(pairs[side], name)) for side in ("this", "other")
            )
            row.append(f"{ours / theirs:.2f}" if theirs else "")
        rows.append(row)
    head = [
        "",
        "run, worker",
        "in bare tasks",
        "run, server",
        "single enqueue, caller",
        "single enqueue, server",
        "bytes of WAL",
    ]
    sources = [describe(path, found, link), describe(forgetting_path, forgetting, link)]
    return "\n".join([make_table(head, rows), *sources]) + "\n"


def make_peers(link: Link) -> str:
    """Our figures beside those of each peer, a table for each backend."""
    path, found = load_newest("peers")
    parts = []
    for one in found["backends"].values():
        rows = [
            [line.figure, line.ours, f"{line.theirs} ({shorten(line.peer)})", line.ratio]
            for line in compare(one)
        ]
        parts.append(make_table([one["title"], "nimburion", "peer", "ratio of the speeds"], rows))
    return "\n".join([*parts, describe(path, found, link)]) + "\n"


def make_slower(link: Link) -> str:
    """The cases of the last run in which a peer was faster."""
    path, found = load_newest("peers")
    lines = [
        f"- {one['title']}, {line.figure}: nimburion {line.ours}, {shorten(line.peer)} "
        f"{line.theirs}. The ratio of the speeds is {line.ratio}."
        for one in found["backends"].values()
        for line in compare(one)
        if float(line.ratio) < 1
    ]
    return "\n".join([*(lines or ["None."]), "", describe(path, found, link)]) + "\n"


def make_limits(link: Link) -> str:
    """The speed of a drain with limits, compared with one without, on each backend."""
    results = {kind: load_newest(f"limits-{kind}") for kind in ("sqlite", "valkey", "postgres")}
    ratios = {
        kind: {title: ratio for title, _, _, ratio, *_ in found["rows"]}
        for kind, (_, found) in results.items()
    }
    rows = [
        [title, *(one.get(title, "") for one in ratios.values())]
        for title in ratios["sqlite"]
        if title != "no limit"
    ]
    head = ["speed of the plain drain, by CPU time", "SQLite", "Redis (Valkey)", "PostgreSQL"]
    sources = [describe(path, found, link) for path, found in results.values()]
    return "\n".join([make_table(head, rows), *sources]) + "\n"


def make_dead_rows(link: Link) -> str:
    """A drain on PostgreSQL while another transaction holds an old snapshot."""
    path, found = load_newest("postgres")
    text = found["snapshot"]["text"].partition("\n\n")[2].strip()
    commit, day, *_ = found["snapshot"]["heading"].removeprefix("Commit ").split(", ")
    source = f"Commit {commit}, {day.split()[0]}: [{path.stem}]({link(path)})."
    return f"{text}\n\n{source}\n"


def make_scaling(link: Link) -> str:
    """CPU time of a job, and the rates of one worker process and of two."""
    path, found = load_newest("speed")
    backends = {name: one for name, one in found["backends"].items() if name != "memory"}
    rows = [
        [title, *(read_middle(one, OURS, name) for one in backends.values())]
        for name, title in (
            ("drain_client_us", "worker, CPU µs a job"),
            ("drain_server_us", "server, CPU µs a job"),
            ("enqueue_bulk_server_us", "server, CPU µs a job enqueued 1,000 a call"),
            ("drain_rate", "jobs a second, one worker process"),
            ("drain_two_rate", "jobs a second, two worker processes"),
            ("enqueue_one_rate", "enqueued a second, one caller after another"),
            ("enqueue_together_rate", "enqueued a second, 100 callers"),
        )
    ]
    head = ["no-op jobs", *(one["title"] for one in backends.values())]
    return f"{make_table(head, rows)}\n{describe(path, found, link)}\n"


def make_fleet(link: Link) -> str:
    """What idle workers cost: counts, and times and CPU time compared with one worker."""
    path, found = load_newest("fleet")
    rows = [
        [
            f"{TITLES[one['backend']]}, {FleetSize(one['workers'], shares=one['shares'])}",
            *(f"{one['start']:.1f}", f"{one['one job']:.1f}", f"{one['one due job']:.1f}"),
            *(f"{one['busy']:.2f}", show_statements(one), *compare_with_one(found, one)),
        ]
        for one in found["fleets"]
        if "one job" in one
    ]
    head = [
        *("idle workers", "exchanges a start", "exchanges for one job", "for one due job"),
        *(
            "for a job at 50 jobs/s",
            "idle: statements/s",
            "server CPU of a job at 50 jobs/s, ratio",
        ),
        *("pickup at 50 jobs/s, p50, ratio", "p99, ratio"),
    ]
    return f"{make_table(head, rows)}\n{describe(path, found, link)}\n"


TITLES = {"memory": "memory", "sqlite": "SQLite", "valkey": "Valkey", "postgres": "PostgreSQL"}


def show_statements(one: dict[str, Any]) -> str:
    """Return the statements or commands in a second; on SQLite the calls of the backend."""
    has_server = one["backend"] in ("valkey", "postgres")
    return f"{one['statements' if has_server else 'idle']:.1f}"


def make_drains(link: Link) -> str:
    """What a job costs when many workers run a backlog."""
    path, found = load_newest("fleet-drain")
    rows = [
        [
            *(TITLES[one["backend"]], "1 ms" if one["job"] == "short" else "no-op"),
            *(str(one["workers"]), f"{one['server µs']:.0f}"),
            *(f"{one['exchanges']:,.0f}", f"{one['without jobs']:,.0f}", f"{one['cv']:.2f}"),
        ]
        for one in found["drains"]
    ]
    head = [
        *("backend", "job", "workers", "server CPU µs a job", "exchanges", "without jobs"),
        "fairness, cv",
    ]
    return f"{make_table(head, rows)}\n{describe(path, found, link)}\n"


def make_idle_peers(link: Link) -> str:
    """One job for 100 idle workers, beside other job systems."""
    path, found = load_newest("idle-peers")
    rows = [
        [
            *(one["subject"], str(one["workers"]), f"{one['idle']:.1f}", f"{one['a job']:.1f}"),
            *(f"{one['server ms']:.1f}", f"{one['p50']:.1f}", f"{one['p99']:.1f}"),
        ]
        for one in found["subjects"]
    ]
    head = [
        *("", "idle workers", "idle: commands or transactions/s", "for one job"),
        *("server CPU ms for one job", "pickup p50, ms", "p99, ms"),
    ]
    return f"{make_table(head, rows)}\n{describe(path, found, link)}\n"


def make_flow_peers(link: Link) -> str:
    """Flows and durable functions beside other job systems."""
    path, found = load_newest("flow-peers")
    sizes = found["sizes"]
    systems = f"With {', '.join(found['servers'])}; beside {', '.join(found['versions'])}."
    load = f"The load by other programs was {found['conditions']['load']}."
    parts = [f"{systems} Medians. {load}\n"]
    for scene, subjects in found["scenes"].items():
        rows = [
            [who, *(rounded(statistics.median(kept[name])) for name in FLOW_FIGURES)]
            for who, kept in subjects.items()
        ]
        head = [f"{sizes[scene][0]} {FLOW_TITLES[scene]}", *FLOW_FIGURES.values()]
        parts.append(make_table(head, rows))
    parts += [f"Failed: {one}.\n" for one in found["failed"]]
    return "\n".join([*parts, describe(path, found, link)]) + "\n"


BLOCKS: dict[str, Callable[[Link], str]] = {
    "rates": make_rates,
    "costs": make_costs,
    "against": make_against,
    "peers": make_peers,
    "slower": make_slower,
    "limits": make_limits,
    "dead_rows": make_dead_rows,
    "scaling": make_scaling,
    "fleet": make_fleet,
    "drains": make_drains,
    "idle_peers": make_idle_peers,
    "flow_peers": make_flow_peers,
}


def read_middle(backend: dict[str, Any], title: str, name: str) -> str:
    """Return the median of a figure at the default setting; empty when it is missing or zero."""
    figures = backend["subjects"].get(title, {}).get("default", {})
    return show_middle(figures.get(name, []))


def show_middle(values: Sequence[float]) -> str:
    """Return the median; empty when there is none, or no server that it could be of."""
    return rounded(statistics.median(values)) if any(values) else ""


def name_best(backend: dict[str, Any], name: str) -> str:
    """Return the best figure of the peers, and whose it is."""
    found = [
        (value, peer)
        for peer, settings in backend["subjects"].items()
        if peer not in (OURS, SYNC.title) and (value := find_better(settings, name)) is not None
    ]
    if not found:
        return ""
    value, peer = max(found) if name.endswith("rate") else min(found)
    return f"{rounded(value)} ({shorten(peer)})"


def shorten(peer: str) -> str:
    """Return the title of a peer as it stands in parentheses."""
    return peer.replace(" (", ", ").replace(")", "")


def make_table(head: Sequence[str], rows: Rows) -> str:
    """Return a table that leaves out rows without a figure."""
    shown = [row for row in rows if any(row[1:])]
    lines = [head, ["---"] * len(head), *shown]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def describe(path: Path, found: dict[str, Any], link: Link) -> str:
    """Return the source of figures: the commit, the day, the machine and the file."""
    conditions = found["conditions"]
    return (
        f"Commit {conditions['commit']}, {conditions['date']}, Python {conditions['python']}, "
        f"{conditions['cpu']}: [{path.stem}]({link(path)})."
    )


def fill(page: Path, text: str) -> str:
    """Return the text of a page with the newest figures in all of its blocks."""

    def link(path: Path) -> str:
        return Path(os.path.relpath(path, page.parent)).as_posix()

    def replace(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{BLOCKS[found['name']](link)}\n{found['end']}"

    return BLOCK.sub(replace, text)


def draw_picture() -> str:
    """Return the picture of the newest figures of nimburion alone."""
    return draw_speed(load_newest("speed")[1])


def list_pages() -> list[Path]:
    """Return the pages that have blocks."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in pages if BLOCK.search(page.read_text(encoding="utf-8"))]


def main(arguments: Sequence[str]) -> int:
    """Fill all pages."""
    argparse.ArgumentParser(prog="benchmarks publish", description=__doc__).parse_args(arguments)
    for page in list_pages():
        text = page.read_text(encoding="utf-8")
        filled = fill(page, text)
        if filled != text:
            page.write_text(filled, encoding="utf-8")
            print(f"filled {page.relative_to(ROOT)}", file=sys.stderr)
    PICTURE.write_text(draw_picture(), encoding="utf-8")
    return 0
