"""Cases of flows: conditions, counts, replays and reads."""
