"""The command `nimburion`; one module a command, as Django wants it."""
