"""Callers who may only `read` see the data of jobs nowhere, in the API or the dashboard."""

from __future__ import annotations

from nimburion.jobs import Context, job
from nimburion.server.dashboard.site import PAGES
from nimburion.server.routes import OPERATIONS
from tests.server.conftest import Api
from tests.server.dashboard.conftest import PATH_VALUES, TOKENS, sign_in

SECRET = "4111-1111"


@job(unique=True)
def charge(card: str) -> None:
    """A job whose unique key is made of its argument."""


@job(max_retries=0)
async def charge_again(ctx: Context) -> None:
    """A job that fails, because another job holds the unique key."""
    await ctx.enqueue(charge.job(SECRET))


async def fill_with_secrets(api: Api) -> list[str]:
    """Store jobs, errors and audit records that have the secret; return the ids of the jobs."""
    processor = api.processor
    processor.register(charge, charge_again)
    ids: list[str] = [
        await processor.enqueue(charge.job(SECRET), after=3600),
        await processor.enqueue(charge_again.job()),
    ]
    await processor.drain()
    body = {"name": "send", "payload": {"to": SECRET}, "unique_key": SECRET, "after": 3600}
    headers = {"Authorization": f"Bearer {TOKENS['admin']}"}
    ids.append((await api.post("/jobs", body, headers=headers))["id"])
    response = await api.client.post("/api/v1/jobs", json=body, headers=headers)
    assert response.status_code == 409  # the audit log has the error
    return ids


async def test_a_caller_who_may_only_read_sees_no_data_of_jobs(guarded: Api) -> None:
    ids = await fill_with_secrets(guarded)
    paths = [
        f"/api/v1{operation.path}"
        for operation in OPERATIONS
        if operation.method == "GET" and operation.right == "read"
    ]
    paths += [
        f"/dashboard{page.path}{form}"
        for page in PAGES
        for form in ("", "?format=json", "?format=fragment")
    ]
    seen = 0
    for path in paths:
        for job_id in ids if "{id}" in path else [""]:
            target = path.replace("{id}", job_id)
            for name, value in PATH_VALUES.items():
                target = target.replace(f"{{{name}}}", value)
            response = await guarded.client.get(target, headers=sign_in("read"))
            seen += response.status_code == 200
            assert SECRET not in response.text, target
    assert seen > 40


async def test_the_data_of_a_job_has_its_unique_key(guarded: Api) -> None:
    first, *_ = await fill_with_secrets(guarded)
    contents = await guarded.get(f"/jobs/{first}/contents", headers=sign_in("payloads"))
    assert contents["unique_key"] == f'card="{SECRET}"'
    summary = await guarded.get(f"/jobs/{first}", headers=sign_in("read"))
    assert summary["unique_mode"] == "reject, until it is finished"
