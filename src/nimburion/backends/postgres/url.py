"""Where the database is and how to speak with it: a URL, taken apart and checked."""

from __future__ import annotations

import re
from typing import Literal, TypeVar, get_args

import msgspec

from nimburion.backends.server.url import (
    Login,
    Node,
    Options,
    Wrong,
    checked,
    cut,
    given_of,
    login_of,
    node_of,
    pairs_of,
    parts_of,
    port_of,
    read_seconds,
    read_text,
    scheme_of,
    unquoted,
    whole,
)
from nimburion.core.errors import ConfigurationError

SCHEMA = "nimburion"
TIMEOUT = 5.0
CONNECTIONS = 4
PORT = 5432
SCHEMES = ("postgresql", "postgres")

Mode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
Target = Literal["any", "primary", "standby", "read-write", "read-only", "prefer-standby"]
Pooler = Literal["auto", "yes", "no"]
T = TypeVar("T", bound=str)

_EXAMPLE = "localhost:5432/app"
_MOST_CONNECTIONS = 1000
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_PREFIX = re.compile(r"([a-z_][a-z0-9_]{0,19})?")


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection is encrypted, in the words of libpq; the files are PEM."""

    sslmode: Mode | None = None
    """None: encrypted where the server can (`prefer`)."""
    sslrootcert: str | None = None
    """Whom to trust."""
    sslcert: str | None = None
    """Our own certificate, for servers that ask for one."""
    sslkey: str | None = None
    """Its key."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """What a URL of this store says."""

    nodes: tuple[Node, ...] = ()
    """The server, or several of which one takes writes; a host that begins with `/` is the folder
    of a Unix socket. None: the driver looks where libpq does, at the socket and at localhost."""
    login: Login = Login()
    database: str | None = None
    """None: the one named as the user."""
    tls: Tls = Tls()
    target: Target | None = None
    """Which of several servers will do; None: the one that takes writes."""
    application_name: str = "nimburion"
    """What `pg_stat_activity` shows."""
    schema: str = SCHEMA
    """Where our tables are."""
    prefix: str = ""
    """What their names begin with."""
    timeout: float = TIMEOUT
    """Seconds that connecting may take, and then each answer."""
    connections: int = CONNECTIONS
    """The most connections for callers in one process; a worker has three of its own."""
    pooler: Pooler = "auto"
    """Whether PgBouncer or the like stands between; `auto` finds out by itself."""

    def __repr__(self) -> str:
        return f"Address({self.describe()})"

    def describe(self) -> str:
        """One line without secrets."""
        nodes = ", ".join(map(str, self.nodes)) or "on this machine"
        database = f"/{self.database}" if self.database else ""
        schema = "" if self.schema == SCHEMA else f', schema "{self.schema}"'
        prefix = f', prefix "{self.prefix}"' if self.prefix else ""
        return f"PostgreSQL {nodes}{database}{schema}{prefix}"

    def using(
        self,
        *,
        schema: str | None = None,
        prefix: str | None = None,
        timeout: float | None = None,
        connections: int | None = None,
        pooler: str | None = None,
    ) -> Address:
        """The same, with what is not None in place of what the URL says.

        Raises:
            ConfigurationError: one of them is not what it can be.
        """
        given = given_of(
            schema=schema, prefix=prefix, timeout=timeout, connections=connections, pooler=pooler
        )
        with checked(self.describe()):
            return _with_options(self, given)


def parse(url: str) -> Address:
    """The address that a URL names; `host:port/database` alone means `postgresql://` before it.

    Forms, as libpq takes them: `postgresql://user:password@host:5432/database`, several hosts
    with commas between, a Unix socket as `postgresql:///database?host=/run/postgresql`. In user,
    password, database and options, what has a meaning in URLs is written as `%` and two digits.

    Options behind `?`, of libpq: `host`, `port`, `user`, `password`, `dbname`, `sslmode`,
    `sslrootcert`, `sslcert`, `sslkey`, `target_session_attrs`, `application_name`,
    `connect_timeout`; of nimburion: `schema`, `prefix`, `timeout` (seconds), `connections` (the
    most for callers), `pooler` (`auto`, `yes`, `no`).

    Raises:
        ConfigurationError: what is wrong and what is allowed; no password is shown.

    >>> parse("postgresql://app:secret@one,two:5433/shop?schema=jobs").describe()
    'PostgreSQL one:5432, two:5433/shop, schema "jobs"'
    """
    word, rest = scheme_of(url, "postgresql")
    if word not in SCHEMES:
        raise ConfigurationError("not the URL of a PostgreSQL store; it begins with postgresql://")
    with checked(f"{word}://…"):
        return _address(rest)


def _address(rest: str) -> Address:
    authority, path, query = parts_of(rest)
    login, _, hosts = authority.rpartition("@")
    options = Options(pairs_of(query))
    address = Address(
        nodes=_nodes(hosts, options),
        login=_login(login_of(login), options),
        database=_once("dbname", unquoted(path.removeprefix("/")), options),
        tls=_tls(options),
        target=options.take("target_session_attrs", _read_target, None),
        application_name=options.take("application_name", read_text, "nimburion"),
        timeout=options.take("connect_timeout", read_seconds, TIMEOUT),
    )
    whole_address = _with_options(address, options)
    options.refuse_others()
    return whole_address


def _with_options(address: Address, options: Options) -> Address:
    return msgspec.structs.replace(
        address,
        schema=options.take("schema", read_schema, address.schema),
        prefix=options.take("prefix", read_prefix, address.prefix),
        timeout=options.take("timeout", read_seconds, address.timeout),
        connections=options.take("connections", _read_connections, address.connections),
        pooler=options.take("pooler", _read_pooler, address.pooler),
    )


# --- the parts ------------------------------------------------------------------------------------


def _nodes(hosts: str, options: Options) -> tuple[Node, ...]:
    """From before the path, or from `host` and `port`; not both."""
    named = options.take("host", read_text, None)
    ports: tuple[int, ...] = options.take("port", _read_ports, tuple[int, ...]())
    if named and hosts:
        raise Wrong("host: stands before the path too; keep one of them")
    if named:
        return _paired(
            [Node(one, 0) if one[:1] == "/" else _node(one) for one in named.split(",")], ports
        )
    if not hosts and not ports:
        return ()
    return _paired(
        [_node(one) for one in hosts.split(",")] if hosts else [Node("localhost", 0)], ports
    )


def _node(text: str) -> Node:
    host = unquoted(text.partition(":")[0])
    if host.startswith("/"):
        _, _, port = text.partition(":")
        return Node(host, port_of(port) if port else 0)
    return node_of(text, 0, _EXAMPLE)


def _paired(nodes: list[Node], ports: tuple[int, ...]) -> tuple[Node, ...]:
    """Each host with its port: its own, the one at its place, the only one, or 5432."""
    if len(ports) not in {0, 1, len(nodes)}:
        raise Wrong(f"port: {len(ports)} ports for {len(nodes)} hosts")
    given = ports * len(nodes) if len(ports) == 1 else ports or (PORT,) * len(nodes)
    found = [Node(node.host, node.port or port) for node, port in zip(nodes, given, strict=True)]
    return tuple(dict.fromkeys(found))


def _login(login: Login, options: Options) -> Login:
    user = _once("user", login.username, options)
    return Login(user, _once("password", login.password, options))


def _once(name: str, before: str | None, options: Options) -> str | None:
    """A part of the URL that may stand as option instead."""
    value = options.take(name, read_text, None)
    if value and before:
        raise Wrong(f"{name}: stands before the ? too; keep one of them")
    return value or before or None


def _tls(options: Options) -> Tls:
    tls = Tls(
        sslmode=options.take("sslmode", _read_mode, None),
        sslrootcert=options.take("sslrootcert", read_text, None),
        sslcert=options.take("sslcert", read_text, None),
        sslkey=options.take("sslkey", read_text, None),
    )
    if tls.sslkey and not tls.sslcert:
        raise Wrong("sslkey without sslcert; name the certificate too")
    return tls


# --- the options ----------------------------------------------------------------------------------


def read_schema(text: str) -> str:
    """A schema's name, such as needs no quotes in SQL."""
    if not _NAME.fullmatch(text) or text.startswith("pg_"):
        raise Wrong(
            f"expected 1-40 characters of a-z 0-9 _, no digit first and not pg_, found {cut(text)}"
        )
    return text


def read_prefix(text: str) -> str:
    """What names of tables begin with; may be empty."""
    if not _PREFIX.fullmatch(text):
        raise Wrong(f"expected up to 20 characters of a-z 0-9 _, no digit first, found {cut(text)}")
    return text


def _read_ports(text: str) -> tuple[int, ...]:
    return tuple(port_of(one) if one else PORT for one in text.split(","))


def _read_connections(text: str) -> int:
    return whole(text, 1, _MOST_CONNECTIONS)


def _read_mode(text: str) -> Mode:
    return _one_of(text, get_args(Mode))


def _read_target(text: str) -> Target:
    return _one_of(text, get_args(Target))


def _read_pooler(text: str) -> Pooler:
    return _one_of(text, get_args(Pooler))


def _one_of(text: str, words: tuple[T, ...]) -> T:
    for word in words:
        if text == word:
            return word
    raise Wrong(f"expected {', '.join(words)}; found {cut(text)}")
