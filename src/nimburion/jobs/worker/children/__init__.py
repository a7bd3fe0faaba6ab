"""Child processes that run handlers: their pool, their protocol, and the program of a child."""
