"""The health of several workers as one."""

from __future__ import annotations

from collections.abc import Sequence

from nimburion.jobs import Health
from nimburion.jobs.worker.health import Condition

_WORKING = frozenset({"ready", "degraded"})


def combine_health(
    current: Sequence[Health | None], others: Sequence[Health | None], *, stopping: bool
) -> Health:
    """Return the health of a group of workers.

    It works if at least one of the `current` workers does, and is degraded if not all of them do.
    `others` finish their last jobs. None: a worker that has not reported yet.
    """
    known = [health for health in current if health is not None]
    every = [*known, *(health for health in others if health is not None)]
    states = [health.state if health else "starting" for health in current]
    working = [state for state in states if state in _WORKING]
    state: Condition
    if stopping:
        state = "stopping"
    elif not working:
        state = "unreachable" if "unreachable" in states else "starting"
    else:
        state = "ready" if all(each == "ready" for each in states) else "degraded"
    since = [each for health in known if (each := health.seconds_since_exchange) is not None]
    answers = [each for health in known if (each := health.seconds_since_answer) is not None]
    failures: dict[str, str] = {}
    for health in known:
        failures |= health.failures
    for which in ("starting", "stopping", "stopped"):
        if working and which in states:
            count = states.count(which)
            failures[which] = f"{count} of {len(states)} worker processes {_be(count)} {which}"
    return Health(
        state=state,
        running=sum(health.running for health in every),
        prefetched=sum(health.prefetched for health in every),
        seconds_since_answer=max(answers, default=None),
        seconds_since_exchange=max(since, default=None),
        lease_seconds_left=min((health.lease_seconds_left for health in known), default=0.0),
        error=next((health.error for health in known if health.error), None),
        failures=failures,
    )


def _be(count: int) -> str:
    return "is" if count == 1 else "are"
