"""Signals that a process sends to itself, beside those that others send."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, subprocess, sys, threading
from nimburion.jobs.worker.own_signals import OwnSignals

signal.signal(signal.SIGTERM, lambda *_: print("received"))
signal.signal(signal.SIGUSR1, lambda *_: print("received"))
own = OwnSignals({signal.SIGTERM}, lambda: print("own"))
own.start()
pid, group, sent = os.getpid(), os.getpgrp(), signal.SIGTERM
"""

OWN = [
    "os.kill(pid, sent)",
    "os.kill(0, sent)",
    "os.kill(-group, int(sent))",
    "os.killpg(group, sent)",
    "signal.pthread_kill(threading.get_ident(), sent)",
    "thread = threading.Thread(target=os.kill, args=(pid, sent)); thread.start(); thread.join()",
]
OTHERS = [
    "subprocess.run(['kill', '-TERM', str(pid)])",
    "os.kill(pid, signal.SIGUSR1)",
    "own.stop()\nos.kill(pid, sent)",
    "signal.raise_signal(sent)",
]


@pytest.mark.parametrize(
    ("code", "printed"),
    [(code, "own\nreceived\n") for code in OWN] + [(code, "received\n") for code in OTHERS],
)
def test_only_a_signal_of_this_process_is_noticed(code: str, printed: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        start_new_session=True,
    )
    assert (ended.returncode, ended.stdout) == (0, printed), ended.stderr


def test_a_signal_to_a_child_process_is_none_of_this_process() -> None:
    code = (
        "child = subprocess.Popen(['cat'], stdin=subprocess.PIPE, start_new_session=True)\n"
        "os.kill(child.pid, sent)\nos.killpg(child.pid, 0)\nprint(child.wait())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert (ended.returncode, ended.stdout) == (0, "-15\n"), ended.stderr
