"""What stands behind the question mark of a URL: each option read once, in its own type."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import AddressValueError, IPv6Address
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import unquote

import msgspec

from nimburion.core.errors import ConfigurationError
from nimburion.core.redaction import redact_option_name

T = TypeVar("T")

_LONGEST_WAIT = 3600.0


class Wrong(Exception):
    """What is wrong with the URL, without its secrets."""


class Options:
    """The options of one URL.

    `elsewhere` says of options that other kinds of URL have which kinds those are.
    """

    __slots__ = ("_elsewhere", "_left", "_taken")

    def __init__(
        self, pairs: Mapping[str, str], elsewhere: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._elsewhere = elsewhere
        self._left: dict[str, str] = dict(pairs)
        self._taken: list[str] = []

    def take(self, name: str, read: Callable[[str], T], default: T) -> T:
        """The value of an option that is known here."""
        self._taken.append(name)
        if name not in self._left:
            return default
        try:
            return read(self._left.pop(name))
        except Wrong as wrong:
            raise Wrong(f"{name}: {wrong}") from None

    def refuse_others(self) -> None:
        """Raise for an option that nobody took."""
        for name in self._left:
            near = difflib.get_close_matches(name, self._taken, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            if name in self._elsewhere:
                hint = f"that is for {self._elsewhere[name]}. "
            shown = cut(redact_option_name(name))
            raise Wrong(f"no option {shown} here; {hint}Known: {', '.join(self._taken)}")


def pairs_of(query: str) -> dict[str, str]:
    """`name=value&name=value` as a map."""
    pairs: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, mark, value = pair.partition("=")
        if not mark or not name:
            raise Wrong("behind ? is expected name=value, and & before the next one")
        if name in pairs:
            raise Wrong(f"option {cut(redact_option_name(name))} stands there twice")
        pairs[name] = unquoted(value)
    return pairs


def given_of(**values: object) -> Options:
    """What code gives instead of a URL's options; None: not given."""
    return Options({name: str(value) for name, value in values.items() if value is not None})


def read_flag(text: str) -> bool:
    """True or false."""
    if text.lower() not in {"true", "false"}:
        raise Wrong(f"expected true or false, found {cut(text)}")
    return text.lower() == "true"


def read_seconds(text: str) -> float:
    """A time that can be waited."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_WAIT:
        raise Wrong(f"expected seconds, above 0 and at most {_LONGEST_WAIT:g}, found {cut(text)}")
    return seconds


def read_text(text: str) -> str:
    """Any text but an empty one; it may be a secret and is not shown."""
    if not text or "\0" in text:
        raise Wrong("expected a text")
    return text


def whole(text: str, least: int, most: int) -> int:
    """A whole number within bounds."""
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    if not least <= number <= most:
        raise Wrong(f"expected a whole number from {least} to {most}, found {cut(text)}")
    return number


def unquoted(text: str) -> str:
    """The text without its percent signs."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Wrong("what a %XX stands for is not UTF-8") from None


def cut(text: str) -> str:
    """A text as messages show it."""
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")


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
