"""Choose the worker process that receives the notifications of the backend for all."""

from __future__ import annotations

import logging

from nimburion.cli.supervisor.messages import ChannelsServed, ChannelsWanted, Notification
from nimburion.cli.supervisor.worker_process import ListenerMessage, WorkerProcess

_log = logging.getLogger("nimburion.supervisor")


class ListenerChooser:
    """Chooses the process that listens, and passes its notifications to the others.

    The first process that wants notifications listens. If it ends, stops or does not answer, the
    next one does. In between, notifications are lost; the workers look for jobs once and then poll.
    """

    def __init__(self, answer_timeout: float) -> None:
        self._answer_timeout = answer_timeout
        """A process that has not answered a request for a report within these seconds does not
        listen for others."""
        self._processes: list[WorkerProcess] = []
        """Those that want notifications, in the order in which they asked for them."""
        self._listener: WorkerProcess | None = None
        self._requested: frozenset[str] | None = None
        """The channels on which the listener is to listen for others. None: ask it again."""
        self._served: frozenset[str] = frozenset()
        """The channels on which it listens."""
        self._informed: set[WorkerProcess] = set()
        """The processes that were told that another one listens on their channels."""

    def handle(self, process: WorkerProcess, message: ListenerMessage) -> None:
        """Handle a message of a worker. Ignore what a former listener says of its channels."""
        match message:
            case ChannelsWanted():
                self._note_wanted(process, frozenset(message.channels))
            case ChannelsServed() if process is self._listener:
                self._served = frozenset(message.channels)
                self._inform()
            case Notification() if process is self._listener:
                for other in self._processes:
                    if other is not process and message.channel in other.channels:
                        other.notify(message)

    def _note_wanted(self, process: WorkerProcess, channels: frozenset[str]) -> None:
        process.channels = channels
        self._informed.discard(process)
        if process is self._listener:  # its listener has other channels now, or is a new one
            self._requested = None
        if process in self._processes:
            self._processes.remove(process)
        if channels:
            self._processes.append(process)
        self.review()

    def review(self) -> None:
        """Choose another listener if the present one cannot listen, and say who wants what."""
        self._processes = [process for process in self._processes if not process.has_ended]
        self._informed.intersection_update(self._processes)
        fit = [process for process in self._processes if self._is_fit(process)]
        candidates = fit or self._processes
        if self._listener not in candidates:
            self._change(candidates[0] if candidates else None)
        self._request()
        self._inform()

    def _is_fit(self, process: WorkerProcess) -> bool:
        return not process.stopping.is_set() and process.lag < self._answer_timeout

    def _change(self, chosen: WorkerProcess | None) -> None:
        """Let another process listen; None: there is none."""
        former, self._listener = self._listener, None
        self._requested, self._served = None, frozenset()
        self._inform()
        if former in self._processes:
            former.listen(None)
        self._listener = chosen
        if chosen is not None:
            _log.debug("worker process %d listens for all", chosen.id)

    def _request(self) -> None:
        """Let the listener listen on the channels of the others."""
        listener = self._listener
        if listener is None:
            return
        others = (process.channels for process in self._processes if process is not listener)
        wanted: frozenset[str] = frozenset().union(*others)
        if wanted != self._requested:
            self._requested = wanted
            listener.listen(wanted)

    def _inform(self) -> None:
        """Tell each other process whether its notifications arrive, if that has changed."""
        for process in self._processes:
            is_served = process is not self._listener and process.channels <= self._served
            if is_served != (process in self._informed):
                self._informed ^= {process}
                process.note_listener(is_listening=is_served)
