"""What an operator should know of the server: durability, memory, speed, clock. Changes nothing."""

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
    Doubt,
    Send,
    Server,
    durability_doubt,
    eviction_doubt,
    fields_of,
    server_of,
)
from nimburion.backends.redis.url import Address
from nimburion.core.checks import Finding
from nimburion.core.clock import Clock

_NEARLY_FULL = 0.8
_NEARLY_ALL = 0.8

Said = Mapping[str, str]


async def findings(send: Send, address: Address, clock: Clock) -> list[Finding]:
    """All that is found, always on the same subjects for one kind of server.

    Raises:
        BackendError: no answer.
        ConfigurationError: this user may not ask.
    """
    said = fields_of(await send("INFO"))
    server = await server_of(send, address.describe())
    found = [
        _server(server, said),
        _role(said),
        _durability(server, said),
        _snapshots(said),
        _eviction(server),
        _memory(server, said),
        _clients(said),
        await _round_trip(send, clock),
        await _clock(send, clock),
    ]
    return [*found, await _cluster(send)] if server.cluster else found


def _server(server: Server, said: Said) -> Finding:
    if said.get("loading") == "1":
        text = f"{server.name}, still reading its data"
        return Finding("server", "error", text, "wait; workers go on by themselves")
    days = int(said.get("uptime_in_seconds", 0)) / 86_400
    return Finding("server", "good", f"{server.name}, up for {days:.1f} days")


def _role(said: Said) -> Finding:
    replicas = int(said.get("connected_slaves", 0))
    if said.get("role") == "master":
        followed = f"followed by {replicas}" if replicas else "nobody follows it"
        return Finding("role", "good", f"primary, {followed}")
    primary = f"{said.get('master_host')}:{said.get('master_port')}"
    advice = "name the primary, or use redis+sentinel:// or redis+cluster://"
    return Finding("role", "error", f"a replica of {primary}: it takes no writes", advice)


def _durability(server: Server, said: Said) -> Finding:
    doubt = durability_doubt(server)
    if doubt is not None:
        return _warning("durability", doubt)
    if said.get("aof_last_write_status", "ok") != "ok":
        text = "the server cannot write its append-only file"
        return Finding("durability", "error", text, "see its log; make room on its disk")
    if said.get("aof_last_bgrewrite_status", "ok") != "ok":
        text = "the last rewrite of the append-only file failed: it grows without end"
        return Finding("durability", "warning", text, "see the server's log; make room on its disk")
    synced = {
        "always": "synced with each write: nothing that was acknowledged is lost",
        "everysec": "synced each second: when the host dies, about the last second may be lost",
    }.get(server.fsync or "", "when it is synced, this user may not ask (CONFIG GET)")
    return Finding("durability", "good", f"append-only file, {synced}")


def _snapshots(said: Said) -> Finding:
    if said.get("rdb_last_bgsave_status", "ok") == "ok":
        return Finding("snapshots", "good", "the last one went well, or none was due")
    text = "the last one failed; with stop-writes-on-bgsave-error the server then takes no writes"
    return Finding("snapshots", "warning", text, "see the server's log; make room on its disk")


def _eviction(server: Server) -> Finding:
    doubt = eviction_doubt(server)
    if doubt is not None:
        return _warning("eviction", doubt)
    if server.policy == "noeviction":
        return Finding("eviction", "good", "none: a full server refuses writes, and loses nothing")
    text = f"{server.policy}: takes only keys that expire, and none of ours does"
    return Finding("eviction", "good", text)


def _warning(subject: str, doubt: Doubt) -> Finding:
    return Finding(subject, "warning", doubt.text, doubt.advice)


def _memory(server: Server, said: Said) -> Finding:
    used = int(said.get("used_memory", 0))
    if not server.maxmemory:
        return Finding("memory", "good", f"{format_size(used)} used; no bound is set (maxmemory)")
    text = f"{format_size(used)} of {format_size(server.maxmemory)} used"
    if used < _NEARLY_FULL * server.maxmemory:
        return Finding("memory", "good", text)
    advice = "raise maxmemory, or keep less (jobs.keep_completed_max, jobs.keep_failed)"
    return Finding("memory", "warning", text, advice)


def _clients(said: Said) -> Finding:
    now, most = int(said.get("connected_clients", 0)), int(said.get("maxclients", 0))
    text = f"{now} connected" + (f", {most} may be" if most else "")
    if not most or now < _NEARLY_ALL * most:
        return Finding("clients", "good", text)
    return Finding("clients", "warning", text, "raise maxclients, or see who does not hang up")


async def _round_trip(send: Send, clock: Clock) -> Finding:
    median = await measure_round_trip(lambda: send("PING"), clock)
    text = f"{1000 * median:.2f} ms, the median of {PINGS}"
    if median <= SLOW_ROUND_TRIP:
        return Finding("round trip", "good", text)
    advice = "bring workers and server closer together, or see what slows the server (SLOWLOG GET)"
    return Finding("round trip", "warning", text, advice)


async def _clock(send: Send, clock: Clock) -> Finding:
    before = clock.now()
    seconds, micros = await send("TIME")
    off = int(seconds) + int(micros) / 1e6 - (before + clock.now()) / 2
    if abs(off) <= MAX_CLOCK_OFFSET:
        return Finding("clock", "good", f"the server's is {1000 * abs(off):.0f} ms from ours")
    text = (
        f"the server's is {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} ours; it decides "
        "when jobs are due, ours only how times read here"
    )
    return Finding("clock", "warning", text, "use NTP on both hosts")


async def _cluster(send: Send) -> Finding:
    said = fields_of(await send("CLUSTER", "INFO"))
    nodes = f"{said.get('cluster_known_nodes', '?')} nodes known"
    if said.get("cluster_state") == "ok":
        return Finding("cluster", "good", f"whole, {nodes}")
    advice = "bring back the nodes that are down (CLUSTER NODES), or give their slots to others"
    return Finding("cluster", "error", f"down: not every slot is served; {nodes}", advice)
