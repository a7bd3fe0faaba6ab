"""The static files of the dashboard, read once and named by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import msgspec

CONTENT_TYPES = MappingProxyType(
    {
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
    }
)


class Asset(msgspec.Struct, frozen=True):
    """One static file."""

    content: bytes
    content_type: str
    version: str
    """The first digits of the hash of the content; part of its URL, so that it can be cached."""


class VendoredFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of another project that the dashboard includes: an entry of `vendored.json`."""

    file: str
    name: str
    version: str
    source: str
    """The file in the package of this name and version."""
    sha256: str
    licence: str


@cache
def load_assets() -> Mapping[str, Asset]:
    """Return the static files by name."""
    found = {}
    for entry in files("nimburion.server.dashboard").joinpath("static").iterdir():
        content_type = CONTENT_TYPES.get(entry.name.rpartition(".")[2])
        if content_type is not None:
            content = entry.read_bytes()
            version = hashlib.sha256(content).hexdigest()[:12]
            found[entry.name] = Asset(content, content_type, version)
    return MappingProxyType(found)


@cache
def load_vendored() -> tuple[VendoredFile, ...]:
    """Return the list of the files of other projects."""
    text = files("nimburion.server.dashboard").joinpath("static", "vendored.json").read_bytes()
    return msgspec.json.decode(text, type=tuple[VendoredFile, ...])
