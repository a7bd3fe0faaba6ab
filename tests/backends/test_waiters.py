"""Notifications end the calls that wait for their queue; what no call waits for is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from nimburion.backends.waiters import EVERY_QUEUE, Waiters, wait_until
from nimburion.core.exchange import RESERVE_NOTHING, Lane, Reply, ReserveRequest
from nimburion.core.lease import Delivery, Lease, Token


def pass_nothing_on(queue: str, passed: bool) -> None:
    """Fail, because the test expects that no wake-up is passed on."""
    raise AssertionError((queue, passed))


async def test_a_notification_ends_the_calls_that_wait_for_its_queue() -> None:
    waiters = Waiters(pass_nothing_on)
    with waiters.expect(["mail"]) as mail, waiters.expect(["images"]) as images:
        waiters.notify(["mail"])
        assert (mail.done(), images.done(), len(waiters.calls)) == (True, False, 2)
    assert len(waiters.calls) == 0
    assert not waiters.take_missed(["mail", "images"])


async def test_what_no_call_waits_for_is_kept_once() -> None:
    waiters = Waiters(pass_nothing_on)
    with waiters.expect(["mail"]):
        waiters.notify(["mail", "images"])
    assert not waiters.take_missed(["mail"])
    assert waiters.take_missed(["images"])
    assert not waiters.take_missed(["images"])


async def test_every_queue_ends_every_call() -> None:
    waiters = Waiters(pass_nothing_on)
    waiters.notify([EVERY_QUEUE])
    assert waiters.take_missed(["mail"])
    with waiters.expect(["mail"]) as mail, waiters.expect(["images"]) as images:
        waiters.notify([EVERY_QUEUE])
        assert mail.done()
        assert images.done()
    assert not waiters.take_missed(["mail"])


async def test_a_wait_ends_with_its_pause_and_cancels_it_otherwise() -> None:
    loop = asyncio.get_running_loop()
    await wait_until(loop.create_future(), asyncio.sleep(0))
    notified: asyncio.Future[Collection[str]] = loop.create_future()
    notified.set_result(())
    pause: asyncio.Future[None] = loop.create_future()
    await wait_until(notified, pause)
    assert pause.cancelled()


async def test_a_wakeup_ends_as_many_calls_as_there_are_jobs() -> None:
    waiters = Waiters(pass_nothing_on)
    with (
        waiters.expect(["mail"]) as first,
        waiters.expect(["mail"]) as second,
        waiters.expect(["images"]) as other,
    ):
        assert waiters.wake("mail", 1) == 1
        assert first.done()
        assert not second.done()
        assert waiters.wake("mail", 5, passed=True) == 1
        assert second.done()
        assert waiters.wake("mail", 1) == 0
        assert not other.done()
    assert not waiters.take_missed(["mail"])  # who sends it decides what becomes of the rest


@pytest.mark.parametrize(
    ("is_woken", "passed", "expected"),
    [
        (True, False, [("mail", False)]),
        (True, True, []),  # it was passed on once already
        (False, False, []),
    ],
)
async def test_a_call_that_is_cancelled_passes_its_wakeup_on(
    is_woken: bool, passed: bool, expected: list[tuple[str, bool]]
) -> None:
    """Its worker may stop. The next exchange does not pass the wake-up on a second time."""
    sent: list[tuple[str, bool]] = []
    waiters = Waiters(lambda queue, passed: sent.append((queue, passed)))

    async def wait() -> None:
        with waiters.expect(["mail"]) as notified:
            await notified

    call = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    if is_woken:
        assert waiters.wake("mail", 1, passed=passed) == 1
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()
    assert sent == expected
    request = ReserveRequest(5, (Lane("mail", "send"),))
    assert waiters.last_wait.find_next(request, Reply([], [], []))[0] == ()


@pytest.mark.parametrize(
    ("deliveries", "waiting", "passed", "expected"),
    [
        (0, (), False, ({"mail"}, True)),  # it found nothing: another worker may have the name
        (0, (), True, (set(), True)),  # but only once
        (1, (), False, (set(), False)),
        (1, ("mail", "images"), True, ({"mail", "images"}, False)),
        (0, ("mail",), False, ({"mail"}, True)),
    ],
)
async def test_the_first_exchange_after_a_call_may_wake_the_next(
    deliveries: int, waiting: tuple[str, ...], passed: bool, expected: tuple[set[str], bool]
) -> None:
    waiters = Waiters(pass_nothing_on)
    request = ReserveRequest(5, (Lane("mail", "send"),))
    delivery = Delivery(Lease("a", Token(1, b"")), "send", "mail", b"")
    reply = Reply([], [delivery] * deliveries, [Lane(queue, "send") for queue in waiting])
    with waiters.expect(["mail"]):
        waiters.wake("mail", 1, passed=passed)
    assert waiters.last_wait.find_next(RESERVE_NOTHING, reply) == ((), False)
    queues, is_passed = waiters.last_wait.find_next(request, reply)
    assert ({*queues}, is_passed) == expected
    assert waiters.last_wait.find_next(request, reply) == ((), False)  # a busy worker wakes nobody
