"""The unit file is valid, and agrees with the settings and the command line."""

from __future__ import annotations

import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from nimburion.cli.commands.worker import worker
from nimburion.cli.supervisor.supervisor import SupervisorSettings
from nimburion.core.settings import Settings
from tests.house.tree import ROOT

UNIT = ROOT / "deploy/systemd/nimburion-worker.service"


def read_section(name: str) -> dict[str, str]:
    """Return a section of the unit file."""
    parser = ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT, encoding="utf-8")
    return dict(parser[name])


def test_the_unit_file_agrees_with_the_worker() -> None:
    service = read_section("Service")
    assert float(service["TimeoutStopSec"]) >= Settings().grace + 10.0
    expected = {
        "Type": "notify",
        "NotifyAccess": "main",
        "KillMode": "mixed",
        "Restart": "always",
        "RestartPreventExitStatus": "2",
        "WatchdogSec": "60",
        "Environment": "MALLOC_ARENA_MAX=2",
    }
    assert {name: service[name] for name in expected} == expected
    assert read_section("Unit")["StartLimitIntervalSec"] == "0"
    program, command, target = service["ExecStart"].split()
    assert (Path(program).name, command, target) == ("nimburion", worker.name, "myapp:processor")


def test_the_unit_file_says_how_to_use_all_cores() -> None:
    """And its stop timeout leaves the supervisor time to kill a worker that does not stop."""
    options = {name for option in worker.params for name in option.opts}
    assert "# To use all cores, add: --processes 4\n" in UNIT.read_text(encoding="utf-8")
    assert "--processes" in options
    timeout = float(read_section("Service")["TimeoutStopSec"])
    assert timeout >= Settings().grace + SupervisorSettings().stop_margin


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit_file(tmp_path: Path) -> None:
    """The user and the paths are those of this machine; a wrong unit is refused."""
    text = UNIT.read_text(encoding="utf-8").replace("/srv/myapp/.venv/bin/nimburion", "/bin/true")
    text = text.replace("User=myapp", "User=root").replace("Group=myapp", "Group=root")
    assert verify(tmp_path, text) == (0, "")
    _, complaints = verify(tmp_path, text.replace("WatchdogSec=60", "WatchdogSeconds=60"))
    assert "WatchdogSeconds" in complaints


def verify(folder: Path, text: str) -> tuple[int, str]:
    """Return the exit code of `systemd-analyze verify`, and what it says about the unit."""
    unit = folder / UNIT.name
    unit.write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    lines = [line for line in result.stderr.splitlines() if UNIT.name in line]
    return result.returncode, "\n".join(lines)
