"""The program of a child process: `python -m nimburion.jobs.worker.children CALLS MESSAGES`.

Only a worker starts it. The arguments are the descriptors of two sockets.
"""

import sys

from nimburion.jobs.worker.children.runtime import run_child

if __name__ == "__main__":
    run_child(int(sys.argv[1]), int(sys.argv[2]))
