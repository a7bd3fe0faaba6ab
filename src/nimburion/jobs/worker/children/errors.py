"""What can go wrong with a child process. Apart from `process`, which the first child loads."""

from __future__ import annotations


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
