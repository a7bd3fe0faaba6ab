"""Turns ticks into jobs: cron expressions, intervals, and schedulers that need no leader."""
