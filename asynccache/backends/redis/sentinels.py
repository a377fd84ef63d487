"""Where the master is, by the sentinels: all are asked at once, the first who knows is believed."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any, final

from asynccache._background import Background
from asynccache.backends.redis.address import Address, Settings
from asynccache.backends.redis.link import Link
from asynccache.backends.redis.replies import translated
from asynccache.backends.redis.wire import Asked, Wire, pack
from asynccache.clock import Clock
from asynccache.errors import BackendError, BackendUnavailable

__all__ = ["Sentinels"]


@final
class Sentinels:
    """The sentinels of one service, each with a connection that is made when it is needed.

    Args:
        settings: Who they are.
        clock: The cache's.
        loop: The loop.
        background: Where their connections live.
    """

    track_all = False

    def __init__(
        self, settings: Settings, clock: Clock, loop: asyncio.AbstractEventLoop, background: Background
    ) -> None:
        self.settings = replace(
            settings,
            topology="single",
            db=0,
            username=settings.sentinel_username,
            password=settings.sentinel_password,
            credentials=None,
        )
        self.clock = clock
        self._command = pack(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", settings.service))
        self._links = [
            Link(self, partial(_here, address), loop, background)
            for address in (settings.addresses if settings.topology == "sentinel" else ())
        ]

    async def master(self) -> Address:
        """The master's address.

        Raises:
            BackendUnavailable: No sentinel knows it.
        """
        asked: set[Asked] = set()
        failure: BackendError | None = None
        for link in self._links:
            try:
                asked.add(link.ask(self._command, traced=False))
            except BackendError as error:
                failure = error
        while asked:
            answered, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for each in answered:
                reply = each.result()
                if isinstance(reply, Exception):
                    failure = translated(reply)
                if not isinstance(reply, list) or [type(part) for part in reply] != [bytes, bytes]:
                    continue  # it does not know, or is no sentinel
                if reply[1].isdigit() and 0 < int(reply[1]) < 65_536:
                    return reply[0].decode("ascii", "replace"), int(reply[1])
        why = "" if failure is None else f" ({failure.reason or failure})"
        raise BackendUnavailable(f"redis: no sentinel knows the master of {self.settings.service!r}{why}") from failure

    def close(self) -> None:
        """Close the connections."""
        for link in self._links:
            link.close()

    # What a link asks of its owner

    def pushed(self, message: Any) -> None:
        """Nothing is expected."""

    async def opening(self, link: Link, wire: Wire) -> int:
        """Nothing is to be done first."""
        return 0

    def lost(self, link: Link) -> None:
        """Another is made when it is needed."""

    def look_around(self) -> None:
        """There is nothing to see."""


async def _here(address: Address) -> Address:
    return address
