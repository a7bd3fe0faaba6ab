"""The parts of a URL that every store of servers has: who asks, and which hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import AddressValueError, IPv6Address

import msgspec

from nimburion.backends.options import Wrong, unquoted
from nimburion.core.errors import ConfigurationError

_LONGEST = 4096
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Node(msgspec.Struct, frozen=True):
    """A server's host and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Login(msgspec.Struct, frozen=True):
    """Who asks. Without a user name the server takes the password for its `default` user."""

    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return "Login(…)"


@contextmanager
def checked(what: str) -> Iterator[None]:
    """Raise `ConfigurationError` for what is wrong with the URL or its options; `what` names it."""
    try:
        yield
    except Wrong as wrong:
        raise ConfigurationError(f"{what}: {wrong}") from None


def scheme_of(url: str, default: str) -> tuple[str, str]:
    """The word before `://`, or this one where there is none; and the rest."""
    word, found, rest = url.partition("://")
    return (word.lower(), rest) if found else (default, url)


def parts_of(rest: str) -> tuple[str, str, str]:
    """Authority, path with its slash, query. Refuses what would tear a password apart."""
    if len(rest) > _LONGEST:
        raise Wrong(f"longer than {_LONGEST} characters")
    if not rest.isascii() or not rest.isprintable():
        raise Wrong("only printable ASCII may stand in a URL; write others as %XX of their UTF-8")
    if _BAD_ESCAPE.search(rest):
        raise Wrong("a % must be followed by two hexadecimal digits; % itself is written %25")
    place, _, query = rest.partition("?")
    authority, slash, path = place.partition("/")
    if "#" in rest or "@" in path + query or authority.count("@") > 1:
        raise Wrong("inside user, password, path and options, write @ / ? # as %40 %2F %3F %23")
    return authority, slash + path, query


def login_of(text: str) -> Login:
    """`user:password` as it stands before the `@`."""
    user, colon, password = text.partition(":")
    if colon and not password:
        raise Wrong("an empty password; leave the colon out where there is none")
    return Login(unquoted(user) or None, unquoted(password) or None)


def node_of(text: str, default_port: int, example: str) -> Node:
    """`host:port`, or a host alone."""
    match = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::(.*))?", text)
    host = unquoted(match[1]) if match else ""
    if not host:
        raise Wrong(f"a host is missing; expected something like {example}")
    if not _HOST.fullmatch(host) and not _is_ipv6(host):
        raise Wrong("a host must be a name, an IPv4 address or an IPv6 address in []")
    port = default_port if match is None or match[2] is None else port_of(match[2])
    return Node(host.strip("[]").lower(), port)


def port_of(text: str) -> int:
    """Shown in the refusal only when it is a number: else it may be a password without a host."""
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= number <= 65535:
        found = f", found {text}" if number else ""
        raise Wrong(f"a port must be a whole number from 1 to 65535{found}")
    return number


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host.removeprefix("[").removesuffix("]"))
    except AddressValueError:
        return False
    return host.startswith("[") and host.endswith("]")
