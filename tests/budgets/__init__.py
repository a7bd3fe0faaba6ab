"""Counts of what one job costs. A commit that makes a job more expensive must raise a budget."""
