"""Connections to PostgreSQL: connect, reconnect and pool."""
