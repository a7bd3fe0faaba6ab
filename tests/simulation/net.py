"""The way between simulated processes and their backend: loses, delays, repeats."""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from random import Random
from typing import Any, cast

from nimburion.core.backend import Backend, Capabilities
from nimburion.core.errors import BackendError, BackendUnavailable
from nimburion.core.exchange import DELIVERY_OVERHEAD
from nimburion.core.records import RecordKind
from nimburion.core.settlement import Completed, Settlement
from tests.overridden import BackendWrapper
from tests.simulation.ledger import Ledger
from tests.simulation.loop import Process, SimulatedLoop, elapse

Answer = Any
"""What an operation of the contract answers."""

Arguments = Any

_TIMEOUT = 0.3
"""Virtual seconds until a caller gets a timeout."""


class Fault(enum.Enum):
    """What may happen to a call, and how often, in a thousand calls of bad weather."""

    REFUSED = "refused requests", 15
    """Refused at once, truthfully: nothing was applied."""
    REQUEST_LOST = "lost requests", 15
    REPLY_LOST = "lost replies", 40
    LATE = "late requests", 20
    """The caller has given up when it arrives and is applied."""
    REPEATED = "repeated requests", 25
    """Applied and answered, and the same request arrives again later."""
    SLOW = "slow answers", 30

    def __init__(self, title: str, weight: int) -> None:
        self.title = title
        self.weight = weight


class Net:
    """One for the whole simulation. `weather`: 0.0 nothing ever happens, 1.0 as `Fault` says."""

    def __init__(
        self, loop: SimulatedLoop, random: Random, ledger: Ledger, weather: float = 1.0
    ) -> None:
        self.loop = loop
        self.ledger = ledger
        self.weather = weather
        self.happened: Counter[str] = Counter()
        self.cut_off: dict[str, float] = {}
        """Until when a process does not reach the backend, by its name."""
        self.slow: dict[str, tuple[float, float]] = {}
        """How many bytes the request and the reply of an exchange of a process may have, before its
        time runs out."""
        self.poisoned: set[str] = set()
        """Sessions whose exchanges fail for ever, while their heartbeats succeed: the connection
        that they use for them is spoilt."""
        self.enqueues_under_way = 0
        """Requests to enqueue that have not arrived for the last time."""
        self._random = random

    async def carry(
        self, process: Process, name: str, args: Arguments, kwargs: Arguments
    ) -> Answer:
        """Make a call as the network lets it be made."""
        if self.loop.over:
            raise asyncio.CancelledError
        if self.cut_off.get(process.name, 0.0) > self.loop.time():
            self.happened["calls during outages"] += 1
            await elapse(self._random.uniform(0.0, _TIMEOUT))
            raise BackendUnavailable("no route", outcome="not applied")
        if name == "exchange" and args[0] in self.poisoned:
            self.happened["exchanges on poisoned connections"] += 1
            await self._latency()
            raise BackendError("prepared statement already exists")
        fault = self._draw()
        if fault is Fault.REFUSED:
            raise BackendUnavailable("refused", outcome="not applied")
        reply: asyncio.Future[Any] = self.loop.create_future()

        async def apply() -> Answer:
            return await self.ledger.apply(name, args, kwargs)

        if name == "exchange" and process.name in self.slow:
            self.loop.detach(self._crawl(self.slow[process.name], args[2], apply, reply))
            return await reply
        # The request is on its way: it arrives also when its sender is killed meanwhile.
        travel = self._travel(fault, apply, reply)
        self.loop.detach(self._count_under_way(travel) if name == "enqueue" else travel)
        return await reply

    async def _count_under_way(self, travel: Coroutine[Any, Any, None]) -> None:
        self.enqueues_under_way += 1
        await travel
        self.enqueues_under_way -= 1

    def _draw(self) -> Fault | None:
        point = self._random.random() * 1000.0
        for fault in Fault:
            point -= fault.weight * self.weather
            if point < 0:
                self.happened[fault.title] += 1
                return fault
        return None

    async def _travel(
        self, fault: Fault | None, apply: Callable[[], Awaitable[Any]], reply: asyncio.Future[Any]
    ) -> None:
        await self._latency()
        match fault:
            case Fault.REQUEST_LOST:
                await self._give_up(reply)
            case Fault.REPLY_LOST:
                await _outcome(apply)
                await self._give_up(reply)
            case Fault.LATE:
                await self._give_up(reply)
                await self._delay()
                await _outcome(apply)
            case Fault.REPEATED:
                await self._answer(reply, await _outcome(apply))
                await self._delay()
                await _outcome(apply)
            case Fault.SLOW:
                await elapse(self._random.uniform(0.0, 1.0))
                outcome = await _outcome(apply)
                await elapse(self._random.uniform(0.0, 1.0))
                await self._answer(reply, outcome)
            case _:
                await self._answer(reply, await _outcome(apply))

    async def _crawl(
        self,
        most: tuple[float, float],
        settlements: Sequence[Settlement],
        apply: Callable[[], Awaitable[Any]],
        reply: asyncio.Future[Any],
    ) -> None:
        """An exchange over a slow connection: what is too large never arrives, at any try; what is
        not takes its time."""
        await self._latency()
        request = sum(map(_size_of, settlements))
        if request > most[0]:
            self.happened["requests too large for their connection"] += 1
            await self._give_up(reply)
            return
        await elapse(_TIMEOUT * request / most[0] / 2)
        worked, what = await _outcome(apply)
        deliveries = what.deliveries if worked else []
        size = sum(len(delivery.payload) + DELIVERY_OVERHEAD for delivery in deliveries)
        if size > most[1]:
            self.happened["replies too large for their connection"] += 1
            await self._give_up(reply)
            return
        await elapse(_TIMEOUT * size / most[1] / 2)
        await self._answer(reply, (worked, what))

    async def _delay(self) -> None:
        """Hold a request up: for a moment, or until its session may have been rescued."""
        await elapse(self._random.uniform(0.0, self._random.choice((2.0, 20.0))))

    async def _latency(self) -> None:
        await elapse(self._random.uniform(0.0001, 0.005))

    async def _give_up(self, reply: asyncio.Future[Any]) -> None:
        await elapse(_TIMEOUT)
        if not reply.done():
            reply.set_exception(BackendUnavailable("no answer", outcome="unknown"))

    async def _answer(self, reply: asyncio.Future[Any], outcome: tuple[bool, Any]) -> None:
        await self._latency()
        worked, what = outcome
        if reply.done():
            return
        if worked:
            reply.set_result(what)
        else:
            reply.set_exception(what)


def _size_of(settlement: Settlement) -> int:
    """Without tracebacks, whose length depends on where the code lies."""
    result = settlement.result if isinstance(settlement, Completed) else None
    return 100 + len(result or b"")


async def _outcome(apply: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
    try:
        return True, await apply()
    except Exception as error:  # noqa: BLE001 - it belongs to the caller
        return False, error


class Wire(BackendWrapper):
    """A backend handle as one simulated process has it: the contract, through the net."""

    def __init__(self, net: Net, process: Process, handle: Backend) -> None:
        self._net = net
        self._process = process
        self._handle = handle

    @property
    def capabilities(self) -> Capabilities:
        return self._handle.capabilities

    def describe(self) -> str:
        return self._handle.describe()

    def new_handle(self) -> Backend:
        return wired(self._net, self._process, self._handle.new_handle())

    async def open(self) -> None:
        await self._handle.open()

    async def close(self) -> None:
        await self._handle.close()

    async def wait(self, queues: Collection[str], timeout: float) -> None:
        """A wake-up may be lost, and may come for nothing, as one does that comes late or twice."""
        luck = self._net._random.random()
        if luck < 0.1 * self._net.weather:
            self._net.happened["wake-ups for nothing"] += 1
            await elapse(timeout * luck * 10)
        elif luck < 0.2 * self._net.weather:
            self._net.happened["lost wake-ups"] += 1
            await elapse(timeout)
        else:
            await self._handle.consuming.wait(queues, timeout)

    async def wait_for_session(self, session_id: str) -> None:
        """As `wait`: the notification may be lost, and another may come for nothing."""
        luck = self._net._random.random()
        if luck < 0.1 * self._net.weather:
            await elapse(luck * 200)
            return
        if luck < 0.2 * self._net.weather:
            await self._handle.consuming.wait_for_session(session_id)
        await self._handle.consuming.wait_for_session(session_id)

    async def list_records(self, kind: RecordKind, **options: Any) -> Answer:
        """Requests for stacks are read past the net. A heartbeat does so when a notification
        brings no other news; the sessions of real backends get more of these here than in memory,
        and each call through the net changes the faults of all later ones.
        """
        if kind == "stack":
            return await self._handle.reads.list_records(kind, **options)
        return await self._net.carry(self._process, "list_records", (kind,), options)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Answer:
            return await self._net.carry(self._process, name, args, kwargs)

        return call


def wired(net: Net, process: Process, handle: Backend) -> Backend:
    """The handle, through the net."""
    return cast("Backend", Wire(net, process, handle))
