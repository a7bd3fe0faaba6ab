"""Celery's canvas: chains and chords.

A chord stores the result of each member in Redis, and the callback gets them. Default: the prefork
pool with one child. Best: the solo pool, 100 prefetched, no gossip, mingle or heartbeat, and no
results of chains. Both acknowledge a job before it runs (at most once).
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

from celery import Celery as App
from celery import chain, chord

from benchmarks.peers import handlers
from benchmarks.peers.flow_scenes import FlowPeer
from benchmarks.peers.peer import PYTHON
from benchmarks.peers.setting import setting

app = App("bench", broker=setting().url, backend=setting().url)
if setting().best:
    app.conf.update(worker_prefetch_multiplier=100, worker_send_task_events=False)


@app.task(name="link", ignore_result=setting().best)
def link() -> None: ...


@app.task(name="finish", ignore_result=setting().best)
def finish(sent: float) -> None:
    handlers.note(sent)


@app.task(name="member")
def member(number: int) -> int:
    return number


@app.task(name="join")
def join(numbers: list[int], size: int, sent: float) -> None:
    assert sorted(numbers) == [*range(size)]
    handlers.note(sent)


class CeleryFlows(FlowPeer):
    """Has chains and fan-ins."""

    def enqueue_flow(self, scene: str, size: int, sent: float) -> object:
        called: object
        if scene == "chain":
            links = [link.si() for _ in range(size - 1)]
            called = chain(*links, finish.si(sent)).apply_async()
        else:
            called = chord(member.s(number) for number in range(size))(join.s(size, sent))
        return called

    def workers(self, processes: int) -> list[list[str]]:
        app_name = "benchmarks.peers.celery_flows"
        command = [PYTHON, "-m", "celery", "-A", app_name, "worker", "-l", "ERROR"]
        if not self.setting.best:
            return [[*command, "-c", str(processes)]]
        command += ["-P", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        return [[*command, "-n", f"worker{number}@%h"] for number in range(processes)]


PEER = CeleryFlows
