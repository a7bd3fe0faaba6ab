"""RQ.

Default: a process a job, results kept for 500 s. Best: SimpleWorker (no process a job), JSON, no
results. Done: the queue, and what a worker holds.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from redis import Redis
from rq import Queue

from benchmarks.payload import PAYLOAD
from benchmarks.peers import handlers
from benchmarks.peers.peer import BIN, Peer
from benchmarks.peers.setting import setting

queue = Queue(
    connection=Redis.from_url(setting().url), serializer="json" if setting().best else None
)
policy = {"result_ttl": 0} if setting().best else {}


def noop(to: str, subject: str, body: str) -> None: ...


def burn(to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


def pickup(sent: float) -> None:
    handlers.note(sent)


KINDS = {"noop": noop, "burn": burn, "pickup": pickup}


class RQ(Peer):
    """Enqueues many in a pipeline, here 1,000 a call."""

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> object:
        job: object = queue.enqueue(KINDS[kind], kwargs=arguments, **policy)
        return job

    async def enqueue_many(self, kind: str, jobs: int) -> None:
        for start in range(0, jobs, 1000):
            prepared = [
                Queue.prepare_data(KINDS[kind], kwargs=PAYLOAD, **policy)
                for _ in range(min(1000, jobs - start))
            ]
            queue.enqueue_many(prepared)

    async def left(self) -> int:
        waiting, held = self.wire.ask("LLEN", queue.key), self.wire.ask("ZCARD", "rq:wip:default")
        return int(waiting) + int(held)

    def workers(self, processes: int) -> list[list[str]]:
        command = [str(BIN / "rq"), "worker", "--url", self.setting.url, "--quiet"]
        best = ["--worker-class", "rq.worker.SimpleWorker", "--serializer", "json"]
        return [command + best * self.setting.best] * processes


PEER = RQ
