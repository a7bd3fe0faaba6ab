"""The backends of one contract (`nimburion.core.backend`), and `open_backend`: one by its URL."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from nimburion.core.backend import Backend
from nimburion.core.errors import ConfigurationError
from nimburion.core.redaction import redact_url
from nimburion.core.suggestions import describe_unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints
    from types import ModuleType

__all__ = ["open_backend"]

ENTRY_POINT_GROUP = "nimburion.backends"
"""Third-party stores: an entry point of this group, named as the scheme, whose object has
`from_url(url, **options)`."""

FAMILIES = MappingProxyType(
    {
        "memory": ("memory",),
        "sqlite": ("sqlite",),
        "redis": (
            "redis",
            "rediss",
            "valkey",
            "valkeys",
            "unix",
            "redis+sentinel",
            "rediss+sentinel",
            "redis+cluster",
            "rediss+cluster",
        ),
        "postgres": ("postgresql", "postgres"),
    }
)
"""Our own backends by the name that `jobs.backend` takes, with the schemes of their URLs. This is
the only list of them; configuration and command line read it."""

_CLASSES = MappingProxyType(
    {
        "memory": "nimburion.backends.memory:MemoryBackend",
        "sqlite": "nimburion.backends.sqlite:SQLiteBackend",
        "redis": "nimburion.backends.redis:RedisBackend",
        "postgres": "nimburion.backends.postgres:PostgresBackend",
    }
)

SCHEMES = MappingProxyType(
    {scheme: _CLASSES[name] for name, schemes in FAMILIES.items() for scheme in schemes}
)
"""Where the class of a scheme is: `module:class`."""

Factory = Callable[..., Backend]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


def open_backend(url: str, **options: object) -> Backend:
    """A backend by its URL, not open yet: `sqlite:///jobs.db`, `redis://localhost:6379/0`,
    `postgresql://localhost/app`, `memory://`.

    `sqlite:///jobs.db` is relative to the working directory, `sqlite:////srv/jobs.db` absolute.
    `options` are the keyword arguments of the backend's class.

    Raises:
        ConfigurationError: no such scheme, a URL or an option that the backend does not take, or
        its
            package is not installed.

    >>> open_backend("sqlite:///jobs.db").capabilities.durable
    True
    """
    scheme = parse_scheme(url)
    factory = find_factory(scheme)
    _check_options(scheme, factory, options)
    try:
        return factory(url, **options)
    except TypeError as error:
        raise ConfigurationError(f"store {scheme!r}: {error}") from error


def _check_options(scheme: str, factory: Factory, options: dict[str, object]) -> None:
    """Raise `ConfigurationError` for an option that one of our own backends does not take."""
    kind = getattr(factory, "__self__", None)
    if not options or scheme not in SCHEMES or kind is None:
        return
    from inspect import signature  # only where there are options: most backends are opened without

    parameters = signature(kind).parameters.values()
    known = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    unknown = describe_unknown("option", options, known)
    if unknown is not None:
        raise ConfigurationError(f"store {scheme!r}: {unknown}")


def parse_scheme(url: str) -> str:
    """What stands before `://`, in lower case."""
    scheme, found, _ = url.partition("://")
    if not found or not _SCHEME.fullmatch(scheme):
        raise ConfigurationError(
            f"{redact_url(url)!r} is no URL of a backend; write one like sqlite:///jobs.db or "
            "memory://"
        )
    return scheme.lower()


def find_factory(scheme: str) -> Factory:
    """What makes a backend from a URL of this scheme."""
    if scheme in SCHEMES:
        module, _, name = SCHEMES[scheme].partition(":")
        return cast("Factory", getattr(import_backend_module(module), name).from_url)
    for entry in list_entry_points():
        if entry.name == scheme:
            return cast("Factory", entry.load().from_url)
    raise ConfigurationError(explain_unknown_scheme(scheme))


def import_backend_module(module: str) -> ModuleType:
    """One of our backends; its driver may be an extra that is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        package, extra = missing.name or "", module.rpartition(".")[2]
        if package.partition(".")[0] == "nimburion":
            raise
        raise ConfigurationError(
            f"this backend needs {package!r}, which is not installed; pip install "
            f"'nimburion[{extra}]'"
        ) from missing


def list_entry_points() -> EntryPoints:
    """The backends of other packages."""
    from importlib import metadata  # 12 ms that our own backends need not wait for

    return metadata.entry_points(group=ENTRY_POINT_GROUP)


def explain_unknown_scheme(scheme: str) -> str:
    """Say that there is no such backend, and what is nearest."""
    known = sorted({*SCHEMES, *(entry.name for entry in list_entry_points())})
    near = difflib.get_close_matches(scheme, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"no backend {scheme!r}; {hint}Known here: {', '.join(known)}. A backend of another "
        "package "
        f"must be installed with it (entry point group {ENTRY_POINT_GROUP!r})"
    )
