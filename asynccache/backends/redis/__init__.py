"""The store of the ``redis://`` URLs: Redis or Valkey, one server, a replicated one behind sentinels, or a cluster."""

from asynccache.backend import StoreOptions
from asynccache.backends.redis.address import settings_of
from asynccache.backends.redis.backend import RedisBackend
from asynccache.codec import codec_of

__all__ = ["RedisBackend", "open_redis"]


def open_redis(options: StoreOptions) -> RedisBackend:
    """The store of a ``redis://`` URL, or of one of its relatives.

    Raises:
        ConfigError: The URL is not complete, or an option is unknown or ill-typed.
    """
    return RedisBackend(settings_of(options.url, options.query), codec=codec_of(options.codec), clock=options.clock)
