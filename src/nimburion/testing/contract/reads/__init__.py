"""Cases of the read operations."""
