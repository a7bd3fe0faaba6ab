"""The job every scene runs: a no-op with a payload of about 250 bytes."""

from __future__ import annotations

from typing import Any

from nimburion.jobs import job


@job(queue="bench")
async def noop(to: str, subject: str, body: str) -> None:
    """Do nothing, as fast as possible."""


def many_noops(names: int, queues: int) -> list[Any]:
    """The same under `names` names, spread over `queues` queues."""
    if names == 1:
        return [noop]
    return [_named(n, f"bench_{n % queues}") for n in range(names)]


def _named(n: int, queue: str) -> Any:
    async def same(to: str, subject: str, body: str) -> None: ...

    return job(name=f"noop_{n}", queue=queue)(same)
