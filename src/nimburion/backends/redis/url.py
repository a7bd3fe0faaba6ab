"""Where the servers are and how to speak with them: a URL, taken apart and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

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
    read_flag,
    read_seconds,
    read_text,
    scheme_of,
    unquoted,
    whole,
)
from nimburion.core.errors import ConfigurationError

NAMESPACE = "nimburion"
TIMEOUT = 5.0
PORT, SENTINEL_PORT = 6379, 26379

Kind = Literal["single", "unix", "sentinel", "cluster"]

_HIGHEST_DB = 1_000_000


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """How a TLS connection is made; the files are PEM."""

    ca: str | None = None
    """Whom to trust; None: whom the system trusts."""
    cert: str | None = None
    """Our own certificate, for servers that ask for one."""
    key: str | None = None
    """Its key; None: in the same file."""
    verify: Verify = "full"
    """`full`: the certificate must be signed by somebody trusted and made out to this host;
    `ca`: only signed; `none`: anything, which hides from nobody who can stand in between."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """What a URL of this store says."""

    kind: Kind
    nodes: tuple[Node, ...] = ()
    """The server; the Sentinels; some nodes of the cluster."""
    path: str = ""
    """The socket of kind `unix`."""
    service: str = ""
    """What the Sentinels call the master."""
    db: int = 0
    login: Login = Login()
    sentinel_login: Login = Login()
    tls: Tls | None = None
    namespace: str = NAMESPACE
    require_durable: bool = False
    """A server that would lose jobs is refused, not warned of."""
    durable_enqueue: bool = False
    """`enqueue` returns when the job is on the disk."""
    timeout: float = TIMEOUT
    """Seconds that connecting may take, and then each answer."""

    def __repr__(self) -> str:
        return f"Address({self.describe()})"

    def describe(self) -> str:
        """One line without secrets."""
        nodes = ", ".join(map(str, self.nodes))
        text = {
            "single": f"Redis {nodes}/{self.db}",
            "unix": f"Redis socket {self.path}, db {self.db}",
            "sentinel": f'Redis Sentinel service "{self.service}"/{self.db} via {nodes}',
            "cluster": f"Redis Cluster via {nodes}",
        }[self.kind]
        named = "" if self.namespace == NAMESPACE else f', namespace "{self.namespace}"'
        return f"{text}{' (TLS)' if self.tls else ''}{named}"

    def using(
        self,
        *,
        namespace: str | None = None,
        require_durable: bool | None = None,
        durable_enqueue: bool | None = None,
        timeout: float | None = None,
    ) -> Address:
        """The same, with what is not None in place of what the URL says.

        Raises:
            ConfigurationError: one of them is not what it can be.
        """
        given = given_of(
            namespace=namespace,
            require_durable=require_durable,
            durable_enqueue=durable_enqueue,
            timeout=timeout,
        )
        with checked(self.describe()):
            return _with_options(self, given)


class Scheme(msgspec.Struct, frozen=True):
    """What the word before `://` says."""

    kind: Kind
    example: str
    """What may stand behind it."""
    tls: bool = False


_SINGLE = Scheme("single", "localhost:6379/0")
_SENTINEL = Scheme("sentinel", "one:26379,two:26379/mymaster/0")
_CLUSTER = Scheme("cluster", "one:7000,two:7000")


def _secure(scheme: Scheme) -> Scheme:
    return msgspec.structs.replace(scheme, tls=True)


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "redis": _SINGLE,
        "rediss": _secure(_SINGLE),
        "valkey": _SINGLE,
        "valkeys": _secure(_SINGLE),
        "unix": Scheme("unix", "/run/redis/redis.sock"),
        "redis+sentinel": _SENTINEL,
        "rediss+sentinel": _secure(_SENTINEL),
        "redis+cluster": _CLUSTER,
        "rediss+cluster": _secure(_CLUSTER),
    }
)


def parse(url: str) -> Address:
    """The address that a URL names; `host:port` alone means `redis://host:port`.

    Forms: `redis://user:password@host:6379/0`, with TLS `rediss://` (`valkey://` and `valkeys://`
    are the same), `unix:///run/redis.sock?db=0`, `redis+sentinel://one:26379,two:26379/service/0`,
    `redis+cluster://one:7000,two:7000`, the last two also as `rediss+`. In user, password, path and
    options, what has a meaning in URLs is written as `%` and two digits.

    Options behind `?`: `namespace`, `require_durable`, `durable_enqueue`, `timeout` (seconds),
    `db`; with TLS `tls_ca`, `tls_cert`, `tls_key` (files), `tls_verify` (`full`, `ca` or `none`);
    with Sentinel `sentinel_username`, `sentinel_password`.

    Raises:
        ConfigurationError: what is wrong and what is allowed; no password is shown.

    >>> parse("redis+sentinel://a,b:26380/jobs/2?namespace=shop").describe()
    'Redis Sentinel service "jobs"/2 via a:26379, b:26380, namespace "shop"'
    """
    word, rest = scheme_of(url, "redis")
    if word not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise ConfigurationError(f"not the URL of a Redis store; these begin with {known}")
    with checked(f"{word}://…"):
        return _address(SCHEMES[word], rest)


def _address(scheme: Scheme, rest: str) -> Address:
    authority, path, query = parts_of(rest)
    login, _, hosts = authority.rpartition("@")
    service, db = _service_and_db(scheme, path)
    options = Options(pairs_of(query), ELSEWHERE)
    address = Address(
        kind=scheme.kind,
        nodes=_nodes(hosts, scheme),
        path=_socket(hosts, path) if scheme.kind == "unix" else "",
        service=service,
        db=_db(scheme, db, options),
        login=login_of(login),
        sentinel_login=_sentinel_login(scheme, options),
        tls=_tls(scheme, options),
    )
    whole_address = _with_options(address, options)
    options.refuse_others()
    return whole_address


def _with_options(address: Address, options: Options) -> Address:
    return msgspec.structs.replace(
        address,
        namespace=options.take("namespace", read_namespace, address.namespace),
        require_durable=options.take("require_durable", read_flag, address.require_durable),
        durable_enqueue=options.take("durable_enqueue", read_flag, address.durable_enqueue),
        timeout=options.take("timeout", read_seconds, address.timeout),
    )


# --- the parts ------------------------------------------------------------------------------------


def _nodes(hosts: str, scheme: Scheme) -> tuple[Node, ...]:
    if scheme.kind == "unix":
        return ()
    default = SENTINEL_PORT if scheme.kind == "sentinel" else PORT
    texts = [hosts] if scheme.kind == "single" else hosts.split(",")
    return tuple(dict.fromkeys(node_of(one, default, scheme.example) for one in texts))


def _socket(hosts: str, path: str) -> str:
    if hosts or len(path) < 2 or "\0" in unquoted(path):
        raise Wrong("expected the path of a socket from the root: unix:///run/redis/redis.sock")
    return unquoted(path)


def _service_and_db(scheme: Scheme, path: str) -> tuple[str, str]:
    """What stands between slashes: the service's name for Sentinel, then the db."""
    if scheme.kind == "unix":
        return "", ""
    first, _, rest = path.removeprefix("/").partition("/")
    if scheme.kind != "sentinel":
        first, rest = "", path.removeprefix("/")
    elif not first:
        raise Wrong(f"the name of the service is missing; expected like {scheme.example}")
    return unquoted(first), rest.removesuffix("/")


def _db(scheme: Scheme, text: str, options: Options) -> int:
    """From the path or the option, not both."""
    in_path = Options({"db": text} if text else {}).take("db", _read_db, None)
    if scheme.kind == "cluster":
        if in_path:
            raise Wrong(f"db {in_path}: a cluster has only db 0; leave it out")
        return 0
    db = options.take("db", _read_db, in_path)
    if in_path is not None and db != in_path:
        raise Wrong(f"db {db} as option, but {in_path} in the path; keep one of them")
    return db or 0


def _read_db(text: str) -> int:
    return whole(text, 0, _HIGHEST_DB)


def _sentinel_login(scheme: Scheme, options: Options) -> Login:
    if scheme.kind != "sentinel":
        return Login()
    username = options.take("sentinel_username", read_text, None)
    password = options.take("sentinel_password", read_text, None)
    return Login(username, password)


def _tls(scheme: Scheme, options: Options) -> Tls | None:
    if not scheme.tls:
        return None
    tls = Tls(
        ca=options.take("tls_ca", read_text, None),
        cert=options.take("tls_cert", read_text, None),
        key=options.take("tls_key", read_text, None),
        verify=options.take("tls_verify", read_verify, "full"),
    )
    if tls.key and not tls.cert:
        raise Wrong("tls_key without tls_cert; name the certificate too")
    if tls.ca and tls.verify == "none":
        raise Wrong("tls_ca, but tls_verify=none looks at no certificate; keep one of them")
    return tls


Verify = Literal["full", "ca", "none"]

_NAMESPACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "db": "single servers and Sentinel",
        **dict.fromkeys(("tls_ca", "tls_cert", "tls_key", "tls_verify"), "rediss://"),
        **dict.fromkeys(("sentinel_username", "sentinel_password"), "Sentinel"),
    }
)
"""Options that only some kinds of URL have."""


def read_namespace(text: str) -> str:
    """What becomes the hash tag of every key: no braces, no blanks."""
    if not _NAMESPACE.fullmatch(text):
        raise Wrong(f"expected 1-64 characters of A-Z a-z 0-9 _ . : -, found {cut(text)}")
    return text


def read_verify(text: str) -> Verify:
    """How closely a certificate is looked at."""
    for word in ("full", "ca", "none"):
        if text == word:
            return word
    raise Wrong(f"expected full, ca or none, found {cut(text)}")
