"""Huey, which takes a job out of its backend before it runs it: at most once.

On Redis or on SQLite, as the URL says. Default: one thread. Best: no results and no cron; 10
threads on Redis. Done: its queue; what the threads have just taken out cannot be counted.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from huey import RedisHuey, SqliteHuey

from benchmarks.peers import handlers
from benchmarks.peers.peer import BIN, Peer
from benchmarks.peers.setting import setting

ON_SQLITE = setting().scheme == "sqlite"
if ON_SQLITE:  # its default flushes each enqueue to the disk, as ours does
    huey = SqliteHuey("bench", filename=setting().file, results=not setting().best)
else:
    huey = RedisHuey("bench", url=setting().url, results=not setting().best)


@huey.task(name="noop")
def noop(to: str, subject: str, body: str) -> None: ...


@huey.task(name="burn")
def burn(to: str, subject: str, body: str) -> None:
    handlers.burn(to, subject, body)


@huey.task(name="pickup")
def pickup(sent: float) -> None:
    handlers.note(sent)


KINDS = {"noop": noop, "burn": burn, "pickup": pickup}


class Huey(Peer):
    """Enqueues in single calls only; its groups make them one by one."""

    def enqueue(self, kind: str, arguments: dict[str, Any]) -> object:
        result: object = KINDS[kind](**arguments)
        return result

    async def left(self) -> int:
        return int(huey.pending_count())

    def workers(self, processes: int) -> list[list[str]]:
        command = [str(BIN / "huey_consumer"), "benchmarks.peers.huey_peer.huey", "--quiet"]
        best = ["-n"] if ON_SQLITE else ["-w", "10", "-n"]
        return [command + best * self.setting.best] * processes


PEER = Huey
