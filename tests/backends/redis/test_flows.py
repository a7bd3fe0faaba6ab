"""The scripts resolve flows as the specification of the planner says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from random import Random

import hypothesis
import pytest
from hypothesis import strategies as st

from nimburion.backends.redis import scripts
from nimburion.backends.redis.backend import RedisBackend
from nimburion.backends.redis.scripts import Script
from nimburion.testing import FakeClock
from tests.backends.planning.test_flows import check_run
from tests.backends.redis.small_scripts import build_scripts_with
from tests.servers.server_kinds import RunningRedis

FEW = 8


@pytest.mark.parametrize("limit", [1, 2, 500])
def test_the_states_follow_from_the_ends(
    redis_server: RunningRedis, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few conditions a script may apply, the scripts after it do the rest."""

    @cache
    def build(*, flagged: bool) -> Mapping[str, Script]:
        return build_scripts_with({"MAX_RESOLVED": limit}, flagged=flagged)

    monkeypatch.setattr(scripts, "build_scripts", build)
    usual = hypothesis.settings()
    count = usual.max_examples if usual.max_examples > 100 else FEW

    # Not shrunk: a smaller seed is no simpler.
    @hypothesis.settings(usual, max_examples=count, phases=(hypothesis.Phase.generate,))
    @hypothesis.given(st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        redis_server.empty()
        luck, clock = Random(seed), FakeClock()
        backend = RedisBackend(redis_server.url, clock=clock, timeout=30.0)
        asyncio.run(check_run(luck, luck.randrange(10_000), backend, clock))

    check()
