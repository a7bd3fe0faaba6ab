"""Encode ids, times and objects for backends with a server."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Generic, ParamSpec, TypeVar

import msgspec

from nimburion.core.errors import Unstorable
from nimburion.core.exchange import ReserveRequest

P = ParamSpec("P")
T = TypeVar("T")

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

encode_json: Callable[[object], bytes] = msgspec.json.Encoder().encode


class UnstorableTextGuard:
    """A decorator for functions that encode data to store.

    It raises `Unstorable` for text that has no UTF-8 form (a lone surrogate).
    """

    def __init__(self, server: str) -> None:
        self._server = server

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except UnicodeEncodeError as error:
                raise Unstorable(f"{self._server} cannot hold this: {error}") from error

        return checked


class LaneEncoder(Generic[T]):
    """Encodes the lanes of a worker's requests. The next request often has the same ones, of which
    there may be thousands. They are not encoded again.

    Args:
        encode: encodes the lanes of a request, with the options of their queues.
    """

    def __init__(self, encode: Callable[[ReserveRequest], T]) -> None:
        self._encode = encode
        self._last: tuple[ReserveRequest, T] | None = None

    def encode(self, request: ReserveRequest) -> T:
        """Return the encoded lanes. The caller must not change them."""
        last = self._last
        if last and last[0].lanes is request.lanes and last[0].queues is request.queues:
            return last[1]
        encoded = self._encode(request)
        self._last = request, encoded
        return encoded


def encode_id(job_id: str) -> bytes:
    """Return an id as the backend stores it. A UUID, the default form, takes 17 bytes instead of
    36.
    """
    if len(job_id) == 36 and _UUID.fullmatch(job_id):
        return b"\0" + bytes.fromhex(job_id.replace("-", ""))
    return job_id.encode()


def decode_id(encoded: bytes) -> str:
    """Return the text of a stored id."""
    if encoded[0]:
        return encoded.decode()
    text = encoded.hex()
    return f"{text[2:10]}-{text[10:14]}-{text[14:18]}-{text[18:22]}-{text[22:]}"


def encode_id_or_empty(job_id: str) -> bytes:
    """Return an id as the backend stores it, for a lookup.

    An id that cannot be stored becomes empty bytes, which match no job.
    """
    try:
        return encode_id(job_id)
    except UnicodeEncodeError:
        return b""
