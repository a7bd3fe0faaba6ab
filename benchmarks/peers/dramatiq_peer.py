"""Dramatiq.

Default: 8 threads a process. Best: 2 threads that prefetch 1,000 messages, looking again after at
most 1 ms when there was nothing (the default is a back-off up to 1 s). Done: the hash of message
bodies, which an acknowledgement shortens.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers import handlers
from benchmarks.peers.peer import PYTHON, Peer
from benchmarks.peers.setting import setting

dramatiq.set_broker(RedisBroker(url=setting().url))


@dramatiq.actor
def noop(to: str, subject: str, body: str) -> None: ...


@dramatiq.actor
def burn(to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


@dramatiq.actor
def pickup(sent: float) -> None:
    handlers.note(sent)


KINDS = {"noop": noop, "burn": burn, "pickup": pickup}


class Dramatiq(Peer):
    """Enqueues in single calls only; its groups make them one by one."""

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> object:
        message: object = KINDS[kind].send(**arguments)
        return message

    async def left(self) -> int:
        return int(self.wire.ask("HLEN", "dramatiq:default.msgs"))

    def workers(self, processes: int) -> list[list[str]]:
        command = [PYTHON, "-m", "dramatiq", "benchmarks.peers.dramatiq_peer", "-p", str(processes)]
        if self.setting.best:
            os.environ |= {"dramatiq_queue_prefetch": "1000", "dramatiq_worker_timeout": "1"}
            command += ["-t", "2"]
        return [command]


PEER = Dramatiq
