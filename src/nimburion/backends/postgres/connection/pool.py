"""Links to the database: one that mends itself, and a few of them for many callers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, TypeVar

from nimburion.backends.postgres.connection.connect import Call, Seen, dial, hang_up
from nimburion.backends.postgres.errors import FAULTS, asks_to_repeat, breaks_connection, meaning_of
from nimburion.backends.postgres.url import Address
from nimburion.backends.server.url import Node
from nimburion.core.errors import BackendUnavailable, NimburionError, StoreReadOnly
from nimburion.core.timers import Deadlines

REPEATS = 20
"""How often a call that others were in the way of is tried."""
_PAUSES = (*(0.002 * 2 ** min(n, 6) for n in range(REPEATS - 1)), None)
"""Seconds behind each try; there is none behind the last."""
_COMMITTED = "read committed"

T = TypeVar("T")
W = TypeVar("W")
Rows = list[Any]
Parts = Callable[[], Iterator[Sequence[Any]]]
"""Begins to pack the arguments of one statement after another."""
Sleep = Callable[[float], Awaitable[None]]


class Link:
    """One connection that is made when it is needed, and anew after it broke.

    A call is one statement and one transaction, at READ COMMITTED whatever the server's default.
    It is sent once: what the server answers with `repeat` (a deadlock) is sent again, as nothing
    was written; when the answer is lost, `BackendUnavailable` says `unknown`.

    Statements are prepared once a connection. Where something like PgBouncer lends us a connection
    for a transaction, each call brings its statement along instead, in the same trip. One call at
    a time; others wait in turn.
    """

    def __init__(self, address: Address, sleep: Sleep, settings: Sequence[str] = ()) -> None:
        self.address: Address = address
        self._where = address.describe()
        self._sleep = sleep
        self._settings = settings
        """What a connection of our own is set to. Where connections are lent, who calls sets it."""
        self._call: Call | None = None
        self._statements: dict[str, Any] = {}
        self._numbers = count()
        """For the names of statements. Not their count: a call that failed after the server had
        parsed its statement leaves a name behind."""
        self._turn = asyncio.Lock()
        self._deadlines = Deadlines()
        self._last: Node | None = None

    @property
    def seen(self) -> Seen:
        """What the last connection said of its server. Connect first."""
        assert self._call is not None, "not connected yet"
        return self._call.seen

    @property
    def driver(self) -> Any:  # noqa: ANN401 - the driver's own connection
        """The driver's own connection, for what is not a call: LISTEN, scripts."""
        assert self._call is not None, "not connected yet"
        return self._call.driver

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as anybody knows."""
        return self._call is not None and not self._call.driver.is_closed()

    async def connect(self) -> None:
        """Connect, unless it is."""
        async with self._turn:
            await self._connected()

    async def rows(self, statement: str, *arguments: Any, extra: float = 0.0) -> Rows:
        """Run one statement; its rows. A large one may take `extra` seconds above the timeout.

        Raises:
            BackendUnavailable: with what may be concluded.
            BackendError: what else the server refuses, as `faults` says it.
        """
        within = self.address.timeout + extra
        return await self._tried(within, self._alone, statement, arguments)

    async def agreed(self, statement: str, parts: Parts, *, extra: float = 0.0) -> bool:
        """Run a statement that answers yes or no with each of these arguments, all in one
        transaction; no: one answered so, and nothing was written. Each is packed while the server
        is at the one before. What packing raises, and the errors of `rows`: nothing was written.
        """
        within = self.address.timeout + extra
        return await self._tried(within, self._in_turn, statement, parts)

    async def value(self, statement: str, *arguments: Any) -> Any:  # noqa: ANN401 - values of SQL
        """Run one statement; the first value of its first row."""
        return (await self.rows(statement, *arguments))[0][0]

    async def close(self) -> None:
        """Hang up."""
        call, self._call = self._call, None
        self._deadlines.stop()
        self._statements.clear()
        if call is None or call.driver.is_closed():
            return
        try:
            async with asyncio.timeout(1):
                await call.driver.close()
        except (*FAULTS, TimeoutError):
            hang_up(call.driver)

    async def pause(self, seconds: float) -> None:
        """Let so much time pass."""
        await self._sleep(seconds)

    def drop(self) -> None:
        """Hang up at once; the next call connects anew."""
        if self._call is not None:
            hang_up(self._call.driver)

    # --- steps ----------------------------------------------------------------------------------

    async def _tried(
        self, within: float, ask: Callable[[Call, str, W], Awaitable[T]], statement: str, what: W
    ) -> T:
        """Ask, and again where others were in the way."""
        async with self._turn:
            for pause in _PAUSES:
                try:
                    return await self._once(within, ask, statement, what)
                except FAULTS as error:
                    self._check(error)
                    if pause is None or not asks_to_repeat(error):
                        raise meaning_of(error, self._where, sent=True) from error
                await self._sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _once(
        self, within: float, ask: Callable[[Call, str, W], Awaitable[T]], statement: str, what: W
    ) -> T:
        call = await self._connected()
        try:
            with self._deadlines.within(within):
                return await ask(call, statement, what)
        except (TimeoutError, asyncio.CancelledError):
            hang_up(call.driver)  # its answer would be taken for that of the next call
            raise

    async def _alone(self, call: Call, statement: str, arguments: Sequence[Any]) -> Rows:
        if call.seen.pooled and call.seen.isolation != _COMMITTED:
            async with call.driver.transaction(isolation="read_committed"):
                return await self._fetch(call, statement, arguments)
        return await self._fetch(call, statement, arguments)

    async def _in_turn(self, call: Call, statement: str, begin: Parts) -> bool:
        parts = begin()
        transaction = call.driver.transaction(isolation="read_committed")
        begun = await _sent(transaction.start())
        try:
            try:
                first = next(parts)
            finally:
                await begun
            agreed = await self._each(call, statement, first, parts)
        except (TimeoutError, asyncio.CancelledError):
            raise  # the connection is given up
        except BaseException:
            with suppress(*FAULTS):
                await transaction.rollback()
            raise
        await (transaction.commit() if agreed else transaction.rollback())
        return agreed

    async def _each(
        self, call: Call, statement: str, first: Sequence[Any], parts: Iterator[Sequence[Any]]
    ) -> bool:
        arguments: Sequence[Any] | None = first
        while arguments is not None:
            answer = await _sent(self._fetch(call, statement, arguments))
            try:
                arguments = next(parts, None)
            finally:
                ((agreed,),) = await answer
            if not agreed:
                return False
        return True

    async def _fetch(self, call: Call, statement: str, arguments: Sequence[Any]) -> Rows:
        prepared = self._statements.get(statement)
        if prepared is None:
            name = "" if call.seen.pooled else f"nimburion_{next(self._numbers)}"
            prepared = await call.driver.prepare(statement, name=name)
            self._statements[statement] = prepared
        rows: Rows = await prepared.fetch(*arguments)
        return rows

    async def _connected(self) -> Call:
        if self._call is None or self._call.driver.is_closed():
            self._statements.clear()
            call = await reach(self.address, first=self._last)
            try:
                await self._settle_in(call)
            except BaseException:  # also when cancelled: it is not set as the calls rely on
                hang_up(call.driver)
                raise
            self._call, self._last = call, call.node
        return self._call

    async def _settle_in(self, call: Call) -> None:
        """Set what a connection of our own may keep."""
        settings = list(self._settings)
        if call.seen.isolation != _COMMITTED:
            settings.append(f"default_transaction_isolation = '{_COMMITTED}'")
        if call.seen.pooled or not settings:
            return
        try:
            async with asyncio.timeout(self.address.timeout):
                await call.driver.execute("; ".join(f"SET {one}" for one in settings))
        except FAULTS as error:
            raise meaning_of(error, self._where, sent=False) from error

    def _check(self, error: Exception) -> None:
        """Give the connection up where it is of no use any more. No call leaves a transaction open:
        one that is open now could not be rolled back."""
        if breaks_connection(error) or (self.is_open and self.driver.is_in_transaction()):
            self.drop()


async def _sent(asking: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """What answers a question that is on its way. Nobody may be there to hear of its failure."""
    answer = asyncio.ensure_future(asking)
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.sleep(0)
    return answer


async def reach(address: Address, *, first: Node | None = None) -> Call:
    """Connect to the first server that will do, beginning with `first`.

    Raises:
        BackendUnavailable: none of them; nothing was written.
        ConfigurationError: one refuses us in a way that waiting does not mend.
    """
    nodes: list[Node | None] = sorted(address.nodes, key=lambda node: node != first) or [None]
    problems: list[NimburionError] = []
    for node in nodes:
        try:
            return await dial(address, node)
        except (BackendUnavailable, StoreReadOnly) as problem:
            problems.append(problem)
    if len(problems) == 1:
        raise problems[0]
    told = "; ".join(str(one).removeprefix(f"{address.describe()}: ") for one in problems)
    raise BackendUnavailable(f"{address.describe()}: {told}", outcome="not applied") from problems[
        -1
    ]


class Links:
    """A few links for many callers, each made when all others are busy."""

    def __init__(self, address: Address, sleep: Sleep) -> None:
        self._address = address
        self._sleep = sleep
        self._idle: list[Link] = []
        self._all: list[Link] = []
        self._waiting: deque[asyncio.Future[Link]] = deque()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Link]:
        """A link for as long as the block lasts; the one that was used last, if any is idle."""
        link = await self._borrowed()
        try:
            yield link
        finally:
            self._give_back(link)

    async def rows(self, statement: str, *arguments: Any, extra: float = 0.0) -> Rows:
        """As `Link.rows`, on any of them."""
        link = await self._borrowed()
        try:
            return await link.rows(statement, *arguments, extra=extra)
        finally:
            self._give_back(link)

    async def agreed(self, statement: str, parts: Parts, *, extra: float = 0.0) -> bool:
        """As `Link.agreed`, on any of them."""
        async with self.one() as link:
            return await link.agreed(statement, parts, extra=extra)

    async def value(self, statement: str, *arguments: Any) -> Any:  # noqa: ANN401 - values of SQL
        """As `Link.value`, on any of them."""
        async with self.one() as link:
            return await link.value(statement, *arguments)

    async def close(self) -> None:
        """Hang up, all of them."""
        for link in self._all:
            await link.close()

    async def _borrowed(self) -> Link:
        if self._idle:
            return self._idle.pop()
        if len(self._all) < self._address.connections:
            self._all.append(link := Link(self._address, self._sleep))
            return link
        waiter: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # it was given one just before
                self._give_back(waiter.result())
            raise

    def _give_back(self, link: Link) -> None:
        """Hand it to who has waited longest."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(link)
                return
        self._idle.append(link)
