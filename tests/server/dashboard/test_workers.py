"""The page of workers: what an operator must see at once."""

from __future__ import annotations

from nimburion.core.session import Session, Vitals
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from tests.server.conftest import Api
from tests.server.dashboard.conftest import OWN_PAGE

PATH = f"{DASHBOARD_PATH}/workers"


async def open_worker(api: Api, pid: int, names: tuple[str, ...], vitals: Vitals) -> None:
    """Open the session of a worker that has sent a heartbeat."""
    backend = api.processor.backend
    session = Session(
        id=f"{pid:032}", host="host-2", pid=pid, owner="shop", queues=("mail",), names=names
    )
    await backend.consuming.open_session(session)
    await backend.consuming.heartbeat(session.id, vitals)


async def test_versions_that_know_different_jobs_are_a_warning(site: Api) -> None:
    await open_worker(site, 1, ("send",), Vitals(code_version="1"))
    await open_worker(site, 2, ("send", "<b>bill"), Vitals(code_version="2"))
    twin = (await site.client.get(PATH, params={"format": "json"})).json()
    (unknown,) = twin["unknown_names"]
    assert (unknown["pid"], unknown["names"], unknown["other_versions"]) == (1, ["<b>bill"], ["2"])
    assert twin["versions"] == {"1": 1, "2": 1, "unknown": 1}
    html = (await site.client.get(PATH)).text
    assert "does not know <code>&lt;b&gt;bill</code>, which 2 knows" in html


async def test_many_workers_that_do_not_know_jobs_are_folded(site: Api) -> None:
    for pid in range(1, 7):
        await open_worker(site, pid, ("send",), Vitals(code_version="1"))
    await open_worker(site, 7, ("send", "bill"), Vitals(code_version="2"))
    shown, _, folded = (await site.client.get(PATH)).text.partition("3 more such workers")
    assert (shown.count("does not know"), folded.count("does not know")) == (3, 3)


async def test_one_version_with_different_jobs_is_no_warning(site: Api) -> None:
    await open_worker(site, 1, ("send",), Vitals(code_version="1"))
    await open_worker(site, 2, ("send", "bill"), Vitals(code_version="1"))
    twin = (await site.client.get(PATH, params={"format": "json"})).json()
    assert twin["unknown_names"] == []


async def test_late_loops_and_low_margins_are_marked(site: Api) -> None:
    limit = site.services.config.jobs.loop_lag_limit
    await open_worker(site, 1, ("send",), Vitals(slots=4, busy=1, loop_lag=2 * limit))
    await open_worker(site, 2, ("send",), Vitals(slots=4, busy=2, lease_margin=1.0))
    twin = (await site.client.get(PATH, params={"format": "json"})).json()
    host = next(host for host in twin["hosts"] if host["host"] == "host-2")
    assert (host["slots"], host["busy"]) == (8, 3)
    assert [(row["lags"], row["has_low_margin"]) for row in host["workers"]] == [
        (True, False),
        (False, True),
    ]
    html = (await site.client.get(PATH)).text
    assert "A handler blocks the event loop" in html
    assert "Its leases were close to their end" in html


async def test_a_quiet_worker_can_be_resumed(site: Api) -> None:
    for command, offered in (("quiet", "resume"), ("resume", "quiet")):
        await site.client.post(f"{PATH}/a/{command}", headers=OWN_PAGE)
        html = (await site.client.get(PATH)).text
        assert f'action="{PATH}/a/{offered}"' in html
        assert f'action="{PATH}/a/{command}"' not in html


async def test_the_form_that_stops_a_worker_asks_why(site: Api) -> None:
    form = (await site.client.get(PATH)).text.partition(f'action="{PATH}/a/stop"')[2]
    assert '<input name="reason"' in form.partition("</form>")[0]
