"""Telemetry: metrics, traces and logs. No module is imported before you use it."""
