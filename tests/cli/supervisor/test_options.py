"""Options of `nimburion worker` that exclude each other, and settings that one process ignores."""

from __future__ import annotations

import logging

import pytest

from nimburion.jobs import Processor
from tests.cli.conftest import CommandLine


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "1", "--processes", "2"], "--jobs counts the jobs of one process; add"),
        (["--jobs", "1", "--server"], "--burst and --jobs cannot be combined with --server"),
        (["--burst", "--server"], "--burst and --jobs cannot be combined with --server"),
        (["--burst", "--reload"], "--reload cannot be combined with --burst or --jobs"),
        (["--processes", "0"], "0 is not in the range 1<=x<=1000"),
    ],
)
def test_options_that_exclude_each_other(
    options: list[str], message: str, nimburion: CommandLine
) -> None:
    ended = nimburion("worker", "app:processor", *options)
    assert ended.code == 2
    assert message in ended.err


async def test_a_worker_in_this_process_warns_that_it_is_the_only_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Processor("memory://", processes=3) as processor:
        with caplog.at_level(logging.WARNING):
            await processor.start()
        assert "the setting processes is 3, but this worker runs in one process" in caplog.text
