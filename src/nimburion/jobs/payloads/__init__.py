"""Payloads: the fields of a job, and the JSON of its arguments and results."""
