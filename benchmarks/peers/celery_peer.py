"""Celery.

Default: the prefork pool with one child a process, no result store; a job is acknowledged before
it runs (at most once). Best: the solo pool, 100 prefetched, no gossip, mingle or heartbeat. Done:
the list, and the hash of what was delivered and not acknowledged.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from celery import Celery as App

from benchmarks.payload import PAYLOAD
from benchmarks.peers import handlers
from benchmarks.peers.peer import PYTHON, Peer
from benchmarks.peers.setting import setting

app = App("bench", broker=setting().url)
if setting().best:
    app.conf.update(
        task_ignore_result=True, worker_prefetch_multiplier=100, worker_send_task_events=False
    )


@app.task(name="noop")
def noop(to: str, subject: str, body: str) -> None: ...


@app.task(name="burn")
def burn(to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


@app.task(name="pickup")
def pickup(sent: float) -> None:
    handlers.note(sent)


KINDS = {"noop": noop, "burn": burn, "pickup": pickup}


class Celery(Peer):
    """Enqueues in single calls only; in bulk they share a producer."""

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> object:
        sent: object = KINDS[kind].apply_async(kwargs=arguments)
        return sent

    async def enqueue_many(self, kind: str, jobs: int) -> None:
        with app.producer_pool.acquire(block=True) as producer:
            for _ in range(jobs):
                KINDS[kind].apply_async(kwargs=PAYLOAD, producer=producer)

    async def left(self) -> int:
        return int(self.wire.ask("LLEN", "celery")) + int(self.wire.ask("HLEN", "unacked"))

    def workers(self, processes: int) -> list[list[str]]:
        command = [
            PYTHON,
            "-m",
            "celery",
            "-A",
            "benchmarks.peers.celery_peer",
            "worker",
            "-l",
            "ERROR",
        ]
        if not self.setting.best:
            return [[*command, "-c", str(processes)]]
        command += ["-P", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        return [[*command, "-n", f"worker{number}@%h"] for number in range(processes)]


PEER = Celery
