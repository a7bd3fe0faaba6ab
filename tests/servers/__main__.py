"""Say which server programs a run of the tests uses: python -m tests.servers"""

from __future__ import annotations

import sys

from tests.servers.server_kinds import programs_asked_for

if __name__ == "__main__":
    sys.stdout.write(", ".join(binary.name for binary in programs_asked_for().values()) + "\n")
