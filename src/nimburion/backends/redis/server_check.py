"""Check the server when a backend opens: what it is, and whether jobs are safe on it."""

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
"""Sends one command and returns its reply; raises errors of nimburion."""

_log = logging.getLogger("nimburion.backends.redis")


class RedisServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The properties that a server reports."""

    product: str
    """`Redis` or `Valkey`."""
    version: tuple[int, ...]
    cluster: bool
    """Whether the server is a node of a cluster."""
    append_only: bool
    """Whether the server writes each change to its append-only file."""
    fsync: str | None
    """When the append-only file is synced: `always`, `everysec` or `no`; None: this user may not
    read the setting.
    """
    maxmemory: int
    """The memory limit in bytes; 0: no limit."""
    eviction_policy: str
    """The eviction policy that applies when the memory limit is reached."""

    @property
    def name(self) -> str:
        """Product and version."""
        return f"{self.product} {'.'.join(map(str, self.version))}"

    @property
    def has_waitaof(self) -> bool:
        """Whether the server supports WAITAOF, which confirms that a write is on the disk."""
        return self.version >= WAITAOF_SINCE

    @property
    def waits_for_sync(self) -> bool:
        """Whether WAITAOF waits for the fsync under `everysec`. Redis 7.4, and every Valkey so far,
        replies when the operating system has the write (redis/redis#13793).
        """
        return self.fsync == "always" or (self.product == "Redis" and self.version >= (8, 0))


class Risk(msgspec.Struct, frozen=True):
    """A reason why jobs may be lost, and a suggested fix."""

    text: str
    advice: str


async def check_server(
    send: SendCommand, settings: RedisSettings, warned: set[str]
) -> RedisServerInfo:
    """Check the server. Log a warning for each risk of losing jobs that is not in `warned`.

    `warned` is shared by all handles of a backend, and new warnings are added to it. A worker
    connects several times, and every connection checks the server.

    Raises:
        ConfigurationError: the server is not suitable, or the settings need what it lacks. It is
            too old, is a cluster although the URL names a single server, or does not support
            `require_durable` or `durable_enqueue`. The message says what to change.
        BackendUnavailable: the server does not answer.
    """
    where = settings.describe()
    server = await read_server_info(send, where)
    _reject_unsupported(server, settings, where)
    _reject_unsynced(server, settings, where)
    for risk in find_risks(server):
        if settings.require_durable:
            problem = f"{where}: require_durable, but {risk.text}. {risk.advice}"
            raise ConfigurationError(problem)
        _warn_once(warned, f"{where}: {risk.text}. {risk.advice}")
    unsynced = find_flush_risk(server) if settings.durable_enqueue else None
    if unsynced is not None:
        _warn_once(warned, f"{where}: {unsynced.text}. {unsynced.advice}")
    return server


async def read_server_info(send: SendCommand, where: str) -> RedisServerInfo:
    """Read the properties of the server."""
    info = parse_info(await send("INFO"))
    if "redis_version" not in info:
        raise ConfigurationError(f"{where}: this is neither Redis nor Valkey: INFO has no version")
    return RedisServerInfo(
        product="Valkey" if "valkey_version" in info else "Redis",
        version=_parse_version(info.get("valkey_version") or info["redis_version"]),
        cluster=info.get("cluster_enabled") == "1",
        append_only=info.get("aof_enabled") == "1",
        fsync=await _read_setting(send, "appendfsync"),
        maxmemory=int(info.get("maxmemory", 0)),
        eviction_policy=info.get("maxmemory_policy", "noeviction"),
    )


def parse_info(info: bytes) -> Mapping[str, str]:
    """Return the fields of an INFO reply by name."""
    lines = info.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and line[0] != "#")


def _parse_version(text: str) -> tuple[int, ...]:
    numbers = [part for part in text.split("-", maxsplit=1)[0].split(".") if part.isdecimal()]
    return tuple(map(int, numbers)) or (0,)


async def _read_setting(send: SendCommand, name: str) -> str | None:
    """Return one setting of the server; None if this user may not read it."""
    try:
        reply = await send("CONFIG", "GET", name)
    except BackendUnavailable:
        raise
    except (ConfigurationError, BackendError):
        return None
    return reply[1].decode() if reply else None


def find_risks(server: RedisServerInfo) -> list[Risk]:
    """Return the risks of losing acknowledged jobs."""
    found = [find_durability_risk(server), find_eviction_risk(server)]
    return [risk for risk in found if risk is not None]


def find_durability_risk(server: RedisServerInfo) -> Risk | None:
    """Return the risk of losing jobs when the server or its host fails."""
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
    """Return the limit of `durable_enqueue` on this server, if it has one."""
    if server.waits_for_sync:
        return None
    return Risk(
        f"{server.name} answers WAITAOF before its sync, unless it syncs with each write: "
        "durable_enqueue then keeps jobs when the server dies, not when its host does",
        "CONFIG SET appendfsync always, then CONFIG REWRITE; or use Redis 8",
    )


def find_eviction_risk(server: RedisServerInfo) -> Risk | None:
    """Return the risk of losing jobs when the memory is full. The policies `volatile-…` evict only
    keys with an expiry, and of the keys of nimburion only those of the statistics have one.
    """
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
    """Reject a server on which `durable_enqueue` would wait for an fsync that never happens."""
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
