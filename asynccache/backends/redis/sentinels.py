"""Where the master is, by the sentinels: all are asked at once, the first who knows is believed."""

from asyncio import Future, get_running_loop
from contextvars import Context
from typing import Any, cast

from asynccache._background import Background
from asynccache.backends.redis.address import Address, Settings
from asynccache.errors import BackendUnavailable

__all__ = ["find_master"]


async def find_master(settings: Settings, background: Background) -> Address:
    """The master's address.

    Args:
        settings: Who the sentinels are.
        background: Where they are asked.

    Raises:
        BackendUnavailable: No sentinel knows it.
    """
    found: Future[Address | None] = get_running_loop().create_future()
    asked = list(settings.addresses)

    async def ask(address: Address) -> None:
        master = None
        try:
            master = await _asked(settings, address)
        finally:
            asked.remove(address)
            if not found.done() and (master is not None or not asked):
                found.set_result(master)

    tasks = [background.start(ask(address), Context()) for address in settings.addresses]
    try:
        master = await found
    finally:
        for task in tasks:
            background.cancel(task)
    if master is None:
        raise BackendUnavailable("redis: no sentinel knows the master")
    return master


async def _asked(settings: Settings, address: Address) -> Address | None:
    """What one sentinel says."""
    # Slow to import, and seldom needed.
    from redis.asyncio.sentinel import Sentinel
    from redis.exceptions import RedisError

    options: dict[str, Any] = {
        "socket_timeout": settings.timeout,
        "socket_connect_timeout": settings.timeout,
        "username": settings.sentinel_username,
        "password": settings.sentinel_password,
        **settings.tls,
    }
    sentinels = Sentinel([address], **options)  # type: ignore[no-untyped-call]
    try:
        return cast(Address, await sentinels.discover_master(settings.service))
    except (RedisError, OSError):
        return None
    finally:
        for client in sentinels.sentinels:
            await client.aclose()
