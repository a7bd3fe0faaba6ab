"""Where the statistics of a backend's server come from."""

from __future__ import annotations

from typing import Protocol

from benchmarks.peers.figures import Figures
from benchmarks.peers.postgres_wire import PostgresWire
from benchmarks.peers.setting import Setting
from benchmarks.peers.wire import Wire


class StatisticsSource(Protocol):
    """Reads what a server says of itself."""

    def figures(self) -> Figures: ...


class NoServer:
    """The statistics of a backend without a server: its work is that of the process."""

    def figures(self) -> Figures:
        return Figures(cpu=0.0)


def open_statistics(setting: Setting) -> StatisticsSource:
    """Connect to the server that the URL names, if there is one."""
    if setting.scheme == "redis":
        return Wire(setting.host, setting.port)
    if setting.scheme == "postgresql":
        return PostgresWire(setting)
    return NoServer()
