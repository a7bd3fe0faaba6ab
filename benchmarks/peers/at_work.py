"""`python -m benchmarks.peers.at_work NAME`: the worker of a peer that has no command of its own.

Not the peer's module itself, since jobs are found by the name of their module.
"""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module

from benchmarks.peers.event_loops import fast_loop
from benchmarks.peers.setting import setting


def main() -> None:
    """Run the `work` of the module until killed; on uvloop at the best setting."""
    module = import_module(f"benchmarks.peers.{sys.argv[1]}_peer")
    with asyncio.Runner(loop_factory=fast_loop() if setting().best else None) as runner:
        runner.run(module.work())


if __name__ == "__main__":
    main()
