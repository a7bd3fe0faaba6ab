"""Run one scene of one peer and print what came out."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from importlib import import_module

from benchmarks.peers import long_scenes, scenes


def main() -> None:
    """`python -m benchmarks.peers NAME SCENE '{"argument": ...}'`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the workers go with us
    name, scene, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    known = scenes.SCENES | long_scenes.SCENES
    peer = import_module(f"benchmarks.peers.{name}_peer").PEER()
    with asyncio.Runner(loop_factory=peer.loop_factory) as runner:
        printed = runner.run(known[scene](peer, **arguments))
    print(json.dumps(printed))


if __name__ == "__main__":
    main()
