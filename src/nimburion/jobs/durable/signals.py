"""Signals: typed messages to a durable run."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar, overload

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.runs import check_signal_name, check_signal_size
from nimburion.core.text.suggestions import lower_first
from nimburion.jobs.payloads.codec import UnreadablePayload
from nimburion.jobs.payloads.fields import check_type
from nimburion.jobs.payloads.json_values import dec_hook, enc_hook

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_ERRORS = (ValueError, TypeError, RecursionError, OverflowError, NotImplementedError)


class SignalReturning(Protocol[T_co]):
    """For type checkers: a signal whose value is a `T`."""

    name: str

    def decode(self, payload: bytes, /) -> T_co:
        """Return the value of JSON."""
        ...


class Signal(Generic[T]):
    """A kind of message that a durable run waits for: its name, and the type of its value.

    ```python
    confirmed = Signal("confirmed", Confirmed)


    @processor.job
    async def onboard(ctx: DurableContext, email: str) -> str:
        answer = await ctx.wait_for(confirmed, timeout="7d")  # Confirmed | None
        ...


    await processor.signal(job_id, confirmed, Confirmed("ann"))
    ```

    `DefinitionError` is raised for a type without a JSON form, and `InvalidJob` for a name that is
    empty, has a slash or a control character, or is longer than 200 characters.
    """

    __slots__ = ("_decoder", "name", "type")

    @overload
    def __init__(self, name: str, type: type[T]) -> None: ...
    @overload
    def __init__(self: Signal[Any], name: str, type: Any) -> None: ...  # noqa: ANN401
    def __init__(self, name: str, type: Any) -> None:  # noqa: A002 (a form of a type)
        check_signal_name(name)
        check_type(f"signal {name!r}", type)
        self.name: str = name
        """The name, by which a run finds the signals that it waits for."""
        self.type: Any = type
        """The type of the values."""
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(type, dec_hook=dec_hook)

    def encode(self, value: T) -> bytes:
        """Return a value as JSON. `InvalidJob` is raised if it has another type or is too large."""
        try:
            payload = msgspec.json.encode(value, enc_hook=enc_hook)
            self._decoder.decode(payload)
        except _ERRORS as error:
            raise InvalidJob(f"signal {self.name!r}: {lower_first(str(error))}") from error
        check_signal_size(self.name, payload)
        return payload

    def decode(self, payload: bytes, /) -> T:
        """Return the value of JSON. `UnreadablePayload` is raised if it does not fit the type."""
        try:
            return self._decoder.decode(payload)
        except _ERRORS as error:
            raise UnreadablePayload(
                f"the value of signal {self.name!r} does not fit {self.type!r}: "
                f"{lower_first(str(error))}"
            ) from error

    def __repr__(self) -> str:
        return f"<signal {self.name}>"
