"""What a worker process sends its supervisor while the supervisor does not read."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from nimburion.cli.supervisor.messages import Notification, ToSupervisor, decode_for_supervisor
from nimburion.cli.supervisor.supervisor_channel import SupervisorChannel
from nimburion.core.frames import FrameSplitter
from tests.waiting import DEADLINE

LARGE = Notification("large", "x" * 8_000_000)
"""A message that no buffer of a socket can hold."""
SMALL, LAST = Notification("small", ""), Notification("last", "")


class Peer:
    """The socket of the supervisor. It reads when it is told to."""

    def __init__(self, own: socket.socket) -> None:
        own.settimeout(DEADLINE)
        self._socket = own
        self._splitter = FrameSplitter()

    def read_byte(self) -> None:
        """Wait for the first byte."""
        assert not self._splitter.feed(self._socket.recv(1))

    def read(self) -> list[ToSupervisor]:
        """Wait for bytes, and return the messages that are complete."""
        bodies = self._splitter.feed(self._socket.recv(1 << 20))
        return [decode_for_supervisor(body) for body in bodies]

    def read_until_last(self) -> list[ToSupervisor]:
        """Return all messages up to the one that a test sends last."""
        found: list[ToSupervisor] = []
        while LAST not in found:
            found += self.read()
        return found


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    own, other = socket.socketpair()
    with own, other:
        yield own, other


@pytest.fixture
def peer(sockets: tuple[socket.socket, socket.socket]) -> Peer:
    return Peer(sockets[0])


@pytest.fixture
def channel(sockets: tuple[socket.socket, socket.socket]) -> Iterator[SupervisorChannel]:
    channel = SupervisorChannel(sockets[1].detach())
    yield channel
    channel._socket.close()


def start(function: Callable[[ToSupervisor], None], message: ToSupervisor) -> threading.Thread:
    thread = threading.Thread(target=function, args=(message,), daemon=True)
    thread.start()
    return thread


def check_returns(function: Callable[[ToSupervisor], None], message: ToSupervisor) -> None:
    """Call a function on a thread. Fail if it blocks."""
    thread = start(function, message)
    thread.join(DEADLINE)
    assert not thread.is_alive(), "it blocks"


def test_a_part_that_does_not_fit_is_sent_before_the_next_message(
    channel: SupervisorChannel, peer: Peer
) -> None:
    check_returns(channel.send_or_drop, LARGE)
    check_returns(channel.send_or_drop, SMALL)
    sending = start(channel.send, LAST)
    assert peer.read_until_last() == [LARGE, LAST], "the small one is dropped"
    sending.join(DEADLINE)


def test_each_dropped_message_sends_more_of_the_rest(
    channel: SupervisorChannel, peer: Peer
) -> None:
    check_returns(channel.send_or_drop, LARGE)
    found: list[ToSupervisor] = []
    while LAST not in found:
        found += peer.read()
        check_returns(channel.send_or_drop, LAST)
    assert found == [LARGE, LAST]


def test_a_message_is_dropped_while_another_thread_sends(
    channel: SupervisorChannel, peer: Peer
) -> None:
    sending = start(channel.send, LARGE)
    peer.read_byte()
    check_returns(channel.send_or_drop, SMALL)
    last = start(channel.send, LAST)
    assert peer.read_until_last() == [LARGE, LAST]
    sending.join(DEADLINE)
    last.join(DEADLINE)
