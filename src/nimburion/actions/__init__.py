"""The actions of operators: what people do to queues, jobs, limits and workers.

Each action is one method. It checks the right of the operator, decides, changes and records the
change in the audit log. Methods that only read check no right: who may call them decides what is
shown. The command line, the JSON API, the dashboard and Python call the same
methods: they parse, call and show. Actions on schedules are methods of
`nimburion.scheduler.Schedules`, which records them the same way. In Python, all of them are
properties of a processor: `processor.queues`.

A method named `list` returns an async iterator over everything that matches. A method that takes
`after` and is no iterator returns a page, whose `next` is the `after` of the next page or None.
Every other method returns what it read, or what it changed.
"""

from nimburion.actions.actions import Actions
from nimburion.actions.operator import Operator

__all__ = ["Actions", "Operator"]
