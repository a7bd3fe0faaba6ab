"""The supervisor of worker processes: `nimburion worker --processes N`.

The supervisor starts the worker processes and replaces those that end. It neither imports the
application nor runs jobs.
"""
