"""The scripts that run inside the server; see `nimburion.backends.redis.scripts`."""
