"""A backend keeps nothing but what `keys.KEYS` says, and as it says."""

from __future__ import annotations

from nimburion.backends.redis.keys import KEYS
from nimburion.core.metrics.statistics import STEPS
from tests.backends.redis.every_operation import run_everything
from tests.servers import Server

KINDS = {"hash": "hash", "zset": "sorted set", "stream": "stream"}
GONE_AFTER_A_STEP = {
    "cancel_requested",
    "session_leases",
    "lease",
    "expired_session",
    "paused_queue",
    "record_due",
    "session_command",
    "session_vitals",
    "attempt_state",
    "limit_change",
    "parked",
    "parked_lane",
    "changed_lane",
    "tenant_job",
    "tenant_turn",
    "idle_worker",
    "running_flow",
    "condition",
    "unmet",
    "flow_change",
}
"""Keys that hold what a step begins and ends."""


async def test_every_key_is_described(valkey: Server) -> None:
    found: dict[str, str] = {}
    statistics: dict[str, str] = {}
    valkey.empty()
    with valkey.client(decode_responses=True) as client:

        def look() -> None:
            for key in client.scan_iter():
                kind, has_expiry = KINDS[str(client.type(key))], client.ttl(key) != -1
                if ":idle_worker:" in key:
                    assert kind == "stream"
                    assert has_expiry
                    continue
                assert has_expiry == (":statistics:" in key), key
                if has_expiry:
                    statistics[key] = kind
                else:
                    found[key] = kind

        await run_everything(valkey.url, [valkey], after_each=look)
    documented = {f"{{nimburion}}:{name}": text.partition(":")[0] for name, text in KEYS.items()}
    assert (
        documented.pop("{nimburion}:statistics") == "prefix of the keys of statistics (see below)"
    )
    assert documented.pop("{nimburion}:notify") == "no key"
    assert set(statistics.values()) == {"hash"}
    assert {int(key.split(":")[2]) for key in statistics} == set(STEPS)
    assert found.items() <= documented.items()
    unseen = {key.removeprefix("{nimburion}:") for key in documented.keys() - found.keys()}
    assert unseen <= GONE_AFTER_A_STEP
