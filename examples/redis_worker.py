"""One process of the service that ``demo_redis.py`` shows, with the callers who want something from it.

It takes its orders from stdin and reports on stdout, a line of JSON each, and ends when stdin does.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from random import Random
from time import monotonic  # one clock for all processes of a machine
from typing import Any

from crowd import zipf

from asynccache import Cache

__all__ = ["ITEMS", "LOOKS_A_SECOND", "PATIENCE", "REPORT_SECONDS", "TTL", "Schedule", "Service", "until"]

REPORT_SECONDS = 0.5  # what `report` takes
ITEMS = range(48)
TTL = "1s"  # of a `price`
LOOKS_A_SECOND = 20  # at the counters
PATIENCE = 5.0  # seconds after which a request counts as failed

_QUICKEST, _SLOWEST = 0.020, 0.050  # seconds that the prices take
_THINKING = 0.020  # seconds, on average, between an answer and the caller's next request


@dataclass(frozen=True, slots=True)
class Schedule:
    """When things happen in the second act, by `time.monotonic`."""

    begin: float
    kill: float
    restart: float
    end: float


class Service:
    """Two slow functions behind one cache.

    Attributes:
        runs: How often each of them ran.
    """

    def __init__(self, cache: Cache) -> None:
        """Memoize the functions."""
        self.cache = cache
        self.runs = runs = Counter[str]()

        @cache.memoize(key="report", ttl="10m", grace="1h")
        async def report() -> str:
            runs["report"] += 1
            await asyncio.sleep(REPORT_SECONDS)
            return "all is well"

        @cache.memoize(key="price:{item}", ttl=TTL, grace="1m")
        async def price(item: int) -> dict[str, int]:
            runs["price"] += 1
            await asyncio.sleep(_QUICKEST + (_SLOWEST - _QUICKEST) * item / len(ITEMS))
            return {"item": item, "price": 100 + item}

        self.report = report
        self.price = price

    def counted(self) -> dict[str, int]:
        """What has been counted until now."""
        stats = self.cache.stats()
        return {
            "hits": stats.hits + stats.stale_hits,
            "coalesced": stats.coalesced,
            "errors": stats.errors,
            "loads": self.runs.total(),
        }


async def rush(service: Service, callers: int, begin: float) -> dict[str, Any]:
    """What so many callers got who asked for one key at once."""
    await until(begin)
    begun = monotonic()
    answers = await asyncio.gather(*(service.report() for _ in range(callers)), return_exceptions=True)
    return {
        "begun": begun,
        "ended": monotonic(),
        "callers": callers,
        "failed": [repr(answer) for answer in answers if answer != "all is well"],
        **service.counted(),
    }


async def traffic(service: Service, callers: int, seed: int, schedule: Schedule) -> dict[str, Any]:
    """What became of the requests of so many callers, each of whom asks again when it has its answer."""
    begun: list[float] = []
    took: list[float] = []
    failed: list[tuple[float, str]] = []
    asking: dict[int, float] = {}

    async def call(caller: int) -> None:
        random = Random(seed * callers + caller)
        items = zipf([str(item) for item in ITEMS], 2_000, skew=0.8, seed=random.getrandbits(32))
        await asyncio.sleep(random.random() * _THINKING)
        for item in map(int, cycle(items)):
            now = monotonic()
            if now >= schedule.end:
                return
            asking[caller] = now
            try:
                answer = await service.price(item)
            except Exception as error:  # whatever it is, a request has failed
                failed.append((now, repr(error)))
            else:
                if answer != {"item": item, "price": 100 + item}:
                    failed.append((now, f"a wrong answer: {answer!r}"))
            begun.append(now)
            took.append(monotonic() - now)
            del asking[caller]
            await asyncio.sleep(random.expovariate(1 / _THINKING))

    async def look() -> None:
        while True:
            _say(at=monotonic(), answered=len(begun), failed=len(failed), **service.counted())
            await asyncio.sleep(1 / LOOKS_A_SECOND)

    await until(schedule.begin)
    marks = [service.counted()]
    looking = asyncio.create_task(look())
    crowd = [asyncio.create_task(call(caller)) for caller in range(callers)]
    try:
        for moment in (schedule.kill, schedule.restart):
            await until(moment)
            marks.append(service.counted())
        await until(schedule.end)
        await asyncio.wait(crowd, timeout=PATIENCE)
        marks.append(service.counted())
        failed += [(since, f"no answer in {PATIENCE:g} s") for since in asking.values()]
    finally:
        for task in (*crowd, looking):
            task.cancel()
        await asyncio.wait([*crowd, looking])
    return {"begun": begun, "took": took, "failed": failed, "marks": marks}


async def until(moment: float) -> None:
    """Return when `time.monotonic` has come so far."""
    await asyncio.sleep(max(0.0, moment - monotonic()))


def _say(**said: Any) -> None:
    with suppress(BrokenPipeError):  # the parent is gone, and stdin says so in a moment
        print(json.dumps(said), flush=True)


async def _obey(url: str, orders: asyncio.Queue[dict[str, Any]]) -> None:
    """Carry out one order after the other."""
    async with Cache(url, namespace="demo", ttl="10m") as cache:
        service = Service(cache)
        if not await cache.ping():
            raise RuntimeError("the server does not answer")
        _say(ready=True)
        while True:
            order = await orders.get()
            if order["act"] == "rush":
                done = await rush(service, order["callers"], order["begin"])
            else:
                done = await traffic(service, order["callers"], order["seed"], Schedule(**order["schedule"]))
            _say(done=done)


async def _serve(url: str) -> None:
    """Obey until stdin ends, as it does when the parent is killed, too."""
    logging.getLogger("asynccache").addHandler(logging.NullHandler())  # the table has the failures
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        obeying = group.create_task(_obey(url, orders))
        while line := await reader.readline():
            orders.put_nowait(json.loads(line))
        obeying.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the Redis that the processes share")
    asyncio.run(_serve(parser.parse_args().url))
