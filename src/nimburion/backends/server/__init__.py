"""What the backends of a server (Redis, PostgreSQL) share."""
