"""DBOS, on PostgreSQL: workflows with steps, and workflows that run children on a queue.

`python -m benchmarks.peers.dbos_flows` is the worker. Default: `def` workflows and steps, in
threads; the queue is looked at once a second. Best: looked at every 20 ms.
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator,no-any-unimported"
# pyright: reportMissingImports=false
from __future__ import annotations

import signal

from dbos import DBOS, DBOSClient, run_dbos_database_migrations

from benchmarks.peers import handlers
from benchmarks.peers.flow_scenes import FlowPeer
from benchmarks.peers.peer import PYTHON
from benchmarks.peers.setting import setting

VERSION = "bench"
QUEUE = "bench"


@DBOS.step()
def return_number(number: int) -> int:
    return number


@DBOS.workflow()
def steps(size: int, sent: float) -> None:
    for number in range(size):
        return_number(number)
    handlers.note(sent)


@DBOS.workflow()
def member(number: int) -> int:
    return number


@DBOS.workflow()
def children(size: int, sent: float) -> None:
    handles = [DBOS.enqueue_workflow(QUEUE, member, number) for number in range(size)]
    assert [handle.get_result() for handle in handles] == [*range(size)]
    handlers.note(sent)


class DbosFlows(FlowPeer):
    """Has durable functions with steps and with children."""

    async def open(self) -> None:
        run_dbos_database_migrations(setting().url)
        self.client = DBOSClient(system_database_url=setting().url)

    async def close(self) -> None:
        self.client.destroy()

    def enqueue_flow(self, scene: str, size: int, sent: float) -> object:
        options = {"workflow_name": scene, "queue_name": QUEUE, "app_version": VERSION}
        called: object = self.client.enqueue(options, size, sent)
        return called

    def workers(self, processes: int) -> list[list[str]]:
        return [[PYTHON, "-m", "benchmarks.peers.dbos_flows"]] * processes


PEER = DbosFlows

if __name__ == "__main__":
    DBOS(
        config={
            "name": "bench",
            "system_database_url": setting().url,
            "application_version": VERSION,
            "log_level": "WARNING",
        }
    )
    DBOS.launch()
    DBOS.register_queue(QUEUE, polling_interval_sec=0.02 if setting().best else 1.0)
    signal.pause()
