"""Job declarations: classes and functions, typed fields, payloads, policies and the handler
context."""
