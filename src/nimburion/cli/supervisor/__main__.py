"""The program of a worker process: `python -m nimburion.cli.supervisor DESCRIPTOR MODULE:NAME`.

Only a supervisor starts it.
"""

import sys

from nimburion.cli.supervisor.program import run_worker_process

if __name__ == "__main__":
    run_worker_process(int(sys.argv[1]))
