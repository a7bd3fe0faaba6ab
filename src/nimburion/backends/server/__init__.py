"""Code that the backends with a server (Redis, PostgreSQL) share."""
