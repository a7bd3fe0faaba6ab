"""The journal of a durable run: what its stored steps contain, as JSON.

Each entry has a kind and a key. Entries are read in the order of their numbers; an entry of the
same kind and key takes the place of an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast, get_args

import msgspec
from msgspec import Raw

from nimburion.core.job import AttemptError
from nimburion.core.runs import RecordedStep
from nimburion.jobs.payloads.codec import UnreadablePayload

NULL = Raw(b"null")


class StoredError(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception, so that a later attempt can raise it again."""

    type: str
    """The qualified name of its class."""
    module: str = ""
    message: str = ""
    args: Raw = Raw(b"[]")
    """Its arguments: a JSON list."""
    attributes: Raw = Raw(b"{}")
    """Its attributes: a JSON object."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind"):
    """What one step of the run stores."""

    key: str = ""


class StepEntry(Entry, frozen=True, tag="step"):
    """The function of a step has returned, or the handler has caught its error."""

    value: Raw = NULL
    error: StoredError | None = None
    arguments: str = ""
    """The digest of the arguments; empty if they have no JSON form."""


class RetryEntry(Entry, frozen=True, tag="retry"):
    """A step or an undo has failed, and is tried again `delay` seconds after this was stored."""

    tries: int = 1
    """How often it has failed."""
    delay: float = 0.0
    message: str = ""
    """The class and the text of the error."""


class TimerEntry(Entry, frozen=True, tag="timer"):
    """A sleep has begun. It ends `delay` seconds after this was stored."""

    delay: float = 0.0


class TimeoutEntry(Entry, frozen=True, tag="timeout"):
    """A wait for a signal, or for the first of several sources, has begun. It ends `delay` seconds
    after this was stored.
    """

    delay: float = 0.0


class SignalEntry(Entry, frozen=True, tag="signal"):
    """A wait for a signal, or for the first of several sources, has ended."""

    value: Raw = NULL
    """The value of the signal. Of several sources, it names the first: `{"signal": "paid"}`, or
    `{"job": "order-1.pack.0"}`.
    """
    timed_out: bool = False
    at: float | None = None
    """When the signal came that it takes; None: the wait ended when this was stored."""


class ChildrenEntry(Entry, frozen=True, tag="children"):
    """Child jobs are stored. Their ids are `FLOW.0` and so on."""

    flow: str = ""
    names: tuple[str, ...] = ()
    """The names of the jobs; one name if all have the same."""
    count: int = 1
    arguments: str = ""
    """The digest of the names and payloads."""
    detached: bool = False
    """Whether they are not cancelled with the run."""


class OutcomeEntry(Entry, frozen=True, tag="outcome"):
    """Child jobs have ended, and the run has their results."""

    values: tuple[Raw, ...] = ()
    error: StoredError | None = None
    """The error, which the handler has caught."""


class ChangedEntry(Entry, frozen=True, tag="changed"):
    """The run passed a call of `changed` that returned True."""


class ForgottenEntry(Entry, frozen=True, tag="forgotten"):
    """An entry does not count any more: its error has ended an attempt."""

    of: str = ""
    """The kind of the entry."""


class UndoEntry(Entry, frozen=True, tag="undo"):
    """The function of an undo has returned."""


class EndingEntry(Entry, frozen=True, tag="ending"):
    """The run ends, and undoes what it did. The handler does no new step any more."""

    error: AttemptError | None = None
    """The error that ended it; None: it was cancelled."""
    reason: str = ""
    """Why it became a dead letter, or why it was cancelled."""
    undos: tuple[str, ...] = ()
    """The keys of what is undone, in the order in which it was registered."""


class UndoneEntry(Entry, frozen=True, tag="undone"):
    """Everything is undone. Another attempt begins anew."""


class RestartEntry(Entry, frozen=True, tag="restart"):
    """The run begins anew. This entry is the first."""

    generation: int = 1
    """How often it began anew."""
    payload: Raw = NULL
    """The arguments; `null`: those of the job."""


class CleanupEntry(Entry, frozen=True, tag="cleanup"):
    """The content of `CLEANUP_STEP`: the end of the run needs a worker."""


AnyEntry = (
    StepEntry
    | RetryEntry
    | TimerEntry
    | TimeoutEntry
    | SignalEntry
    | ChildrenEntry
    | OutcomeEntry
    | ChangedEntry
    | ForgottenEntry
    | UndoEntry
    | EndingEntry
    | UndoneEntry
    | RestartEntry
    | CleanupEntry
)

OPERATIONS = (StepEntry, RetryEntry, TimerEntry, TimeoutEntry, SignalEntry, ChildrenEntry)
"""The entries of operations that a handler calls."""

_KINDS: dict[type[Any], str] = {
    kind: str(kind.__struct_config__.tag) for kind in get_args(AnyEntry)
}
_decoder: msgspec.json.Decoder[AnyEntry] = msgspec.json.Decoder(AnyEntry)

encode_entry: Callable[[AnyEntry], bytes] = msgspec.json.Encoder().encode
"""Returns the body of a step."""


def decode_entry(body: bytes) -> AnyEntry:
    """Return the content of a step. `UnreadablePayload` is raised if a newer version wrote it."""
    try:
        return _decoder.decode(body)
    except ValueError as error:
        raise UnreadablePayload(f"a step of the run cannot be read: {error}") from error


def get_kind(entry: AnyEntry) -> str:
    """Return the kind of an entry.

    >>> get_kind(TimerEntry("trial", 60.0))
    'timer'
    """
    return _KINDS[type(entry)]


class StoredEntry(msgspec.Struct, eq=False):
    """An entry, and when it was stored."""

    entry: AnyEntry
    at: float | None = None
    """In epoch seconds on the backend's clock; None: it is not stored yet."""
    is_passed: bool = False
    """Whether this attempt has done or repeated the operation that stored it."""


class Journal:
    """The entries of a run, by kind and key.

    `steps` are in the order of their numbers. `UnreadablePayload` is raised if one cannot be read.
    """

    def __init__(self, steps: Iterable[RecordedStep] | None = None) -> None:
        self._entries: dict[tuple[str, str], StoredEntry] = {}
        self.has_earlier: bool = False
        """Whether there may be entries of earlier attempts. Otherwise, `find_passed` finds none."""
        self.last_number: int = 0
        """The largest number of a step."""
        self.restart_number: int = 0
        """The number of the step with which the run began anew; 0 if it has not."""
        self.ending: EndingEntry | None = None
        """Why the run ends; None if it does not."""
        if steps is not None:
            self.read(steps)

    def read(self, steps: Iterable[RecordedStep]) -> None:
        """Add the entries of stored steps. See `Journal`."""
        self.has_earlier = True
        for step in steps:
            self.last_number = max(self.last_number, step.number)
            entry = decode_entry(step.body)
            if isinstance(entry, RestartEntry):
                self.restart_number = step.number
            self.add(StoredEntry(entry, step.at))

    def begin_anew(self) -> None:
        """Forget all entries. The next step is the first one of the run that begins anew."""
        self._entries.clear()
        self.ending = None
        self.restart_number = self.last_number + 1

    def add(self, stored: StoredEntry) -> None:
        """Add an entry."""
        entry = stored.entry
        kind = type(entry)
        if kind is ForgottenEntry:
            forgotten = cast("ForgottenEntry", entry)
            self._entries.pop((forgotten.of, forgotten.key), None)
            return
        self._entries[_KINDS[kind], entry.key] = stored
        if kind is EndingEntry:
            self.ending = cast("EndingEntry", entry)

    def find_passed(self, kind: type[AnyEntry], key: str) -> StoredEntry | None:
        """Return an entry whose operation this attempt repeats; None if there is none."""
        stored = self._entries.get((_KINDS[kind], key))
        if stored is not None:
            stored.is_passed = True
        return stored

    def find(self, kind: type[AnyEntry], key: str) -> StoredEntry | None:
        """Return an entry; None if there is none."""
        return self._entries.get((_KINDS[kind], key))

    def list_entries(self) -> list[AnyEntry]:
        """Return all entries that count."""
        return [stored.entry for stored in self._entries.values()]

    @property
    def has_more(self) -> bool:
        """Whether an earlier attempt did operations that this one has not repeated yet."""
        return any(
            not stored.is_passed and isinstance(stored.entry, OPERATIONS)
            for stored in self._entries.values()
        )

    @property
    def needs_cleanup(self) -> bool:
        """Whether `CLEANUP_STEP` is stored."""
        return self.find(CleanupEntry, "") is not None

    @property
    def restart(self) -> RestartEntry | None:
        """The last time that the run began anew."""
        stored = self.find(RestartEntry, "")
        return stored.entry if stored and isinstance(stored.entry, RestartEntry) else None

    @property
    def payload(self) -> bytes | None:
        """The arguments with which the run began anew; None: those of the job."""
        restart = self.restart
        payload = b"null" if restart is None else bytes(restart.payload)
        return None if payload == b"null" else payload

    @property
    def is_undone(self) -> bool:
        """Whether everything is undone."""
        return self.find(UndoneEntry, "") is not None
