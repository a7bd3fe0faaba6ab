"""Tenants over the API."""

from __future__ import annotations

from tests.server.conftest import Api, send


async def test_tenants_are_listed_with_their_shares(api: Api) -> None:
    stored = await api.post("/tenants/weight", {"tenant": "acme", "weight": 2.999})
    assert stored == {"tenant": "acme", "weight": 3.0}
    for tenant, count in (("acme", 2), ("initech", 1)):
        await api.processor.enqueue_many((send.job("x") for _ in range(count)), tenant=tenant)
    found = await api.get("/tenants")
    assert found["weights"] == {"acme": 3.0}
    assert [
        (one["tenant"], one["weight"], one["share"], one["waiting"], one["running"], one["ahead"])
        for one in found["tenants"]
    ] == [("acme", 3.0, 0.75, 2, 0, 0.033333), ("initech", 1.0, 0.25, 1, 0, 0.1)]
    assert len((await api.get("/tenants?limit=1"))["tenants"]) == 1


async def test_a_weight_is_reset_and_recorded(api: Api) -> None:
    await api.post("/tenants/weight", {"tenant": "acme inc", "weight": 0.5})
    stored = await api.post("/tenants/weight", {"tenant": "acme inc", "weight": None})
    assert stored == {"tenant": "acme inc", "weight": 1.0}
    assert (await api.get("/tenants"))["weights"] == {}
    records = (await api.get("/audit"))["records"]
    assert [(record["action"], record["target"]) for record in records] == [
        ("tenant.weight", "acme inc")
    ] * 2


async def test_a_weight_out_of_bounds_is_refused(api: Api) -> None:
    answer = await api.client.post(
        "/api/v1/tenants/weight", json={"tenant": "acme", "weight": 0.001}
    )
    assert answer.status_code == 422


async def test_a_tenant_that_no_job_can_have_is_refused(api: Api) -> None:
    for tenant in ("", "a\nb", "acme\n"):
        answer = await api.client.post(
            "/api/v1/tenants/weight", json={"tenant": tenant, "weight": 2}
        )
        assert answer.status_code == 422, tenant
    assert (await api.get("/tenants"))["weights"] == {}
