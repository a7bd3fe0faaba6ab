"""Decide what an exchange leases and parks: pure Python without I/O, for backends that plan here.

A backend reads through `Source`, and `plan_reserve` returns a `ReservePlan`. The backend then
writes what the plan says, in the same atomic step.
"""
