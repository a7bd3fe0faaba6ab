"""Taskiq on a Redis stream.

Default: `-w`, 100 tasks at once, 100 read at once, uvloop because it is installed (Taskiq takes it
by itself). Best: orjson, 1,000 prefetched, messages not parsed by pydantic. Done: what the
consumer group has read and acknowledged. The stream is never trimmed.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisStreamBroker

from benchmarks.peers import handlers
from benchmarks.peers.peer import PYTHON, Peer
from benchmarks.peers.setting import setting

broker = RedisStreamBroker(setting().url)
if setting().best:
    broker = broker.with_serializer(ORJSONSerializer())


@broker.task(task_name="noop")
async def noop(to: str, subject: str, body: str) -> None: ...


@broker.task(task_name="burn")
async def burn(to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


@broker.task(task_name="pickup")
async def pickup(sent: float) -> None:
    handlers.note(sent)


KINDS = {"noop": noop, "burn": burn, "pickup": pickup}


class Taskiq(Peer):
    """Enqueues in single calls only."""

    async def open(self) -> None:
        await broker.startup()

    async def close(self) -> None:
        await broker.shutdown()

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> Awaitable[object]:
        called: Awaitable[object] = KINDS[kind].kiq(**arguments)
        return called

    async def left(self) -> int:
        (group,) = self.wire.ask("XINFO", "GROUPS", "taskiq")
        fields = dict(zip(group[::2], group[1::2], strict=True))
        return int(fields["lag"]) + int(fields["pending"])

    def workers(self, processes: int) -> list[list[str]]:
        command = [PYTHON, "-m", "taskiq", "worker", "benchmarks.peers.taskiq_peer:broker"]
        command += ["-w", str(processes), "--log-level", "WARNING"]
        best = ["--max-prefetch", "1000", "--no-parse"]
        return [command + best * self.setting.best]


PEER = Taskiq
