"""`nimburion tenants`."""

from __future__ import annotations

from nimburion.core.backend import Backend
from nimburion.core.job import JobOptions, NewJob
from tests.cli.conftest import CommandLine


def test_tenants_are_listed_and_get_weights(nimburion: CommandLine) -> None:
    nimburion.enqueue("plain")
    assert nimburion("tenants", "list").out == (
        "no tenant has a job that waits for its turn or runs\n"
    )

    async def store(backend: Backend) -> None:
        await backend.producing.enqueue(
            [
                NewJob(f"{n}", "send", "mail", b"{}", options=JobOptions(tenant=tenant))
                for n, tenant in enumerate(("acme", "acme", "initech"))
            ]
        )

    nimburion.call_backend(store)
    assert nimburion("tenants", "weight", "acme", "3").out == "acme has the weight 3\n"
    assert nimburion("tenants", "weight", "other", "0.5").out == "other has the weight 0.5\n"
    lines = nimburion("tenants", "list").out.splitlines()
    assert lines[1].split() == ["acme", "mail", "5", "2", "0", "3", "75%", "0.1", "s"]
    assert lines[2].split() == ["initech", "mail", "5", "1", "0", "1", "25%", "0.1", "s"]
    assert lines[3] == "other has the weight 0.5"
    assert nimburion("tenants", "weight", "acme", "--json").data == {
        "tenant": "acme",
        "weight": 1.0,
    }
    assert nimburion("tenants", "list", "--json").data["weights"] == {"other": 0.5}
    for weight in ("0", "nan"):
        refused = nimburion("tenants", "weight", "acme", weight)
        assert (refused.code, "not in the range" in refused.err) == (2, True), refused.err
    assert "Before it" not in nimburion("why", "0").out
    assert "Before it: 0 tenants, and 1 job of its own tenant" in nimburion("why", "1").out
