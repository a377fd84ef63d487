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
from asynccache.backends.redis.replies import all_told
from asynccache.backends.redis.scripts import RELEASE, Script
from asynccache.backends.redis.wire import Asked, Wire, pack
from asynccache.errors import BackendError

__all__ = ["Repayment", "Servers"]

_PAUSE_SECONDS: Final = 0.25
_BREATH_SECONDS: Final = 0.005  # between one part and the next: others have commands, too
_CLOSING_SECONDS: Final = 1.0
_MOST_AT_ONCE: Final = 500
_MOST_AT_OPENING: Final = 2_000
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
        self._under_way: list[tuple[set[bytes], asyncio.Future[None]]] = []
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
        pause = _PAUSE_SECONDS
        try:
            while True:
                await asyncio.sleep(pause)
                self._intents.tell()  # the last that were dropped
                debts = self._intents.some(_MOST_AT_ONCE)
                if not debts:
                    return
                failed = any(isinstance(reply, Exception) for reply in await self._pay(debts))
                pause = _PAUSE_SECONDS if failed else _BREATH_SECONDS
        finally:
            self._going_on = False

    async def before(self, names: Iterable[bytes]) -> None:
        """Pay what is owed of these keys.

        Raises:
            BackendError: The server does not take it.
        """
        debts = self._intents.of(names)
        if debts:
            all_told(await self._pay(debts))

    async def over(self, name: bytes) -> None:
        """Return when no deletion of the key is on its way: what another connection writes might come before it, though
        the debt has been paid by another deletion meanwhile."""
        for names, ended in list(self._under_way):
            if name in names:
                await asyncio.wait([ended])  # which is everybody's: a caller who is cancelled does not cancel it

    async def at_closing(self) -> None:
        """Pay all, as far as that can be; leases lapse by themselves, and are not waited for as long as deletions."""
        debts = self._intents.some()
        for kind, seconds in (
            ([debt for debt in debts if debt.token is None], _CLOSING_SECONDS),
            ([debt for debt in debts if debt.token is not None], _CLOSING_SECONDS / 4),
        ):
            if kind:
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._pay(kind)

    async def at_opening(self, link: Link, wire: Wire) -> int:
        """Pay some of what is owed to a server, before anybody reads there: deletions are waited for, leases are not.
        Who reads a key of the others pays for that one first. How many deletions were made."""
        some = [debt for debt in self._intents.some(_MOST_AT_OPENING) if self._servers.link(debt.name) is link]
        leases = [debt for debt in some if debt.token is not None]
        for debt, asked in zip(leases, wire.urgent(*(debt.command for debt in leases)), strict=True):
            asked.add_done_callback(partial(self._answered_at_opening, debt))
        groups = self._grouped([debt for debt in some if debt.token is None])
        made = 0
        for group, asked in zip(groups, wire.urgent(*map(_deletion, groups)), strict=True):
            made += self._settle(group, await asked)
        if self._intents:
            self.later()  # a server that was started anew knows no script
        return made

    def _answered_at_opening(self, debt: Debt, asked: Asked) -> None:
        self._settle([debt], asked.result())

    async def _pay(self, debts: Sequence[Debt]) -> list[Any]:
        """Pay them, deletions by the hundred; the replies."""
        groups = self._grouped([debt for debt in debts if debt.token is None])
        groups += [[debt] for debt in debts if debt.token is not None]
        commands = [
            (group[0].name, _deletion(group) if group[0].token is None else group[0].command) for group in groups
        ]
        under_way = {debt.name for debt in debts if debt.token is None}, asyncio.get_running_loop().create_future()
        self._under_way.append(under_way)
        try:
            replies = await self._servers.ask_all(commands, RELEASE)
        finally:
            self._under_way.remove(under_way)
            under_way[1].set_result(None)
        for group, reply in zip(groups, replies, strict=True):
            self._settle(group, reply)
        return replies

    def _grouped(self, deletions: Sequence[Debt]) -> list[list[Debt]]:
        debts = {debt.name: debt for debt in deletions}
        return [[debts[name] for name in group] for group in self._servers.grouped(list(debts), _MOST_AT_ONCE)]

    def _settle(self, debts: Sequence[Debt], reply: Any) -> int:
        """Strike out what has been done; how many."""
        if isinstance(reply, Exception):
            return 0
        for debt in debts:
            self._intents.paid(debt)
        return len(debts)


def _deletion(debts: Iterable[Debt]) -> bytes:
    return pack((b"UNLINK", *(debt.name for debt in debts)))
