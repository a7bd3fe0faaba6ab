"""Connections to Redis: find the server that takes writes, connect, send commands."""
