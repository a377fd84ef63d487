"""What a Redis store owes its servers, because it has failed, and when that is paid."""

from waiting import comes

from asynccache import Cache
from asynccache.backends.redis import RedisBackend

__all__ = ["owed", "repaid"]


def owed(cache: Cache) -> int:
    """How many debts there are: keys to be deleted, and leases to be given back, when the server is back."""
    health = cache._core.health
    assert health is not None
    return health.owed


async def repaid(cache: Cache) -> None:
    """Return when nothing is owed, and nobody is about to pay either: whatever was sent for it has been answered."""
    store = cache.redis._store
    assert isinstance(store, RedisBackend)
    await comes(lambda: not store.intents and not any(pool.repayment._going_on for pool in store._pools.values()))
