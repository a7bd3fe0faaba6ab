"""Job systems on Redis, each in a module NAME_peer that its own virtual environment runs.

`python -m benchmarks.peers NAME SCENE '{"argument": ...}'` prints one line of JSON. BENCH_URL,
BENCH_BEST and BENCH_NOTES say the rest, because the worker processes need it too. Only the
standard library is imported outside a peer's own module.
"""
