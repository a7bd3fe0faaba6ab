"""Made-up orders, and the sum of them by region and month."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random

REGIONS = ("north", "east", "south", "west")
COLUMNS = ("order", "month", "region", "pieces", "cents")


def write_orders(path: Path, count: int, random: Random) -> None:
    """A CSV file of this many orders of one year."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number in range(1, count + 1):
            month, region = random.randint(1, 12), random.choice(REGIONS)
            pieces = random.randint(1, 9)
            writer.writerow([number, month, region, pieces, pieces * random.randint(199, 9999)])


def write_report(orders: Path, target: Path) -> int:
    """Sum the orders into a table of regions and months; the whole turnover in cents."""
    sums: dict[tuple[str, int], int] = defaultdict(int)
    for row in _rows(orders):
        sums[row["region"], int(row["month"])] += int(row["cents"])
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["region", *range(1, 13), "year"])
        for region in REGIONS:
            months = [sums[region, month] for month in range(1, 13)]
            writer.writerow([region, *(f"{cents / 100:.2f}" for cents in (*months, sum(months)))])
    return sum(sums.values())


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
