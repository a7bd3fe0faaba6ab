"""Chaos: real workers are killed and paused, networks and servers fail, and no job may be lost.

The processes of a run write what they saw into an event log of files, apart from the backend. At
the end, `reconcile` compares this log with the records of the backend.
"""
