"""Time: the clock, durations, timers, time zones and growing pauses."""
