"""Telemetry: metrics, traces and logs. Nothing here is imported or paid for until it is used."""
