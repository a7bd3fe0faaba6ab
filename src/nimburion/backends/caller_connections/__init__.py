"""Callers' connections that are passed to `enqueue`: one adapter for each driver or framework."""
