"""Connections to Redis: locate the server that takes writes, connect, and send commands."""
