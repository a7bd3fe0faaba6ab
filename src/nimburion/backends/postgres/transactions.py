"""Enqueueing and completing inside a transaction on a caller's connection.

Each is one statement that any driver can send: its arguments are texts, bytes and numbers. The
server rings with the commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import msgspec

from nimburion.backends.caller_connections.drivers import Row, shown
from nimburion.backends.caller_connections.registry import Door, door_of
from nimburion.backends.postgres import enqueue as enqueueing
from nimburion.backends.postgres.connection.pool import Links
from nimburion.backends.postgres.encoding import int4, seq_of
from nimburion.backends.postgres.errors import FAULTS, answered, meaning_of
from nimburion.backends.postgres.notifications import channel_of
from nimburion.backends.postgres.schema import named
from nimburion.backends.postgres.url import Address
from nimburion.backends.server.encoding import encode_json, pack_id
from nimburion.backends.server.errors import Meaning, not_applied, saying
from nimburion.core.errors import (
    BackendUnavailable,
    LeaseLost,
    NimburionError,
    NotJoinable,
    StoreReadOnly,
)
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.settlement import Completed
from nimburion.core.transactions import Lent, Transaction

_ENQUEUE = "SELECT letters, holders FROM nb.enqueue_in_1($1, $2, $3, $4, $5)"
_COMPLETE = "SELECT nb.complete_in_1($1, $2, $3, $4, $5, $6, $7, $8, $9)"
_PAYLOADS = 6
"""Where they stand among the arguments of an enqueue; before them ids and digests."""
_ANOTHER_STORE = "!"
_NEW_LANE = "?"
_LANES = "SELECT nb.new_lanes_1($1, $2, $3, $4)"
_ATS = 8
"""Where times stand among the arguments of an enqueue; its first three name the lanes."""
_DRIVERS = frozenset({"asyncpg", "psycopg", "psycopg2", "pg8000"})
_WRAPPERS = frozenset({*_DRIVERS, "sqlalchemy", "django"})

Now = Callable[[], int | None]


class Joint:
    """What an open store knows that transactions are joined with."""

    def __init__(self, address: Address, identity: str, lends: Links, asks: Links) -> None:
        self.address: Address = address
        self.identity: str = identity
        self.asks: Links = asks
        self.lends: Links = lends
        self.channel: str = channel_of(address)

    @property
    def where(self) -> str:
        """The store's name."""
        return self.address.describe()

    async def call(self, door: Door, statement: str, now: int | None, *arguments: object) -> Row:
        """Run one of the functions inside the caller's transaction; its row."""
        told = (now, self.identity, self.channel, *arguments)
        with translated(self.where):
            (row,) = await door.execute(named(statement, self.address), told)
        if row[0] == _ANOTHER_STORE:
            raise NotJoinable(
                f"the connection is to another database, or another nimburion schema in it, than "
                f"{self.where}: one commit cannot cover both"
            )
        return row


async def enqueue_in(
    joint: Joint, lent: Lent, jobs: Sequence[NewJob], now: int | None
) -> list[Enqueued]:
    """See `nimburion.core.backend.Joining`."""
    if not jobs:
        return []
    door = door_of(lent)
    await check_inner(joint, door)
    fields = enqueueing.arguments_of(jobs)
    lanes, late = fields[:3], fields[_ATS] is not None
    told = packed(fields)
    letters, holders = await joint.call(door, _ENQUEUE, now, *told)
    if letters == _NEW_LANE:
        await joint.asks.rows(named(_LANES, joint.address), *lanes, late)
        letters, holders = await joint.call(door, _ENQUEUE, now, *told)
    found = [one and bytes.fromhex(one) for one in msgspec.json.decode(holders or "[]")]
    return enqueueing.results_of(jobs, letters, found)


def packed(fields: list[Any]) -> tuple[str, bytes]:
    """The arguments of an enqueue as one text, and the payloads end to end."""
    fields, payloads = fields.copy(), fields[_PAYLOADS]
    begin, places = 1, []
    for payload in payloads:
        places.append((begin, len(payload)))
        begin += len(payload)
    fields[_PAYLOADS] = places
    for place in (_PAYLOADS - 2, _PAYLOADS - 1):
        fields[place] = [one.hex() for one in fields[place]]
    return encode_json(fields).decode(), b"".join(payloads)


async def check_inner(joint: Joint, door: Door) -> None:
    """Raise `NotJoinable` where the connection cannot be one to this store."""
    inner = await door.inner()
    if _DRIVERS.isdisjoint(kind.__module__.partition(".")[0] for kind in type(inner).__mro__):
        raise NotJoinable(f"{shown(inner)} is no connection to this store: {joint.where}")


async def complete_in(joint: Joint, door: Door, now: int | None, told: tuple[object, ...]) -> str:
    """Complete a job as the last thing before a commit; the letter of what became of it."""
    (letter,) = await joint.call(door, _COMPLETE, now, *told)
    return str(letter)


def transaction_of(joint: Joint, lent: Lent | None, now: Now) -> Transaction:
    """On the caller's connection, or on one of the store's own."""
    return OwnTransaction(joint, now) if lent is None else LentTransaction(joint, lent, now)


class LentTransaction:
    """On the caller's connection, which the caller answers for."""

    def __init__(self, joint: Joint, lent: Lent, now: Now) -> None:
        self._joint = joint
        self._lent = lent
        self._now = now
        self._door: Door | None = None

    async def begin(self) -> object:
        """See `nimburion.core.transactions.Transaction`."""
        door = door_of(self._lent)
        with translated(self._joint.where):
            await door.begin()
            try:
                await check_inner(self._joint, door)
            except BaseException:
                await door.rollback()
                raise
        self._door = door
        return self._lent.connection

    async def complete(self, session_id: str, completed: Completed) -> None:
        """See `nimburion.core.transactions.Transaction`."""
        assert self._door is not None, "not begun"
        lease = completed.lease
        told = (
            session_id, seq_of(lease.ref), pack_id(lease.job_id), int4(lease.token.fence),
            lease.token.nonce, completed.result,
        )  # fmt: skip
        if await complete_in(self._joint, self._door, self._now(), told) != "d":
            raise LeaseLost(lease.job_id)

    async def commit(self) -> None:
        """See `nimburion.core.transactions.Transaction`."""
        assert self._door is not None, "not begun"
        with translated(self._joint.where, at_commit=True):
            await self._door.commit()

    async def rollback(self) -> None:
        """See `nimburion.core.transactions.Transaction`."""
        door, self._door = self._door, None
        if door is not None:
            with translated(self._joint.where):
                await door.rollback()


class OwnTransaction:
    """On a connection of the store's own, from those that are kept for handlers."""

    def __init__(self, joint: Joint, now: Now) -> None:
        self._joint = joint
        self._now = now
        self._stack = AsyncExitStack()
        self._inside: LentTransaction | None = None
        self._drop: Callable[[], None] = _nothing

    async def begin(self) -> object:
        """See `nimburion.core.transactions.Transaction`."""
        async with AsyncExitStack() as stack:
            link = await stack.enter_async_context(self._joint.lends.one())
            await link.connect()
            self._drop = link.drop
            self._inside = LentTransaction(self._joint, Lent(link.driver), self._now)
            try:
                given = await self._inside.begin()
            except BaseException:
                link.drop()
                raise
            self._stack = stack.pop_all()
        return given

    async def complete(self, session_id: str, completed: Completed) -> None:
        """See `nimburion.core.transactions.Transaction`."""
        assert self._inside is not None, "not begun"
        await self._inside.complete(session_id, completed)

    async def commit(self) -> None:
        """See `nimburion.core.transactions.Transaction`."""
        assert self._inside is not None, "not begun"
        await self._ended(self._inside.commit)

    async def rollback(self) -> None:
        """See `nimburion.core.transactions.Transaction`."""
        if self._inside is not None:
            await self._ended(self._inside.rollback)

    async def _ended(self, how: Callable[[], Awaitable[None]]) -> None:
        try:
            await how()
        except BaseException:
            self._drop()  # who knows what state it is in: the server undoes what is open
            raise
        finally:
            self._inside = None
            await self._stack.aclose()


def _nothing() -> None:
    """There is no link yet."""


@contextmanager
def translated(where: str, *, at_commit: bool = False) -> Iterator[None]:
    """Raise the store's own error for what a caller's driver raises, which stays as its cause.

    Before the commit, nothing can have been applied, whatever was lost.
    """
    try:
        yield
    except NimburionError:
        raise
    except Exception as error:
        found = meaning_in_transaction(error, where, at_commit=at_commit)
        if found is None:
            raise
        raise found from error


def meaning_in_transaction(
    error: Exception, where: str, *, at_commit: bool
) -> NimburionError | None:
    """The error of the contract that says the same; None for what is no driver's."""
    code = code_in(error)
    if code:
        meaning = _MEANINGS.get(code)
        if meaning:
            return meaning(where, str(error))
        return answered(code, error, where, sent=at_commit)
    if isinstance(error, FAULTS):
        return meaning_of(error, where, sent=at_commit)
    if type(error).__module__.partition(".")[0] not in _WRAPPERS:
        return None
    outcome: Any = "unknown" if at_commit else "not applied"
    return BackendUnavailable(f"{where}: the caller's connection failed ({error})", outcome=outcome)


def code_in(error: BaseException | None) -> str:
    """SQLSTATE, wherever the caller's driver and what is around it put it."""
    while error is not None:
        for holder in (error, getattr(error, "orig", None)):
            code = getattr(holder, "sqlstate", None) or getattr(holder, "pgcode", None)
            if isinstance(code, str):
                return code
        error = error.__cause__
    return ""


_abroad = saying(
    NotJoinable,
    "the connection is to a database without the tables and functions of {where} ({said}): one "
    "commit cannot cover both. Open the store on the database that holds your tables",
)
_in_the_way = saying(
    not_applied,
    "{where}: other transactions were in the way ({said}); roll this one back, and run all of it "
    "again",
)
_MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        **dict.fromkeys(("42883", "42P01", "3F000"), _abroad),
        **dict.fromkeys(("40001", "40P01"), _in_the_way),
        "42501": saying(
            NotJoinable,
            "the role of this connection may not enqueue to {where} ({said}); grant it what a "
            "worker needs: nimburion migrate up --grant ROLE",
        ),
        "25P02": saying(
            NotJoinable,
            "{where}: this transaction has failed already ({said}); roll it back first",
        ),
        "25006": saying(
            StoreReadOnly,
            "{where}: this transaction takes no writes ({said}); nothing was written",
        ),
    }
)
"""Codes that mean something else inside a caller's transaction than in one of ours."""
