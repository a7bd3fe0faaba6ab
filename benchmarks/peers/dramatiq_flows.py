"""Dramatiq's pipelines and groups with a completion callback.

The callback does not get the results of the members: they would need a result backend, and each is
read by its message. Default: 8 threads a process. Best: 2 threads that prefetch 1,000 messages and
look again after at most 1 ms.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend

from benchmarks.peers import handlers
from benchmarks.peers.flow_scenes import FlowPeer
from benchmarks.peers.peer import PYTHON
from benchmarks.peers.setting import setting

broker = RedisBroker(url=setting().url)
broker.add_middleware(GroupCallbacks(RedisBackend(url=setting().url)))
dramatiq.set_broker(broker)


@dramatiq.actor
def link() -> None: ...


@dramatiq.actor
def finish(sent: float) -> None:
    handlers.note(sent)


@dramatiq.actor
def member(number: int) -> int:
    return number


class DramatiqFlows(FlowPeer):
    """Has chains and fan-ins."""

    def enqueue_flow(self, scene: str, size: int, sent: float) -> object:
        called: object
        if scene == "chain":
            links = [link.message_with_options(args=(), pipe_ignore=True) for _ in range(size - 1)]
            last = finish.message_with_options(args=(sent,), pipe_ignore=True)
            called = dramatiq.pipeline([*links, last]).run()
        else:
            group = dramatiq.group(member.message(number) for number in range(size))
            group.add_completion_callback(finish.message(sent))
            called = group.run()
        return called

    def workers(self, processes: int) -> list[list[str]]:
        module = "benchmarks.peers.dramatiq_flows"
        command = [PYTHON, "-m", "dramatiq", module, "-p", str(processes)]
        if self.setting.best:
            os.environ |= {"dramatiq_queue_prefetch": "1000", "dramatiq_worker_timeout": "1"}
            command += ["-t", "2"]
        return [command]


PEER = DramatiqFlows
