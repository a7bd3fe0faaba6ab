"""Say which server programs a run of the tests uses: python -m tests.servers"""

from __future__ import annotations

import sys

from tests.servers.server_kinds import find_requested_programs

if __name__ == "__main__":
    sys.stdout.write(", ".join(binary.name for binary in find_requested_programs().values()) + "\n")
