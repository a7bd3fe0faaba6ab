"""Decisions of a backend: pure Python without I/O. A backend reads, decides here, and writes.

All of it happens in one atomic step of the backend.

- `reserve`: which jobs an exchange leases and parks, with `admission`, `fairness` and `lanes`.
- `enqueue`: what becomes of each job of an enqueue.
- `settle`: what becomes of a job when an attempt ends.
- `rescue`: what becomes of a job whose worker was lost.
"""
