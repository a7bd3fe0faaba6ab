"""Parse a PostgreSQL URL into settings, and validate it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

import msgspec

from nimburion.backends.server.url import (
    Credentials,
    Endpoint,
    InvalidUrl,
    OptionTable,
    UrlParts,
    UrlSettings,
    decode_percents,
    make_choice,
    parse_endpoint,
    parse_integer,
    parse_options,
    parse_port,
    parse_text,
    parse_timeout,
    report_invalid_url,
    shorten,
    split_scheme,
    split_url,
)
from nimburion.core.errors import ConfigurationError

DEFAULT_SCHEMA = "nimburion"
DEFAULT_TIMEOUT = 5.0
DEFAULT_CONNECTIONS = 4
DEFAULT_PORT = 5432
SCHEMES = ("postgresql", "postgres")

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
SessionTarget = Literal["any", "primary", "standby", "read-write", "read-only", "prefer-standby"]
Pooler = Literal["auto", "yes", "no"]

_EXAMPLE = "localhost:5432/app"
_MAX_CONNECTIONS = 1000
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")


def _parse_schema(text: str) -> str:
    """Validate the name of a schema. It must not need quotes in SQL."""
    if not _NAME.fullmatch(text) or text.startswith("pg_"):
        raise InvalidUrl(
            f"expected 1-40 characters of a-z 0-9 _, no digit first and not pg_, found "
            f"{shorten(text)}"
        )
    return text


def _parse_ports(text: str) -> tuple[int, ...]:
    return tuple(parse_port(port) if port else DEFAULT_PORT for port in text.split(","))


def _parse_connections(text: str) -> int:
    return parse_integer(text, 1, _MAX_CONNECTIONS)


_OPTIONS: OptionTable = MappingProxyType(
    {
        "schema": _parse_schema,
        "timeout": parse_timeout,
        "connections": _parse_connections,
        "pooler": make_choice(*get_args(Pooler)),
    }
)
_TLS_OPTIONS: OptionTable = MappingProxyType(
    {
        "sslmode": make_choice(*get_args(SslMode)),
        "sslrootcert": parse_text,
        "sslcert": parse_text,
        "sslkey": parse_text,
    }
)
_LIBPQ_OPTIONS: OptionTable = MappingProxyType(
    {
        **dict.fromkeys(("host", "user", "password", "dbname", "application_name"), parse_text),
        "port": _parse_ports,
        "target_session_attrs": make_choice(*get_args(SessionTarget)),
        "connect_timeout": parse_timeout,
        **_TLS_OPTIONS,
    }
)
_HINTS: Mapping[str, str] = MappingProxyType(
    {"prefix": "table names have no prefix: choose another `schema`. "}
)


class PostgresTls(msgspec.Struct, frozen=True, kw_only=True):
    """The TLS settings of a connection, named as in libpq. All files are in PEM format."""

    sslmode: SslMode | None = None
    """The libpq mode; None: encrypted if the server supports it (`prefer`)."""
    sslrootcert: str | None = None
    """The file of trusted CA certificates."""
    sslcert: str | None = None
    """The file of the client certificate, for servers that require one."""
    sslkey: str | None = None
    """The file of the client's private key."""


class PostgresSettings(UrlSettings, frozen=True, kw_only=True):
    """The settings that a URL of this backend holds."""

    OPTIONS: ClassVar[OptionTable] = _OPTIONS

    endpoints: tuple[Endpoint, ...] = ()
    """The server, or several servers of which one takes writes. A host that begins with `/` is the
    folder of a Unix socket. Without endpoints, the driver tries the socket and localhost, like
    libpq.
    """
    credentials: Credentials = Credentials()
    database: str | None = None
    """The name of the database; None: the name of the user."""
    tls: PostgresTls = PostgresTls()
    target: SessionTarget | None = None
    """The kind of server to choose among several; None: the server that takes writes."""
    application_name: str = "nimburion"
    """The name that `pg_stat_activity` shows."""
    schema: str = DEFAULT_SCHEMA
    """The schema of the tables and functions."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds allowed for connecting, and then for each reply."""
    connections: int = DEFAULT_CONNECTIONS
    """The largest number of connections for callers in one process. A worker has two more of its
    own. The processes of a supervisor share one that listens.
    """
    pooler: Pooler = "auto"
    """Whether a pooler such as PgBouncer is in use; `auto` detects it."""

    def describe(self) -> str:
        """Return a one-line description without secrets."""
        nodes = ", ".join(map(str, self.endpoints)) or "on this machine"
        database = f"/{self.database}" if self.database else ""
        schema = "" if self.schema == DEFAULT_SCHEMA else f', schema "{self.schema}"'
        return f"PostgreSQL {nodes}{database}{schema}"


def parse_url(url: str) -> PostgresSettings:
    """Parse a URL into settings; `host:port/database` alone means `postgresql://` before it.

    Forms, as in libpq: `postgresql://user:password@host:5432/database`, several hosts separated by
    commas, and a Unix socket as `postgresql:///database?host=/run/postgresql`. In user, password,
    database and options, write characters with a meaning in URLs as `%` and two hexadecimal digits.

    Options after `?`, of libpq: `host`, `port`, `user`, `password`, `dbname`, `sslmode`,
    `sslrootcert`, `sslcert`, `sslkey`, `target_session_attrs`, `application_name`,
    `connect_timeout`; of nimburion: `schema`, `timeout` (seconds), `connections` (the largest
    number for callers), `pooler` (`auto`, `yes`, `no`).

    Raises:
        ConfigurationError: the URL is invalid. The message says what is wrong and what is allowed;
            it never shows a password.

    >>> parse_url("postgresql://app:secret@one,two:5433/shop?schema=jobs").describe()
    'PostgreSQL one:5432, two:5433/shop, schema "jobs"'
    """
    scheme, rest = split_scheme(url, "postgresql")
    if scheme not in SCHEMES:
        raise ConfigurationError(
            "not the URL of a PostgreSQL backend; it begins with postgresql://"
        )
    with report_invalid_url(f"{scheme}://…"):
        return _make_settings(split_url(rest))


def _make_settings(parts: UrlParts) -> PostgresSettings:
    values = parse_options(parts.options, {**_LIBPQ_OPTIONS, **_OPTIONS}, _HINTS)
    database = decode_percents(parts.path.removeprefix("/"))
    timeout = values.get("connect_timeout", DEFAULT_TIMEOUT)
    return PostgresSettings(
        endpoints=_choose_endpoints(parts.hosts, values.get("host"), values.get("port", ())),
        credentials=Credentials(
            _choose_once("user", parts.credentials.username, values),
            _choose_once("password", parts.credentials.password, values),
        ),
        database=_choose_once("dbname", database, values),
        tls=_make_tls(values),
        target=values.get("target_session_attrs"),
        application_name=values.get("application_name", "nimburion"),
        **{"timeout": timeout, **PostgresSettings.select_options(values)},
    )


# --- parts of the URL -----------------------------------------------------------------------------


def _choose_endpoints(
    hosts: str, named: str | None, ports: tuple[int, ...]
) -> tuple[Endpoint, ...]:
    """Return the endpoints from before the path, or from `host` and `port`. Both together are an
    error.
    """
    if named and hosts:
        raise InvalidUrl("host: is also set before the path; keep one of them")
    if named:
        return _pair_hosts_and_ports(
            [
                Endpoint(node, 0) if node[:1] == "/" else _parse_endpoint(node)
                for node in named.split(",")
            ],
            ports,
        )
    if not hosts and not ports:
        return ()
    return _pair_hosts_and_ports(
        [_parse_endpoint(node) for node in hosts.split(",")]
        if hosts
        else [Endpoint("localhost", 0)],
        ports,
    )


def _parse_endpoint(text: str) -> Endpoint:
    host = decode_percents(text.partition(":")[0])
    if host.startswith("/"):
        _, _, port = text.partition(":")
        return Endpoint(host, parse_port(port) if port else 0)
    return parse_endpoint(text, 0, _EXAMPLE)


def _pair_hosts_and_ports(nodes: list[Endpoint], ports: tuple[int, ...]) -> tuple[Endpoint, ...]:
    """Pair each host with its port: its own, the port at the same place, the only port, or 5432."""
    if len(ports) not in {0, 1, len(nodes)}:
        raise InvalidUrl(f"port: {len(ports)} ports for {len(nodes)} hosts")
    options = ports * len(nodes) if len(ports) == 1 else ports or (DEFAULT_PORT,) * len(nodes)
    found = [
        Endpoint(node.host, node.port or port) for node, port in zip(nodes, options, strict=True)
    ]
    return tuple(dict.fromkeys(found))


def _choose_once(name: str, before: str | None, values: Mapping[str, Any]) -> str | None:
    """Return a value from before the options, or from an option. Both together are an error."""
    if before and name in values:
        raise InvalidUrl(f"{name}: is also set before the ?; keep one of them")
    return before or values.get(name)


def _make_tls(values: Mapping[str, Any]) -> PostgresTls:
    tls = PostgresTls(**{name: values[name] for name in _TLS_OPTIONS if name in values})
    if tls.sslkey and not tls.sslcert:
        raise InvalidUrl("sslkey without sslcert; name the certificate too")
    return tls
