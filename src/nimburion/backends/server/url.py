"""Read the URL of a server: split it into parts, and parse its options by a table.

Each backend has a table of the options of its URLs, and settings that are made from the parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import AddressValueError, IPv6Address
from types import MappingProxyType
from typing import Any, ClassVar, Self
from urllib.parse import unquote

import msgspec

from nimburion.core.errors import ConfigurationError
from nimburion.core.text import shortening
from nimburion.core.text.redaction import redact_option_name
from nimburion.core.text.suggestions import find_nearest

OptionTable = Mapping[str, Callable[[str], Any]]
"""The parser of each option, by the name of the option."""

_MAX_SECONDS = 3600.0
_MAX_URL_LENGTH = 4096
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class InvalidUrl(Exception):
    """An error in a URL. The message contains none of its secrets."""


class Endpoint(msgspec.Struct, frozen=True):
    """The host and port of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Credentials(msgspec.Struct, frozen=True):
    """A user name and a password. Without a user name, the server uses its `default` user."""

    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return "Credentials(…)"


class UrlParts(msgspec.Struct, frozen=True):
    """The parts of a URL behind its scheme."""

    credentials: Credentials
    hosts: str
    """The text before the path, without user and password."""
    path: str
    """The path with its slash, not decoded."""
    options: dict[str, str]


class UrlSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that the URL of a server holds."""

    OPTIONS: ClassVar[OptionTable] = MappingProxyType({})
    """The options that set the field of the same name."""

    def __repr__(self) -> str:
        return f"Address({self.describe()})"

    def describe(self) -> str:
        """Return a one-line description without secrets."""
        raise NotImplementedError

    def replace(self, **options: object) -> Self:
        """Return a copy in which every option that is not None replaces the value of the URL.

        Raises:
            ConfigurationError: an option has an invalid value.
        """
        given = {name: str(value) for name, value in options.items() if value is not None}
        with report_invalid_url(self.describe()):
            return msgspec.structs.replace(self, **parse_options(given, self.OPTIONS))

    @classmethod
    def select_options(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that set the field of the same name."""
        return {name: value for name, value in values.items() if name in cls.OPTIONS}


@contextmanager
def report_invalid_url(what: str) -> Iterator[None]:
    """Turn an `InvalidUrl` of the block into a `ConfigurationError` that begins with `what`."""
    try:
        yield
    except InvalidUrl as wrong:
        raise ConfigurationError(f"{what}: {wrong}") from None


def split_scheme(url: str, default: str) -> tuple[str, str]:
    """Return the scheme before `://`, or `default` if there is none, and the rest of the URL."""
    word, found, rest = url.partition("://")
    return (word.lower(), rest) if found else (default, url)


def split_url(rest: str) -> UrlParts:
    """Split what follows the scheme.

    Raises:
        InvalidUrl: an unescaped character makes the end of the password ambiguous, or the URL is
            otherwise malformed.
    """
    if len(rest) > _MAX_URL_LENGTH:
        raise InvalidUrl(f"longer than {_MAX_URL_LENGTH} characters")
    if not rest.isascii() or not rest.isprintable():
        raise InvalidUrl(
            "a URL may contain only printable ASCII; write others as %XX of their UTF-8"
        )
    if _BAD_ESCAPE.search(rest):
        raise InvalidUrl("a % must be followed by two hexadecimal digits; % itself is written %25")
    place, _, query = rest.partition("?")
    authority, slash, path = place.partition("/")
    if "#" in rest or "@" in path + query or authority.count("@") > 1:
        raise InvalidUrl(
            "inside user, password, path and options, write @ / ? # as %40 %2F %3F %23"
        )
    login, _, hosts = authority.rpartition("@")
    return UrlParts(_parse_credentials(login), hosts, slash + path, _split_query(query))


def _parse_credentials(text: str) -> Credentials:
    user, colon, password = text.partition(":")
    if colon and not password:
        raise InvalidUrl("the password is empty; without a password, leave out the colon")
    return Credentials(decode_percents(user) or None, decode_percents(password) or None)


def _split_query(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, mark, value = pair.partition("=")
        if not mark or not name:
            raise InvalidUrl("expected name=value after the ?, separated by &")
        if name in options:
            raise InvalidUrl(f"option {shorten(redact_option_name(name))} is repeated")
        options[name] = decode_percents(value)
    return options


def parse_options(
    options: Mapping[str, str],
    table: OptionTable,
    hints: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the parsed values. `hints` say what to do about options that the table lacks.

    Raises:
        InvalidUrl: a value is invalid, or an option is unknown.
    """
    values = {}
    for name, text in options.items():
        if name not in table:
            near = find_nearest(name, table)
            hint = hints.get(name) or (f"did you mean {near}? " if near else "")
            shown, known = shorten(redact_option_name(name)), ", ".join(table)
            raise InvalidUrl(f"no option {shown} here; {hint}Known: {known}")
        try:
            values[name] = table[name](text)
        except InvalidUrl as wrong:
            raise InvalidUrl(f"{name}: {wrong}") from None
    return values


# --- parsers of options and hosts -----------------------------------------------------------------


def make_choice(*choices: str) -> Callable[[str], Any]:
    """Return the parser of an option that has one of these values."""

    def parse(text: str) -> str:
        if text not in choices:
            *others, last = choices
            raise InvalidUrl(f"expected {', '.join(others)} or {last}, found {shorten(text)}")
        return text

    return parse


def parse_flag(text: str) -> bool:
    """Return a boolean from `true` or `false`."""
    if text.lower() not in {"true", "false"}:
        raise InvalidUrl(f"expected true or false, found {shorten(text)}")
    return text.lower() == "true"


def parse_timeout(text: str) -> float:
    """Return a timeout in seconds: above 0 and at most one hour."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MAX_SECONDS:
        raise InvalidUrl(
            f"expected seconds, above 0 and at most {_MAX_SECONDS:g}, found {shorten(text)}"
        )
    return seconds


def parse_text(text: str) -> str:
    """Return a text that is not empty. It may be a secret, so errors do not show it."""
    if not text or "\0" in text:
        raise InvalidUrl("expected a text")
    return text


def parse_integer(text: str, minimum: int, maximum: int) -> int:
    """Return a whole number from `minimum` to `maximum`."""
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    if not minimum <= number <= maximum:
        raise InvalidUrl(
            f"expected a whole number from {minimum} to {maximum}, found {shorten(text)}"
        )
    return number


def decode_percents(text: str) -> str:
    """Return the text with its `%XX` escapes decoded."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidUrl("a %XX is not UTF-8") from None


def shorten(text: str) -> str:
    """Return a text as messages show it: ASCII, at most 60 characters."""
    return ascii(shortening.shorten(text))


def parse_endpoint(text: str, default_port: int, example: str) -> Endpoint:
    """Parse `host:port`, or a host alone."""
    match = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::(.*))?", text)
    host = decode_percents(match[1]) if match else ""
    if not host:
        raise InvalidUrl(f"a host is missing; expected something like {example}")
    if not _HOST.fullmatch(host) and not _is_ipv6(host):
        raise InvalidUrl("a host must be a name, an IPv4 address or an IPv6 address in []")
    port = default_port if match is None or match[2] is None else parse_port(match[2])
    return Endpoint(host.strip("[]").lower(), port)


def parse_port(text: str) -> int:
    """Return a port from 1 to 65535.

    The error shows the text only if it is a number: it may be a password in a URL without a host.
    """
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= number <= 65535:
        found = f", found {text}" if number else ""
        raise InvalidUrl(f"a port must be a whole number from 1 to 65535{found}")
    return number


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host.removeprefix("[").removesuffix("]"))
    except AddressValueError:
        return False
    return host.startswith("[") and host.endswith("]")
