"""Exchanges of a worker with its backend: the jobs it holds, and when it sends and requests."""
