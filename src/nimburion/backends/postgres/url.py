"""Parse a PostgreSQL URL into settings, and validate it."""

from __future__ import annotations

import re
from typing import Literal, TypeVar, get_args

import msgspec

from nimburion.backends.server.url import (
    Credentials,
    Endpoint,
    InvalidUrl,
    UrlOptions,
    decode_percents,
    make_options,
    parse_credentials,
    parse_endpoint,
    parse_integer,
    parse_port,
    parse_query,
    parse_seconds,
    parse_text,
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
T = TypeVar("T", bound=str)

_EXAMPLE = "localhost:5432/app"
_MAX_CONNECTIONS = 1000
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")


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


class PostgresSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that a URL of this backend holds."""

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
    """The largest number of connections for callers in one process. A worker has three more of its
    own.
    """
    pooler: Pooler = "auto"
    """Whether a pooler such as PgBouncer is in use; `auto` detects it."""

    def __repr__(self) -> str:
        return f"Address({self.describe()})"

    def describe(self) -> str:
        """Return a one-line description without secrets."""
        nodes = ", ".join(map(str, self.endpoints)) or "on this machine"
        database = f"/{self.database}" if self.database else ""
        schema = "" if self.schema == DEFAULT_SCHEMA else f', schema "{self.schema}"'
        return f"PostgreSQL {nodes}{database}{schema}"

    def replace(
        self,
        *,
        schema: str | None = None,
        timeout: float | None = None,
        connections: int | None = None,
        pooler: str | None = None,
    ) -> PostgresSettings:
        """Return a copy in which every argument that is not None replaces the value of the URL.

        Raises:
            ConfigurationError: an argument has an invalid value.
        """
        options = make_options(
            schema=schema, timeout=timeout, connections=connections, pooler=pooler
        )
        with report_invalid_url(self.describe()):
            return _apply_options(self, options)


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
        return _parse_settings(rest)


def _parse_settings(rest: str) -> PostgresSettings:
    authority, path, query = split_url(rest)
    login, _, hosts = authority.rpartition("@")
    pairs = parse_query(query)
    if "prefix" in pairs:
        raise InvalidUrl("prefix: table names have no prefix; choose another `schema`")
    options = UrlOptions(pairs)
    settings = PostgresSettings(
        endpoints=_read_endpoints(hosts, options),
        credentials=_read_credentials(parse_credentials(login), options),
        database=_read_once("dbname", decode_percents(path.removeprefix("/")), options),
        tls=_read_tls(options),
        target=options.read("target_session_attrs", _parse_session_target, None),
        application_name=options.read("application_name", parse_text, "nimburion"),
        timeout=options.read("connect_timeout", parse_seconds, DEFAULT_TIMEOUT),
    )
    settings_with_options = _apply_options(settings, options)
    options.reject_unknown()
    return settings_with_options


def _apply_options(settings: PostgresSettings, options: UrlOptions) -> PostgresSettings:
    return msgspec.structs.replace(
        settings,
        schema=options.read("schema", parse_schema, settings.schema),
        timeout=options.read("timeout", parse_seconds, settings.timeout),
        connections=options.read("connections", _parse_connections, settings.connections),
        pooler=options.read("pooler", _parse_pooler, settings.pooler),
    )


# --- parts of the URL -----------------------------------------------------------------------------


def _read_endpoints(hosts: str, options: UrlOptions) -> tuple[Endpoint, ...]:
    """Return the endpoints from before the path, or from `host` and `port`. Both together are an
    error.
    """
    named = options.read("host", parse_text, None)
    ports: tuple[int, ...] = options.read("port", _parse_ports, tuple[int, ...]())
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


def _read_credentials(login: Credentials, options: UrlOptions) -> Credentials:
    user = _read_once("user", login.username, options)
    return Credentials(user, _read_once("password", login.password, options))


def _read_once(name: str, before: str | None, options: UrlOptions) -> str | None:
    """Return a value from the URL or from an option. Both together are an error."""
    value = options.read(name, parse_text, None)
    if value and before:
        raise InvalidUrl(f"{name}: is also set before the ?; keep one of them")
    return value or before or None


def _read_tls(options: UrlOptions) -> PostgresTls:
    tls = PostgresTls(
        sslmode=options.read("sslmode", _parse_ssl_mode, None),
        sslrootcert=options.read("sslrootcert", parse_text, None),
        sslcert=options.read("sslcert", parse_text, None),
        sslkey=options.read("sslkey", parse_text, None),
    )
    if tls.sslkey and not tls.sslcert:
        raise InvalidUrl("sslkey without sslcert; name the certificate too")
    return tls


# --- options --------------------------------------------------------------------------------------


def parse_schema(text: str) -> str:
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


def _parse_ssl_mode(text: str) -> SslMode:
    return _parse_choice(text, get_args(SslMode))


def _parse_session_target(text: str) -> SessionTarget:
    return _parse_choice(text, get_args(SessionTarget))


def _parse_pooler(text: str) -> Pooler:
    return _parse_choice(text, get_args(Pooler))


def _parse_choice(text: str, choices: tuple[T, ...]) -> T:
    for scheme in choices:
        if text == scheme:
            return scheme
    raise InvalidUrl(f"expected {', '.join(choices)}; found {shorten(text)}")
