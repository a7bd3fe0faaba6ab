"""One attempt at a job: run its handler, and decide its settlement from the outcome."""
