"""Where a handler runs: on the event loop, in a thread, or in a child process.

```python
@job(execution=ChildProcess(memory="512MB"), timeout=60)
def resize(path: str) -> None: ...
```
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nimburion.core.errors import DefinitionError
from nimburion.core.text.sizes import read_byte_count

Execution = Literal["auto", "thread", "process"]
"""Where a handler runs. `auto`: an `async def` on the event loop, a `def` in a thread."""

_MIN_MEMORY = 32 * 1024**2
"""Bytes. A child process needs most of it before it runs a handler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProcess:
    """Run the handler in a child process, which a timeout or a cancel kills: the option
    `execution`.

    Without arguments, it is the same as `"process"`.

    Args:
        memory: bytes, or a text like `"512MB"`. An attempt is killed when its child process uses
            more, and it is not retried.
        retry_over_memory: retry such an attempt like any other that failed.
    """

    memory: int | str | None = None
    retry_over_memory: bool = False


def parse_execution(value: Execution | ChildProcess) -> Execution:
    """Return where a handler runs. Raises `DefinitionError`."""
    if isinstance(value, ChildProcess):
        return "process"
    allowed = get_args(Execution)
    if value not in allowed:
        names = ", ".join(map(repr, allowed))
        raise DefinitionError(f"execution must be one of {names} or a ChildProcess, not {value!r}")
    return value


def parse_memory(child: ChildProcess) -> int | None:
    """Return the most bytes of memory of a child process; None: no limit. Raises
    `DefinitionError`.
    """
    if child.memory is None:
        if child.retry_over_memory:
            raise DefinitionError("the retry_over_memory of ChildProcess needs `memory`")
        return None
    size = read_byte_count(child.memory)
    if size is None:
        raise DefinitionError(
            "the memory of ChildProcess must be bytes, or a text like '512MB' or '1GiB', not "
            f"{child.memory!r}"
        )
    if size < _MIN_MEMORY:
        raise DefinitionError(
            f"the memory of ChildProcess must be at least {_MIN_MEMORY >> 20}MiB, which Python "
            f"itself needs, not {child.memory!r}"
        )
    return size
