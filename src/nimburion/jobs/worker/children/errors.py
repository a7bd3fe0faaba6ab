"""What can go wrong with a child process. Apart from `process`, which the first child loads."""

from __future__ import annotations

import signal


def describe_exit(code: int | None) -> str:
    """Return how a process with this exit code has ended, as the end of a sentence.

    >>> describe_exit(1), describe_exit(-9)
    ('ended with exit code 1', 'was killed by SIGKILL')
    """
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"


class ChildNotStarted(Exception):
    """A child process could not import the application. The text says why."""


class ChildDied(Exception):
    """The child process ended while it ran a call. The text says how."""

    def __init__(self, message: str, output: str, *, over_memory_limit: bool) -> None:
        super().__init__(message)
        self.message: str = message
        self.output: str = output
        """The last lines that the call has printed."""
        self.over_memory_limit: bool = over_memory_limit
        """Whether it was killed because of the memory limit of the job."""
