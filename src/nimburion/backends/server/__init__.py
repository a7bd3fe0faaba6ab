"""Code that the backends with a server (Redis, PostgreSQL) share.

`notifications` explains how an enqueue wakes a worker.
"""
