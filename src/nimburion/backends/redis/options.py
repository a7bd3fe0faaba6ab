"""What only the URLs of Redis have behind the question mark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from nimburion.backends.options import Wrong, cut

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
