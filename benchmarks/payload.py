"""The payload of every job: 250 bytes of compact JSON. Imports nothing, since peers read it too."""

from __future__ import annotations

PAYLOAD = {
    "to": "somebody@example.com",
    "subject": "Your weekly report is ready",
    "body": "x" * 171,
}
