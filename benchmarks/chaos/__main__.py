"""`python -m benchmarks.chaos [sqlite redis postgres] [--jobs N] [--kills N] [--save]`."""

from __future__ import annotations

import sys

from benchmarks.chaos.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
