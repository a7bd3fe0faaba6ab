"""The Redis and Valkey backend: a single server, Sentinel's primary, or a cluster."""

from nimburion.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
