"""The application of the page about several namespaces, on a cluster and on several databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import Page, read
from tests.docs.test_examples import check_page, folder, with_server
from tests.house.tree import ROOT
from tests.servers import valkey_binary
from tests.servers.cluster import SLOTS, Cluster
from tests.servers.server_kinds import RunningPostgres

__all__ = ["folder"]

PLACEHOLDER = "redis://localhost:6379/0?namespace=orders-"
NUMBERS = range(3)


@pytest.fixture
def page() -> Page:
    """The page; its applications name their namespaces by one placeholder."""
    page = read(ROOT / "docs/how-to/several-namespaces.md")
    assert sum(block.text.count(PLACEHOLDER) for block in page.blocks) == len(NUMBERS) + 1
    return page


@pytest.fixture
def databases(started_servers: dict[str, RunningPostgres]) -> Iterator[str]:
    """The URL of several databases, without the number at its end."""
    server = started_servers["postgres"]
    for number in NUMBERS:
        server.ask(f"CREATE DATABASE orders_{number}")
    yield f"{server.url.rpartition('/')[0]}/orders_"
    for number in NUMBERS:
        server.ask(f"DROP DATABASE orders_{number} WITH (FORCE)")


@pytest.mark.wide
async def test_the_application_runs_on_a_cluster(
    page: Page, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its namespaces are on different nodes."""
    with Cluster(valkey_binary()) as cluster:
        url = f"{cluster.url}?namespace=orders-"
        await check_page(with_server(page, url, PLACEHOLDER), folder, capsys)
        slots = [
            cluster.nodes[0].ask("CLUSTER", "KEYSLOT", f"{{orders-{number}}}") for number in NUMBERS
        ]
        assert len({slot * len(cluster.nodes) // SLOTS for slot in slots}) > 1
        keys = [node.ask("DBSIZE") for node in cluster.nodes]
        assert sum(count > 0 for count in keys) > 1


@pytest.mark.slow
async def test_the_application_runs_on_several_databases(
    page: Page, folder: Path, capsys: pytest.CaptureFixture[str], databases: str
) -> None:
    await check_page(with_server(page, databases, PLACEHOLDER), folder, capsys)
