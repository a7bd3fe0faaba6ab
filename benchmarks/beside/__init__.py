"""Ourselves beside other job systems on one server, in one run: `dev.py bench redis`, `postgres`.

A family is a kind of server: who runs on it, how it is started, and which tables are made.
"""
