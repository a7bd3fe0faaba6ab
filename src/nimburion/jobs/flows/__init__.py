"""Flows: jobs that wait for each other and pass on their results.

Applications import `Flow` and `chain` from `nimburion`.
"""

from nimburion.jobs.flows.flow import Flow, Member, Members, chain

__all__ = ["Flow", "Member", "Members", "chain"]
