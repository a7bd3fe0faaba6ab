"""The program of a child process where `prctl` is refused, as a seccomp filter may do.

The application handles the signal that a guard would take.
"""

import signal

from nimburion.jobs.worker.children import guard
from nimburion.jobs.worker.children.__main__ import main

if __name__ == "__main__":
    guard._control_process = lambda *_: False
    signal.signal(guard.KILL, lambda *_: None)
    main()
