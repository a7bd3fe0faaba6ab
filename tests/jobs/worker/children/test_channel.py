"""What a child sends to its parent, and in which order."""

from __future__ import annotations

import threading

from nimburion.jobs.worker.children.channel import _ProgressSender
from nimburion.jobs.worker.children.messages import ProgressMade, ToParent
from tests.waiting import DEADLINE


def test_no_progress_follows_the_answer_of_a_call() -> None:
    """The thread that reads from the parent sends the latest report while the call ends."""
    sent: list[object] = []
    sends, proceeds = threading.Event(), threading.Event()

    def send(message: ToParent) -> None:
        if len(sent) == 1:
            sends.set()
            assert proceeds.wait(DEADLINE)
        sent.append(message)

    def answer() -> None:
        sender.flush()
        sent.append("answer")

    sender = _ProgressSender(send)
    first, last = ProgressMade(0.1, ""), ProgressMade(0.2, "")
    sender.report(first)
    sender.report(last)
    reading = threading.Thread(target=sender.note_receipt)
    reading.start()
    assert sends.wait(DEADLINE)
    answering = threading.Thread(target=answer)
    answering.start()
    answering.join(0.05)
    proceeds.set()
    for thread in (reading, answering):
        thread.join()
    assert sent == [first, last, "answer"]
