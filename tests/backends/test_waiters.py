"""Notifications end the calls that wait for their queue; what no call waits for is kept."""

from __future__ import annotations

import asyncio

from nimburion.backends.waiters import EVERY_QUEUE, Waiters, wait_until


async def test_a_notification_ends_the_calls_that_wait_for_its_queue() -> None:
    waiters = Waiters()
    with waiters.expect(["mail"]) as mail, waiters.expect(["images"]) as images:
        waiters.notify(["mail"])
        assert (mail.done(), images.done(), len(waiters)) == (True, False, 2)
    assert len(waiters) == 0
    assert not waiters.take_missed(["mail", "images"])


async def test_what_no_call_waits_for_is_kept_once() -> None:
    waiters = Waiters()
    with waiters.expect(["mail"]):
        waiters.notify(["mail", "images"])
    assert not waiters.take_missed(["mail"])
    assert waiters.take_missed(["images"])
    assert not waiters.take_missed(["images"])


async def test_every_queue_ends_every_call() -> None:
    waiters = Waiters()
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
    notified: asyncio.Future[None] = loop.create_future()
    notified.set_result(None)
    pause: asyncio.Future[None] = loop.create_future()
    await wait_until(notified, pause)
    assert pause.cancelled()
