"""Connections that callers pass to `enqueue`: one adapter per driver or framework."""
