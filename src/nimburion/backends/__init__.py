"""The backends of the contract `nimburion.core.backend`, and `open_backend`, which finds one by
URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from nimburion.core.backend import Backend
from nimburion.core.errors import ConfigurationError
from nimburion.core.text.redaction import redact_url
from nimburion.core.text.suggestions import describe_unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints
    from types import ModuleType

__all__ = ["open_backend"]

ENTRY_POINT_GROUP = "nimburion.backends"
"""The entry point group of third-party backends.

The name of an entry point is the URL scheme. Its object has `from_url(url, **options)`.
"""

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
"""The built-in backends: the name that `jobs.backend` takes, and the schemes of its URLs.

This is the only list of them; configuration and command line read it.
"""

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
"""The class of each scheme, as `module:class`."""

Factory = Callable[..., Backend]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


def open_backend(url: str, **options: object) -> Backend:
    """Return the backend of a URL; it is not open yet.

    The URL is one of `sqlite:///jobs.db`, `redis://localhost:6379/0`, `postgresql://localhost/app`,
    `memory://`. `sqlite:///jobs.db` is relative to the working directory, `sqlite:////srv/jobs.db`
    is absolute. `options` are the keyword arguments of the backend's class.

    Raises:
        ConfigurationError: the scheme is unknown, the backend does not take the URL or an option,
            or its package is not installed.

    >>> open_backend("sqlite:///jobs.db").capabilities.durable
    True
    """
    scheme = parse_scheme(url)
    factory = find_factory(scheme)
    _check_options(scheme, factory, options)
    try:
        return factory(url, **options)
    except TypeError as error:
        raise ConfigurationError(f"backend {scheme!r}: {error}") from error


def _check_options(scheme: str, factory: Factory, options: dict[str, object]) -> None:
    """Raise `ConfigurationError` for an option that a built-in backend does not take."""
    kind = getattr(factory, "__self__", None)
    if not options or scheme not in SCHEMES or kind is None:
        return
    from inspect import signature  # only with options; most calls have none

    parameters = signature(kind).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = describe_unknown("option", options, known)
    if unknown is not None:
        raise ConfigurationError(f"backend {scheme!r}: {unknown}")


def parse_scheme(url: str) -> str:
    """Return the text before `://`, in lower case.

    Raises:
        ConfigurationError: the text is not a URL.
    """
    scheme, found, _ = url.partition("://")
    if not found or not _SCHEME.fullmatch(scheme):
        raise ConfigurationError(
            f"{redact_url(url)!r} is not the URL of a backend; write one like sqlite:///jobs.db or "
            "memory://"
        )
    return scheme.lower()


def find_factory(scheme: str) -> Factory:
    """Return the function that makes a backend from a URL of this scheme.

    Raises:
        ConfigurationError: no backend has this scheme, or its package is not installed.
    """
    if scheme in SCHEMES:
        module, _, name = SCHEMES[scheme].partition(":")
        return cast("Factory", getattr(import_backend_module(module), name).from_url)
    for entry in list_entry_points():
        if entry.name == scheme:
            return cast("Factory", entry.load().from_url)
    raise ConfigurationError(explain_unknown_scheme(scheme))


def import_backend_module(module: str) -> ModuleType:
    """Import the module of a built-in backend.

    Raises:
        ConfigurationError: the driver of the backend is an extra that is not installed.
    """
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
    """Return the entry points of third-party backends."""
    from importlib import metadata  # takes 12 ms; built-in backends skip it

    return metadata.entry_points(group=ENTRY_POINT_GROUP)


def explain_unknown_scheme(scheme: str) -> str:
    """Return a message that there is no such backend, with the nearest known schemes."""
    import difflib  # only a wrong URL needs it

    known = sorted({*SCHEMES, *(entry.name for entry in list_entry_points())})
    near = difflib.get_close_matches(scheme, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"no backend {scheme!r}; {hint}Known here: {', '.join(known)}. A backend of another "
        "package "
        f"must be installed with it (entry point group {ENTRY_POINT_GROUP!r})"
    )
