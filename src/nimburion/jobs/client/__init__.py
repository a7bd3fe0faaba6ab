"""The client: enqueue jobs and ask about them."""
