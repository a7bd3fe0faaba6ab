"""Notifications without a server: the loop that listens, and the calls that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import pytest

from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.backends.postgres.notifications import PostgresNotifications
from nimburion.backends.postgres.url import parse_url
from nimburion.backends.server import notifications as module
from nimburion.backends.server.notifications import Notifications, ServerListener
from nimburion.core.listener import Listener, OnListening, OnNotification
from tests.waiting import DEADLINE, wait_until


class FakeListener(ServerListener):
    """Listens on a server that the test plays. Each entry of `failures` fails one connection."""

    def __init__(self, *failures: Exception) -> None:
        self.reports: asyncio.Queue[Collection[str]] = asyncio.Queue()
        super().__init__(self._report, lambda channel, text: None)
        self.failures = [*failures]
        self.report_failures: list[Exception] = []
        """Each fails one report."""
        self.changes: list[tuple[set[str], set[str]]] = []
        self.lose: Callable[[], None] = self._note_lost

    def _report(self, channels: Collection[str]) -> None:
        if self.report_failures:
            raise self.report_failures.pop(0)
        self.reports.put_nowait(channels)

    async def _connect(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def _subscribe(self, added: frozenset[str], removed: frozenset[str]) -> None:
        self.changes.append((set(added), set(removed)))

    async def _ping(self) -> None: ...

    async def _disconnect(self) -> None: ...

    async def wait_for_report(self) -> set[str]:
        """Return the channels of the next call of `on_listening`."""
        async with asyncio.timeout(DEADLINE):
            return set(await self.reports.get())


async def test_an_unexpected_error_does_not_end_the_listener() -> None:
    listener = FakeListener(KeyError("unexpected"), OSError("an outage"))
    listener.listen(["a"])
    assert await listener.wait_for_report() == {"a"}
    await listener.close()


async def test_a_failed_report_of_a_lost_connection_does_not_end_the_listener() -> None:
    listener = FakeListener()
    listener.listen(["a"])
    assert await listener.wait_for_report() == {"a"}
    listener.report_failures.append(KeyError("unexpected"))
    listener.lose()
    assert await listener.wait_for_report() == {"a"}
    assert not listener.report_failures
    await listener.close()


async def test_a_warning_is_logged_once_until_it_is_mended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = FakeListener(KeyError("x"), KeyError("x"), OSError("an outage"))
    listener.listen(["a"])
    await listener.wait_for_report()
    assert caplog.text.count("notifications are not received") == 1
    listener.failures.append(KeyError("x"))
    listener.lose()
    assert await listener.wait_for_report() == set()
    assert await listener.wait_for_report() == {"a"}
    assert caplog.text.count("notifications are not received") == 2
    await listener.close()


async def test_other_channels_are_subscribed_to_on_the_same_connection() -> None:
    listener = FakeListener()
    listener.listen(["a", "b"])
    assert await listener.wait_for_report() == {"a", "b"}
    listener.listen(["b", "c"])
    assert await listener.wait_for_report() == {"b", "c"}
    listener.lose()
    assert await listener.wait_for_report() == set()
    assert await listener.wait_for_report() == {"b", "c"}
    assert listener.changes == [({"a", "b"}, set()), ({"c"}, {"a"}), ({"b", "c"}, set())]
    await listener.close()


class DeafListener(Listener):
    """Never receives anything."""

    def __init__(self) -> None:
        self.is_closed = False

    def listen(self, channels: Collection[str]) -> None: ...

    async def close(self) -> None:
        self.is_closed = True


class FakeNotifications(Notifications):
    """Those of a handle whose listener is played by the test, by `on_listening`."""

    def __init__(self) -> None:
        super().__init__("channel", "own", share_listener=None)
        self.on_listening: OnListening = lambda channels: None
        self.on_notification: OnNotification = lambda channel, text: None
        self.woken: list[tuple[str, bool]] = []
        """The wake-ups of other handles."""

    def _make_listener(
        self, on_listening: OnListening, on_notification: OnNotification
    ) -> Listener:
        self.on_listening, self.on_notification = on_listening, on_notification
        return DeafListener()

    async def _add_idle_entries(self, queues: Collection[str]) -> None: ...

    def forget_idle_entries(self) -> None: ...

    def _wake_another(self, queue: str, passed: bool) -> None:
        self.woken.append((queue, passed))

    def _notify_all(self, text: str) -> None: ...

    async def _leave(self) -> None: ...


@pytest.mark.parametrize("turns", range(6))
async def test_a_wait_that_is_cancelled_while_the_connection_opens_ends(turns: int) -> None:
    """Whatever turn of the event loop the cancellation comes in: the loop may be closing."""
    notifications = FakeNotifications()
    waiting = asyncio.create_task(notifications.wait(["q"], 10 * DEADLINE, asyncio.sleep))
    for _ in range(3):
        await asyncio.sleep(0)
    notifications.on_listening(["channel", "own"])
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    done, _ = await asyncio.wait({waiting}, timeout=DEADLINE)
    assert done
    assert waiting.cancelled()


async def test_a_wait_without_a_connection_lasts_no_longer_than_its_timeout() -> None:
    """The time in which the connection does not open is a part of it."""
    notifications = FakeNotifications()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    await notifications.wait(["q"], 0.05, sleep)
    assert len(slept) == 1
    assert slept[0] < 0.05


@pytest.mark.parametrize(("text", "passed"), [("q", False), ("!q", True)])
async def test_a_wake_up_for_which_no_call_waits_wakes_another_worker(
    text: str, passed: bool
) -> None:
    notifications = FakeNotifications()
    waiting = asyncio.create_task(notifications.wait_for_session("s"))
    await asyncio.sleep(0)
    notifications.on_listening(["channel", "own"])
    notifications.on_notification("own", text)
    assert notifications.woken == [("q", passed)]
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_an_unexpected_error_while_it_closes_leaves_no_listener_open() -> None:
    listener = DeafListener()

    async def fetch(*_: object) -> list[object]:
        raise KeyError("unexpected")

    settings = parse_url("postgresql://localhost/jobs")
    connection = PostgresConnection(settings, asyncio.sleep)
    notifications = PostgresNotifications(
        settings, fetch, lambda *_: listener, connection, connection.connect
    )
    waiting = asyncio.create_task(notifications.wait_for_session("s"))
    await asyncio.sleep(0)
    notifications.notify({"q": 1})
    with pytest.raises(KeyError):
        await notifications.close()
    assert listener.is_closed
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_a_session_is_notified_when_its_handle_listens() -> None:
    """A cancel that came before, or while the connection was lost, was not received."""
    notifications = FakeNotifications()
    connection = ["channel", "own"]
    for channels in (connection, [], connection):
        waiting = asyncio.create_task(notifications.wait_for_session("s"))
        done, _ = await asyncio.wait({waiting}, timeout=0)
        assert not done
        notifications.on_listening(channels)
        async with asyncio.timeout(DEADLINE):
            await waiting
    again = asyncio.create_task(notifications.wait_for_session("s"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not again.done()
    again.cancel()


async def test_a_session_that_waits_without_a_connection_is_notified_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LISTEN_TIMEOUT", 0.0)
    notifications = FakeNotifications()
    waiting = asyncio.create_task(notifications.wait_for_session("s"))
    await wait_until(lambda: bool(notifications._waiters.calls), "the call waits")
    notifications.on_listening(["channel", "own"])
    async with asyncio.timeout(DEADLINE):
        await waiting
    assert not notifications._waiters.calls
