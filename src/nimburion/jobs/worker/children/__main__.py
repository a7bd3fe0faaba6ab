"""The program of a child process: `python -m nimburion.jobs.worker.children DESCRIPTOR`.

Only a worker starts it.
"""

import sys

from nimburion.jobs.worker.children.runtime import run_child

if __name__ == "__main__":
    run_child(int(sys.argv[1]))
