"""Counters of jobs and calls, and the statistics that are made of them."""
