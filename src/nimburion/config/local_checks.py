"""Checks of this host and of the configuration, without a backend."""

from __future__ import annotations

import platform
from importlib.util import find_spec

from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.settings import Config
from nimburion.core.timing.clock import Clock

ALLOWED_CLOCK_STEP = 0.1
"""Seconds by which the wall clock may deviate from the monotonic clock during the checks."""


def run_local_checks(config: Config) -> list[CheckResult]:
    """Run the checks of this host and of the configuration, in this order."""
    return [
        check_host(),
        check_settings(config),
        check_event_loop(),
        *check_redis_driver(config.jobs.url),
    ]


def check_host() -> CheckResult:
    """Report the versions of nimburion, Python and the operating system."""
    system = f"{platform.system()} {platform.machine()}"
    version = find_version("nimburion")
    text = f"{version} on Python {platform.python_version()}, {system}"
    return CheckResult("nimburion", "good", text)


def check_settings(config: Config) -> CheckResult:
    """Report the source of the settings."""
    return CheckResult(
        "configuration", "good", config.source or "no file: defaults and environment"
    )


def check_event_loop() -> CheckResult:
    """Report the event loop of workers on this host."""
    if find_spec("uvloop") is None:
        text = "asyncio's own; uvloop is faster (pip install 'nimburion[fast]')"
        return CheckResult("event loop", "good", text)
    return CheckResult("event loop", "good", f"uvloop {find_version('uvloop')}")


def check_redis_driver(url: str) -> list[CheckResult]:
    """Check the Redis driver; return no result for other backends."""
    from nimburion.backends import FAMILIES

    if url.partition("://")[0].lower() not in FAMILIES["redis"]:
        return []
    if find_spec("hiredis") is None:
        advice = "pip install 'nimburion[redis]' brings it"
        return [
            CheckResult("driver", "warning", "without hiredis, answers are read slowly", advice)
        ]
    text = f"redis-py {find_version('redis')} with hiredis {find_version('hiredis')}"
    return [CheckResult("driver", "good", text)]


def find_version(package: str) -> str:
    """Return the version of an installed package."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(of unknown version)"


def check_local_clock(clock: Clock, wall: float, monotonic: float) -> CheckResult:
    """Check that the wall clock of this host did not step during the checks."""
    passed = clock.monotonic() - monotonic
    jumped = clock.now() - wall - passed
    if abs(jumped) < ALLOWED_CLOCK_STEP:
        text = f"did not step in the {1000 * passed:.0f} ms of the check"
        return CheckResult("local clock", "good", text)
    advice = (
        "find what sets it, and let NTP slew it; due times depend on it if the backend has no clock"
    )
    return CheckResult("local clock", "warning", f"stepped by {jumped:+.1f} s just now", advice)
