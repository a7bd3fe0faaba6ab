"""The program of a child process: `python -m nimburion.jobs.worker.children CALLS MESSAGES`.

Only a worker starts it. The arguments are the descriptors of two sockets.
"""

import sys

from nimburion.jobs.worker.children.guard import fork_from_guard


def main() -> None:
    """Fork first: the guard needs none of the modules that a child loads."""
    descriptors = int(sys.argv[1]), int(sys.argv[2])
    guard = fork_from_guard(*descriptors)
    from nimburion.jobs.worker.children.runtime import run_child

    run_child(*descriptors, guard)


if __name__ == "__main__":
    main()
