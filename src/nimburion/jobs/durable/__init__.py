"""Durable functions: handlers that remember their steps, wait without a worker and get signals.

Applications import `DurableContext` and `Signal` from `nimburion`.
"""

from nimburion.jobs.durable.children import ChildJob
from nimburion.jobs.durable.context import DurableContext, DurableOperations
from nimburion.jobs.durable.signals import Signal

__all__ = ["ChildJob", "DurableContext", "DurableOperations", "Signal"]
