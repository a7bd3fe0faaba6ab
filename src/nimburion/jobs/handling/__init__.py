"""What a handler receives: its context, its transaction, and what runs around it."""
