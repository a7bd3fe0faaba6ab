"""The databases of Django as places for jobs: their URLs, and which of them a backend uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from django.db import connections

from nimburion.config.backend_url import make_sqlite_url
from nimburion.core.errors import ConfigurationError

_TLS_OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey")


def make_database_url(alias: str) -> str | None:
    """Return the URL of a backend in one of Django's databases; None if it cannot hold jobs.

    A SQLite database in memory, as in tests, gives `memory://`. Raises `ConfigurationError` if the
    server is named only by a service file.
    """
    connection = connections[alias]
    options: Mapping[str, Any] = connection.settings_dict
    if connection.vendor == "sqlite":
        name = str(options["NAME"])
        in_memory = name == ":memory:" or "mode=memory" in name
        return "memory://" if in_memory else make_sqlite_url(name)
    if connection.vendor == "postgresql":
        return _make_postgres_url(alias, options)
    return None


def find_shared_database(url: str) -> str | None:
    """Return the alias of the database in which the backend with this URL lives; None: in none."""
    place = _locate(url)
    if place is None:
        return None
    for alias in connections:
        try:
            found = make_database_url(alias)
        except ConfigurationError:
            continue
        if found is not None and _locate(found) == place:
            return alias
    return None


def _make_postgres_url(alias: str, options: Mapping[str, Any]) -> str:
    more = options.get("OPTIONS") or {}
    if not options["NAME"]:
        raise ConfigurationError(
            f"the database {alias!r} names no NAME, so jobs cannot find it; write "
            'NIMBURION = {"url": "postgresql://…"}'
        )
    login = quote(str(options.get("USER") or ""), safe="")
    if options.get("PASSWORD"):
        login += ":" + quote(str(options["PASSWORD"]), safe="")
    host, port = str(options.get("HOST") or ""), str(options.get("PORT") or "")
    query = {name: str(more[name]) for name in _TLS_OPTIONS if more.get(name)}
    place = ""
    if host.startswith("/") or (port and not host):
        query |= {"host": host} if host else {}
        query |= {"port": port} if port else {}
    elif host:
        place = f"[{host}]" if ":" in host else host
        place += f":{port}" if port else ""
    pairs = "&".join(f"{name}={quote(value, safe='/')}" for name, value in query.items())
    name = quote(str(options["NAME"]), safe="")
    return f"postgresql://{login}{'@' if login else ''}{place}/{name}{'?' if pairs else ''}{pairs}"


def _locate(url: str) -> tuple[str, ...] | None:
    """Return what identifies the database of a URL; None for a backend that is not in one."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        path = unquote(rest.removeprefix("/").partition("?")[0])
        return "sqlite", os.path.realpath(path)
    if scheme not in {"postgresql", "postgres"}:
        return None
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    hosts = query.get("host", [parts.netloc.rpartition("@")[2]])[0]
    host, _, port = hosts.partition("]:" if hosts.startswith("[") else ":")
    port = query.get("port", [port])[0] or "5432"
    name = query.get("dbname", [unquote(parts.path.removeprefix("/"))])[0]
    return "postgresql", host.strip("[]"), port, name
