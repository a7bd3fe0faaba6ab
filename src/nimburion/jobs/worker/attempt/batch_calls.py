"""The batches of one worker: the jobs that they collect, and the calls that wait for a slot.

A job of a batch handler is a member: an attempt that takes no slot. A call takes one slot for all
its members.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from nimburion.jobs.worker.attempt.attempt import Attempt


class BatchCalls:
    """The members of all batch handlers of one worker.

    Args:
        sizes: the most jobs of one call, by the name of the job.
        on_ready: called when a call waits for a slot.
        on_end: called when a call has ended, so that its slot is free.
    """

    __slots__ = (
        "_fillable",
        "_may_fill",
        "_members",
        "_on_ready",
        "_requested",
        "_start_collected",
        "_uncalled",
        "end_call",
        "ready",
        "sizes",
    )

    def __init__(
        self, sizes: Mapping[str, int], on_ready: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        self.sizes: Mapping[str, int] = sizes
        self.end_call: Callable[[], None] = on_end
        """Frees the slot of a call that has ended."""
        self.ready: deque[Callable[[], bool]] = deque()
        """The calls that wait for a slot. Each returns False if it has no members any more."""
        self._on_ready = on_ready
        self._members: set[Attempt] = set()
        self._uncalled: dict[str, dict[Attempt, None]] = {name: {} for name in sizes}
        """The members whose call has not started, by name, in the order of their start."""
        self._may_fill = dict.fromkeys(sizes, False)
        """Whether the backend may hold more jobs of a name."""
        self._requested: set[str] = set()
        """The names in the request under way."""
        self._fillable: deque[str] = deque(sizes)
        """The names, the one to request next first."""
        self._start_collected: dict[str, Callable[[], None]] = {}

    def add(self, attempt: Attempt) -> None:
        """Add a member that is about to start."""
        self._members.add(attempt)
        self._uncalled[attempt.delivery.name][attempt] = None

    def remove(self, attempt: Attempt) -> bool:
        """Remove an attempt that has ended; return whether it was a member."""
        if attempt not in self._members:
            return False
        self._members.remove(attempt)
        self._uncalled[attempt.delivery.name].pop(attempt, None)
        return True

    @property
    def uncalled(self) -> Iterator[Attempt]:
        """The members whose call has not started."""
        for attempts in self._uncalled.values():
            yield from attempts

    # For the collectors

    def set_start(self, name: str, start_collected: Callable[[], None]) -> None:
        """Set the function that ends the collecting of a name, so that its call is ready."""
        self._start_collected[name] = start_collected

    def may_fill(self, name: str) -> bool:
        """Return whether a request for more members is under way, or comes next."""
        return self._may_fill[name] or name in self._requested

    def await_slot(self, start: Callable[[], bool]) -> None:
        """Call `start` as soon as a slot is free, perhaps now."""
        self.ready.append(start)
        self._on_ready()

    def begin_call(self, attempts: Iterable[Attempt]) -> None:
        """Note that the call of these members has started."""
        for attempt in attempts:
            self._uncalled[attempt.delivery.name].pop(attempt, None)

    # For the requests

    def find_full(self, free_slots: int) -> set[str]:
        """Return the names that hold enough jobs for calls in all free slots."""
        slots = max(0, free_slots)
        return {
            name for name, held in self._uncalled.items() if len(held) >= slots * self.sizes[name]
        }

    def count_room(self, name: str) -> int:
        """Return how many more jobs complete the last batch of a name; 0: it is whole."""
        return -len(self._uncalled[name]) % self.sizes[name]

    def find_fillable(self) -> str | None:
        """Return the name of a batch that has room, for which the backend may hold jobs."""
        return next(
            (name for name in self._fillable if self._may_fill[name] and self.count_room(name)),
            None,
        )

    def note_possible_work(self) -> None:
        """Note that there may be new jobs of each name."""
        self._may_fill = dict.fromkeys(self.sizes, True)

    def note_request(self, names: Iterable[str]) -> None:
        """Note that jobs of these names are requested now. Call `end_request` with the reply."""
        for name in names:
            if name in self.sizes:
                self._requested.add(name)
                self._may_fill[name] = False
                self._fillable.remove(name)
                self._fillable.append(name)

    def end_request(self) -> None:
        """Note that the request has its reply, or has failed."""
        self._requested.clear()

    def note_reply(self, waiting: Iterable[str]) -> None:
        """Note the names of which the backend holds more jobs.

        Call `start_exhausted` once the deliveries of the reply have started.
        """
        for name in waiting:
            if name in self.sizes:
                self._may_fill[name] = True

    def start_exhausted(self) -> None:
        """Start the batches that do not wait, and that no job of the backend can join now."""
        for name, start in self._start_collected.items():
            if not self.may_fill(name):
                start()

    def exhaust(self) -> None:
        """Let no more jobs join, and start the batches that do not wait."""
        self._may_fill = dict.fromkeys(self.sizes, False)
        self.start_exhausted()
