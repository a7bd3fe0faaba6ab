"""The Redis and Valkey store: many hosts, one server, Sentinel's primary or a cluster."""

from nimburion.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
