"""Checks of the server for operators: durability, memory, speed, clock. They change nothing."""

from __future__ import annotations

from collections.abc import Mapping

from nimburion.backends.checks import (
    MAX_CLOCK_OFFSET,
    PINGS,
    SLOW_ROUND_TRIP,
    format_size,
    measure_round_trip,
)
from nimburion.backends.redis.server_check import (
    RedisServerInfo,
    Risk,
    SendCommand,
    find_durability_risk,
    find_eviction_risk,
    parse_info,
    read_server_info,
)
from nimburion.backends.redis.url import RedisSettings
from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.timing.clock import Clock

_NEARLY_FULL = 0.8
_NEARLY_ALL = 0.8

InfoFields = Mapping[str, str]


async def run_checks(
    send_command: SendCommand, settings: RedisSettings, clock: Clock
) -> list[CheckResult]:
    """Run all checks. The subjects are always the same for one kind of server.

    Raises:
        BackendError: the server does not answer.
        ConfigurationError: this user lacks the permission to read the server's state.
    """
    info = parse_info(await send_command("INFO"))
    server = await read_server_info(send_command, settings.describe())
    found = [
        _check_server(server, info),
        _check_role(info),
        _check_durability(server, info),
        _check_snapshots(info),
        _check_eviction(server),
        _check_memory(server, info),
        _check_clients(info),
        await _check_round_trip(send_command, clock),
        await _check_clock(send_command, clock),
    ]
    return [*found, await _check_cluster(send_command)] if server.cluster else found


def _check_server(server: RedisServerInfo, info: InfoFields) -> CheckResult:
    if info.get("loading") == "1":
        text = f"{server.name}, still reading its data"
        return CheckResult("server", "error", text, "wait; workers continue by themselves")
    days = int(info.get("uptime_in_seconds", 0)) / 86_400
    return CheckResult("server", "good", f"{server.name}, up for {days:.1f} days")


def _check_role(info: InfoFields) -> CheckResult:
    replicas = int(info.get("connected_slaves", 0))
    if info.get("role") == "master":
        replication = f"followed by {replicas}" if replicas else "without a replica"
        return CheckResult("role", "good", f"primary, {replication}")
    primary = f"{info.get('master_host')}:{info.get('master_port')}"
    advice = "name the primary, or use redis+sentinel:// or redis+cluster://"
    return CheckResult("role", "error", f"a replica of {primary}: it takes no writes", advice)


def _check_durability(server: RedisServerInfo, info: InfoFields) -> CheckResult:
    risk = find_durability_risk(server)
    if risk is not None:
        return _warn("durability", risk)
    if info.get("aof_last_write_status", "ok") != "ok":
        text = "the server cannot write its append-only file"
        return CheckResult("durability", "error", text, "see its log; make room on its disk")
    if info.get("aof_last_bgrewrite_status", "ok") != "ok":
        text = "the last rewrite of the append-only file failed: it grows without end"
        return CheckResult(
            "durability", "warning", text, "see the server's log; make room on its disk"
        )
    synced = {
        "always": "synced with each write: nothing that was acknowledged is lost",
        "everysec": "synced each second: when the host dies, about the last second may be lost",
    }.get(server.fsync or "", "this user may not read when it is synced (CONFIG GET)")
    return CheckResult("durability", "good", f"append-only file, {synced}")


def _check_snapshots(info: InfoFields) -> CheckResult:
    if info.get("rdb_last_bgsave_status", "ok") == "ok":
        return CheckResult("snapshots", "good", "the last one went well, or none was due")
    text = "the last one failed; with stop-writes-on-bgsave-error the server then takes no writes"
    return CheckResult("snapshots", "warning", text, "see the server's log; make room on its disk")


def _check_eviction(server: RedisServerInfo) -> CheckResult:
    risk = find_eviction_risk(server)
    if risk is not None:
        return _warn("eviction", risk)
    if server.eviction_policy == "noeviction":
        return CheckResult(
            "eviction", "good", "none: a full server refuses writes, and loses nothing"
        )
    text = (
        f"{server.eviction_policy}: evicts only keys with an expiry; of nimburion's keys, only the "
        "statistics have one"
    )
    return CheckResult("eviction", "good", text)


def _warn(subject: str, risk: Risk) -> CheckResult:
    return CheckResult(subject, "warning", risk.text, risk.advice)


def _check_memory(server: RedisServerInfo, info: InfoFields) -> CheckResult:
    used = int(info.get("used_memory", 0))
    if not server.maxmemory:
        return CheckResult(
            "memory", "good", f"{format_size(used)} used; no bound is set (maxmemory)"
        )
    text = f"{format_size(used)} of {format_size(server.maxmemory)} used"
    if used < _NEARLY_FULL * server.maxmemory:
        return CheckResult("memory", "good", text)
    advice = "raise maxmemory, or keep less (jobs.keep_completed_max, jobs.keep_failed)"
    return CheckResult("memory", "warning", text, advice)


def _check_clients(info: InfoFields) -> CheckResult:
    now, most = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    text = f"{now} connected" + (f", {most} may be" if most else "")
    if not most or now < _NEARLY_ALL * most:
        return CheckResult("clients", "good", text)
    return CheckResult(
        "clients", "warning", text, "raise maxclients, or find clients that do not disconnect"
    )


async def _check_round_trip(send: SendCommand, clock: Clock) -> CheckResult:
    median = await measure_round_trip(lambda: send("PING"), clock)
    text = f"{1000 * median:.2f} ms, the median of {PINGS}"
    if median <= SLOW_ROUND_TRIP:
        return CheckResult("round trip", "good", text)
    advice = "run the workers closer to the server, or find what slows it (SLOWLOG GET)"
    return CheckResult("round trip", "warning", text, advice)


async def _check_clock(send: SendCommand, clock: Clock) -> CheckResult:
    before = clock.now()
    seconds, micros = await send("TIME")
    off = int(seconds) + int(micros) / 1e6 - (before + clock.now()) / 2
    if abs(off) <= MAX_CLOCK_OFFSET:
        return CheckResult("clock", "good", f"the server's is {1000 * abs(off):.0f} ms from ours")
    text = (
        f"the server's is {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} ours; it decides "
        "when jobs are due, ours only how times read here"
    )
    return CheckResult("clock", "warning", text, "use NTP on both hosts")


async def _check_cluster(send: SendCommand) -> CheckResult:
    info = parse_info(await send("CLUSTER", "INFO"))
    nodes = f"{info.get('cluster_known_nodes', '?')} nodes known"
    if info.get("cluster_state") == "ok":
        return CheckResult("cluster", "good", f"whole, {nodes}")
    advice = "restart the nodes that are down (CLUSTER NODES), or move their slots to others"
    return CheckResult("cluster", "error", f"down: not every slot is served; {nodes}", advice)
