"""How what is owed to the servers is paid: at once, when a connection is opened, or a while later."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Final, Protocol, final

from asynccache._background import Background
from asynccache.backends.redis.intents import Debt, Intents
from asynccache.backends.redis.link import Link
from asynccache.backends.redis.replies import told
from asynccache.backends.redis.scripts import RELEASE, Script
from asynccache.backends.redis.wire import Asked, Wire, pack
from asynccache.errors import BackendError

__all__ = ["Repayment", "Servers"]

_PAUSE_SECONDS: Final = 0.25
_CLOSING_SECONDS: Final = 0.25
_MOST_AT_ONCE: Final = 500
_LOAD: Final = pack(("SCRIPT", "LOAD", RELEASE.source))


class Servers(Protocol):
    """What is needed of those who are owed."""

    def link(self, key: bytes) -> Link: ...
    def grouped(self, keys: Sequence[bytes], most: int) -> list[Sequence[bytes]]: ...
    async def ask_all(
        self, commands: Sequence[tuple[bytes, bytes]], script: Script | None = None, extra: int = 0
    ) -> list[Any]: ...


@final
class Repayment:
    """What one loop does about the debts of its store.

    Args:
        servers: The connections.
        intents: What is owed.
        background: Where its task lives.
    """

    def __init__(self, servers: Servers, intents: Intents, background: Background) -> None:
        self._servers = servers
        self._intents = intents
        self._background = background
        self._going_on = False
        self._informed: set[Link] = set()  # those whose servers know the script, as far as is known

    def at_once(self, debt: Debt) -> None:
        """Pay it after what was asked before, if the server can be reached; else a while later."""
        link = self._servers.link(debt.name)
        if link.up:
            try:
                known = link in self._informed
                command = debt.command if known else _LOAD + debt.command
                link.ask(command, int(not known), traced=False).add_done_callback(partial(self._answered, debt, link))
            except BackendError:
                pass
            else:
                return
        self.later()

    def _answered(self, debt: Debt, link: Link, asked: Asked) -> None:
        if isinstance(asked.result(), Exception):
            self._informed.discard(link)
            self.later()
        else:
            self._informed.add(link)
            self._intents.paid(debt)

    def later(self) -> None:
        """Pay all by and by, until nothing is owed."""
        if not self._going_on and not self._background.ending:
            self._going_on = True
            self._background.start(self._go_on(), Context())

    async def _go_on(self) -> None:
        try:
            while True:
                await asyncio.sleep(_PAUSE_SECONDS)
                debts = self._intents.some(_MOST_AT_ONCE)
                if not debts:
                    return
                await self._pay(debts)
        finally:
            self._going_on = False

    async def before(self, names: Iterable[bytes]) -> None:
        """Pay what is owed of these keys.

        Raises:
            BackendError: The server does not take it.
        """
        debts = self._intents.of(names)
        if debts:
            for reply in await self._pay(debts):
                told(reply)

    async def at_closing(self) -> None:
        """Pay all, as far as that can be; leases lapse by themselves, and are not waited for as long as deletions."""
        debts = self._intents.some()
        deletions = [debt for debt in debts if debt.token is None]
        leases = [debt for debt in debts if debt.token is not None]
        if deletions:
            await self._pay(deletions)
        if leases:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSING_SECONDS):
                    await self._pay(leases)

    async def at_opening(self, link: Link, wire: Wire) -> None:
        """Pay what is owed to a server, before anybody reads there: deletions are waited for, a few leases are not,
        and the other leases have time."""
        mine = [debt for debt in self._intents.some() if self._servers.link(debt.name) is link]
        leases = [debt for debt in mine if debt.token is not None][:_MOST_AT_ONCE]
        for debt, asked in zip(leases, wire.urgent(*(debt.command for debt in leases)), strict=True):
            asked.add_done_callback(partial(self._answered_at_opening, debt))
        deletions = {debt.name: debt for debt in mine if debt.token is None}
        groups = self._servers.grouped(list(deletions), _MOST_AT_ONCE)
        for start in range(0, len(groups), _MOST_AT_ONCE):
            some = groups[start : start + _MOST_AT_ONCE]
            for group, asked in zip(some, wire.urgent(*(pack((b"UNLINK", *group)) for group in some)), strict=True):
                if not isinstance(await asked, Exception):
                    for name in group:
                        self._intents.paid(deletions[name])
        if self._intents:
            self.later()  # a server that was started anew knows no script

    def _answered_at_opening(self, debt: Debt, asked: Asked) -> None:
        if not isinstance(asked.result(), Exception):
            self._intents.paid(debt)

    async def _pay(self, debts: Sequence[Debt]) -> list[Any]:
        replies = await self._servers.ask_all([(debt.name, debt.command) for debt in debts], RELEASE)
        for debt, reply in zip(debts, replies, strict=True):
            if not isinstance(reply, Exception):
                self._intents.paid(debt)
        return replies
