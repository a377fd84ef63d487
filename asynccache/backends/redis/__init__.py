"""The store of the ``redis://`` URLs: Redis or Valkey, one server, a replicated one behind sentinels, or a cluster."""

from asynccache.backends.redis.backend import RedisBackend, open_redis

__all__ = ["RedisBackend", "open_redis"]
