"""Every settlement with every token, in every state of the job: only the right token may settle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from nimburion.core.errors import JobNotFound, SessionLost
from nimburion.core.job import JobRecord
from nimburion.core.lease import Lease
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    Recorded,
    Released,
    Retried,
    Settlement,
    Suspended,
)
from nimburion.testing.contract.consuming.token_cases import (
    AFTER,
    AFTER_REQUEST,
    JOB,
    TOKEN_CASES,
    TokenCase,
)
from nimburion.testing.contract.harness import FAILURE, Harness

SETTLEMENTS: dict[str, Callable[[Lease], Settlement]] = {
    "Completed": lambda lease: Completed(lease, b'"late"'),
    "Completed without result": Completed,
    "Completed with payload": lambda lease: Completed(lease, keep_payload=True),
    "Retried": lambda lease: Retried(lease, 0.0, FAILURE),
    "Failed": lambda lease: Failed(lease, "permanent", FAILURE),
    "Released": Released,
    "Cancelled": lambda lease: Cancelled(lease, "late"),
    "Progressed": lambda lease: Progressed(lease, 0.9, "late"),
    "Recorded": lambda lease: Recorded(lease, 1, b"late"),
    "Suspended": Suspended,
}


def list_variants() -> Iterator[tuple[TokenCase, tuple[str, ...], str]]:
    """Yield what one job can answer, and its name: one accepted settlement, or all refused ones."""
    for case in TOKEN_CASES:
        if case.answer == "done":
            yield from ((case, (kind,), f"{case.name}, {kind}") for kind in SETTLEMENTS)
        else:
            yield case, tuple(SETTLEMENTS), case.name


VARIANTS = tuple(list_variants())


class Tokens:
    """Fences."""

    @pytest.mark.parametrize(
        ("case", "kinds"),
        [(case, kinds) for case, kinds, _ in VARIANTS],
        ids=[name for *_, name in VARIANTS],
    )
    async def test_a_settlement_writes_only_under_its_whole_token(
        self, harness: Harness, case: TokenCase, kinds: Sequence[str]
    ) -> None:
        """`done` changes the job; every other answer leaves the whole record unchanged."""
        settler = await case.build(harness)
        before = await read(harness)
        for kind in kinds:
            settlement = SETTLEMENTS[kind](settler.lease)
            if case.answer == "SessionLost":
                with pytest.raises(SessionLost):
                    await settler.worker.settle(settlement)
            else:
                answers = await settler.worker.settle(settlement)
                assert (kind, answers) == (kind, [case.answer])
            after = await read(harness)
            if case.answer == "done":
                ends = AFTER_REQUEST if "cancel requested" in case.state else AFTER
                assert after is not None
                assert after.state is ends[kind]
            else:
                assert (kind, after) == (kind, before)


async def read(harness: Harness) -> JobRecord | None:
    """Return the job of the token case; None if it does not exist."""
    try:
        return await harness.backend.reads.get_job(JOB)
    except JobNotFound:
        return None
