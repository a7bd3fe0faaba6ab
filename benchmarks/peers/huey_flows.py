"""Huey's pipelines and chords, on Redis. The callback of a chord gets the results.

Default: one thread. Best: 10 threads and no cron. Both take a job out of Redis before they run it
(at most once).
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

from huey import RedisHuey, chord

from benchmarks.peers import handlers
from benchmarks.peers.flow_scenes import FlowPeer
from benchmarks.peers.peer import BIN
from benchmarks.peers.setting import setting

huey = RedisHuey("bench", url=setting().url)


@huey.task(name="link")
def link() -> None: ...


@huey.task(name="finish")
def finish(sent: float) -> None:
    handlers.note(sent)


@huey.task(name="member")
def member(number: int) -> int:
    return number


@huey.task(name="join")
def join(size: int, sent: float, numbers: list[int]) -> None:
    assert numbers == [*range(size)]
    handlers.note(sent)


class HueyFlows(FlowPeer):
    """Has chains and fan-ins."""

    def enqueue_flow(self, scene: str, size: int, sent: float) -> object:
        called: object
        if scene == "chain":
            first = link.s()
            for _ in range(size - 2):
                first.then(link)
            first.then(finish, sent)
            called = huey.enqueue(first)
        else:
            members = [member.s(number) for number in range(size)]
            called = huey.enqueue(chord(members, join.s(size, sent)))
        return called

    def workers(self, processes: int) -> list[list[str]]:
        command = [str(BIN / "huey_consumer"), "benchmarks.peers.huey_flows.huey", "--quiet"]
        return [command + ["-w", "10", "-n"] * self.setting.best] * processes


PEER = HueyFlows
