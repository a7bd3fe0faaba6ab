"""The Lua scripts that run inside the server; see `nimburion.backends.redis.scripts`."""
