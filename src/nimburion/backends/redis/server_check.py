"""What the server is, and whether jobs are safe with it: looked at when a backend is opened."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from nimburion.backends.redis.url import RedisSettings
from nimburion.core.errors import BackendError, BackendUnavailable, ConfigurationError

OLDEST_SERVER = (6, 2)
WAITAOF_SINCE = (7, 2)

SendCommand = Callable[..., Awaitable[Any]]
"""Sends one command and returns its reply; its errors are those of the contract."""

_log = logging.getLogger("nimburion.backends.redis")


class RedisServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself."""

    product: str
    """`Redis` or `Valkey`."""
    version: tuple[int, ...]
    cluster: bool
    """It is a node of a cluster."""
    append_only: bool
    """It writes each change to its append-only file."""
    fsync: str | None
    """When it syncs that: `always`, `everysec` or `no`; None: it does not tell this user."""
    maxmemory: int
    """Bytes; 0: as many as there are."""
    eviction_policy: str
    """What it does when those are full."""

    @property
    def name(self) -> str:
        """Product and version."""
        return f"{self.product} {'.'.join(map(str, self.version))}"

    @property
    def has_waitaof(self) -> bool:
        """Whether it can tell that a write is on the disk."""
        return self.version >= WAITAOF_SINCE

    @property
    def waits_for_sync(self) -> bool:
        """Whether WAITAOF means what it says under `everysec`. Redis 7.4, and every Valkey so far,
        answers when the write is with the operating system (redis/redis#13793)."""
        return self.fsync == "always" or (self.product == "Redis" and self.version >= (8, 0))


class Risk(msgspec.Struct, frozen=True):
    """Why jobs are not safe, and what to do."""

    text: str
    advice: str


async def check_server(
    send: SendCommand, settings: RedisSettings, warned: set[str]
) -> RedisServerInfo:
    """Check the server; log a warning for each way to lose jobs, unless it is in `warned` already.

    `warned` belongs to a backend and its siblings, and new warnings are added to it: a worker
    connects several times, and every connection checks the server.

    Raises:
        ConfigurationError: it will not do, or not for what the address asks: too old, a cluster
            where a single server was named, `require_durable` or `durable_enqueue` without what
            they need. The message says what to change.
        BackendUnavailable: no answer.
    """
    where = settings.describe()
    server = await read_server_info(send, where)
    _reject_unsupported(server, settings, where)
    _reject_unsynced(server, settings, where)
    for doubt in find_risks(server):
        if settings.require_durable:
            problem = f"{where}: require_durable, but {doubt.text}. {doubt.advice}"
            raise ConfigurationError(problem)
        _warn_once(warned, f"{where}: {doubt.text}. {doubt.advice}")
    unsynced = find_flush_risk(server) if settings.durable_enqueue else None
    if unsynced is not None:
        _warn_once(warned, f"{where}: {unsynced.text}. {unsynced.advice}")
    return server


async def read_server_info(send: SendCommand, where: str) -> RedisServerInfo:
    """What the server says of itself."""
    said = parse_info(await send("INFO"))
    if "redis_version" not in said:
        raise ConfigurationError(f"{where}: this is no Redis and no Valkey: INFO has no version")
    return RedisServerInfo(
        product="Valkey" if "valkey_version" in said else "Redis",
        version=_parse_version(said.get("valkey_version") or said["redis_version"]),
        cluster=said.get("cluster_enabled") == "1",
        append_only=said.get("aof_enabled") == "1",
        fsync=await _read_setting(send, "appendfsync"),
        maxmemory=int(said.get("maxmemory", 0)),
        eviction_policy=said.get("maxmemory_policy", "noeviction"),
    )


def parse_info(info: bytes) -> Mapping[str, str]:
    """The lines of INFO by name."""
    lines = info.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and line[0] != "#")


def _parse_version(text: str) -> tuple[int, ...]:
    numbers = [part for part in text.split("-", maxsplit=1)[0].split(".") if part.isdecimal()]
    return tuple(map(int, numbers)) or (0,)


async def _read_setting(send: SendCommand, name: str) -> str | None:
    """One setting of the server; None where it does not tell."""
    try:
        reply = await send("CONFIG", "GET", name)
    except BackendUnavailable:
        raise
    except (ConfigurationError, BackendError):
        return None
    return reply[1].decode() if reply else None


def find_risks(server: RedisServerInfo) -> list[Risk]:
    """What would lose jobs that were acknowledged."""
    found = [find_durability_risk(server), find_eviction_risk(server)]
    return [doubt for doubt in found if doubt is not None]


def find_durability_risk(server: RedisServerInfo) -> Risk | None:
    """What the death of the server or its host would lose."""
    if not server.append_only:
        return Risk(
            "the server keeps no append-only file: when it dies, every job since its last snapshot "
            "is lost, all of them if it makes none",
            "CONFIG SET appendonly yes, then CONFIG REWRITE (or appendonly yes in its file)",
        )
    if server.fsync == "no":
        return Risk(
            "the server never syncs its append-only file (appendfsync no): when its host dies, the "
            "jobs of about the last 30 s are lost",
            "CONFIG SET appendfsync everysec, then CONFIG REWRITE",
        )
    return None


def find_flush_risk(server: RedisServerInfo) -> Risk | None:
    """What `durable_enqueue` does not keep on some servers."""
    if server.waits_for_sync:
        return None
    return Risk(
        f"{server.name} answers WAITAOF before its sync, unless it syncs with each write: "
        "durable_enqueue then keeps jobs when the server dies, not when its host does",
        "CONFIG SET appendfsync always, then CONFIG REWRITE; or use Redis 8",
    )


def find_eviction_risk(server: RedisServerInfo) -> Risk | None:
    """What a full memory would lose. `volatile-…` takes keys that expire; none of ours does."""
    if not server.eviction_policy.startswith("allkeys"):
        return None
    return Risk(
        f"the server may evict any key (maxmemory-policy {server.eviction_policy}): when maxmemory "
        "is "
        "reached it deletes keys of ours, each of which holds many jobs",
        "CONFIG SET maxmemory-policy noeviction, then CONFIG REWRITE; caches need another server",
    )


def _reject_unsupported(server: RedisServerInfo, settings: RedisSettings, where: str) -> None:
    if server.version < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise ConfigurationError(f"{where}: {server.name} is too old; {oldest} is the oldest")
    if server.cluster and settings.kind != "cluster":
        node = settings.endpoints[0] if settings.kind == "single" else "HOST:PORT"
        raise ConfigurationError(f"{where}: a node of a cluster; use redis+cluster://{node}")


def _reject_unsynced(server: RedisServerInfo, settings: RedisSettings, where: str) -> None:
    """`durable_enqueue` waits for what some servers never do."""
    if not settings.durable_enqueue:
        return
    needs = None
    if not server.has_waitaof:
        needs = f"{server.name} has no WAITAOF: Redis 7.2 or Valkey is needed"
    elif not server.append_only:
        needs = "the server keeps no append-only file: CONFIG SET appendonly yes"
    elif server.fsync == "no":
        needs = "the server never syncs (appendfsync no): CONFIG SET appendfsync everysec"
    if needs:
        raise ConfigurationError(f"{where}: durable_enqueue, but {needs}")


def _warn_once(warned: set[str], warning: str) -> None:
    if warning not in warned:
        warned.add(warning)
        _log.warning("%s", warning)
