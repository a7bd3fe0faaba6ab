"""`python3 dev.py bench`: how fast nimburion is on this machine; see CONTRIBUTING.md.

python -m benchmarks [--plot [FILE]] [--save]             all backends, in two minutes
python -m benchmarks peers [BACKEND ...] [--save]         beside other job systems, in turn
python -m benchmarks cost [--against CHECKOUT] [--save]   the CPU time of a job
python -m benchmarks fleet [--workers N ...] [--save]     exchanges for one job, by idle workers
python -m benchmarks fleet-drain [--jobs N] [--save]      the server's cost of a job, by workers
python -m benchmarks names [BACKEND ...] [--save]         the cost of a job, by number of lanes
python -m benchmarks fleet-pickup [--save]                how soon a fleet starts a job
python -m benchmarks idle-peers [--save]                  one job for idle workers, beside others
python -m benchmarks sqlite|redis|postgres [TABLE ...]    one backend at length, beside others
python -m benchmarks flows [SCENE ...] [--save]           members of flows beside plain jobs
python -m benchmarks flow-peers [SCENE ...] [--save]      flows and steps beside other systems
python -m benchmarks readings|schedules|scrape [--save]   what operators read, the scheduler
python -m benchmarks monitoring [--phases N] [--save]     a live Prometheus beside a log
python -m benchmarks publish                              saved figures into README and docs
"""

from __future__ import annotations

import sys
from importlib import import_module

FAMILIES = ("sqlite", "redis", "postgres")
COMMANDS = {
    "peers": ("benchmarks.speed", "main_peers"),
    "cost": ("benchmarks.cost", "main"),
    "fleet": ("benchmarks.fleet", "main"),
    "names": ("benchmarks.names", "main"),
    "fleet-drain": ("benchmarks.fleet_drain", "main"),
    "fleet-pickup": ("benchmarks.fleet_pickup", "main"),
    "idle-peers": ("benchmarks.idle_peers", "main"),
    "flows": ("benchmarks.flows", "main"),
    "flow-peers": ("benchmarks.flow_peers", "main"),
    "readings": ("benchmarks.readings.main", "main"),
    "schedules": ("benchmarks.operating", "main_schedules"),
    "scrape": ("benchmarks.operating", "main_scrape"),
    "monitoring": ("benchmarks.monitoring.main", "main"),
    "publish": ("benchmarks.publish", "main"),
}
"""The module and the function of each command; none is imported before it is asked for."""


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command in FAMILIES:
        from benchmarks.beside.main import main as measure_family

        family = import_module(f"benchmarks.{command}.family").FAMILY
        return measure_family(family, import_module(f"benchmarks.{command}.tables").TABLES, rest)
    if command in COMMANDS:
        module, name = COMMANDS[command]
        status: int = getattr(import_module(module), name)(rest)
        return status
    from benchmarks.speed import main as measure_speed

    return measure_speed(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
