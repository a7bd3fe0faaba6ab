"""Durable runs: their steps, their waits, the signals to them, and how they are cancelled."""
