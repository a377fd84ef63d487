"""The keys that scenarios work on."""

import itertools
import random
from collections.abc import Sequence

__all__ = ["MANY", "Fresh", "Shuffled"]

MANY = 10_000
"""How many keys a hit is drawn from: enough that they do not all lie in the processor's first caches."""


class Shuffled:
    """Gives the same keys again and again, in a random order that is another one in each lap."""

    def __init__(self, keys: Sequence[object], seed: int = 7) -> None:
        self.all = list(keys)
        self._random = random.Random(seed)
        self._rest: list[object] = []

    def __call__(self, count: int) -> list[object]:
        while len(self._rest) < count:
            lap = self.all.copy()
            self._random.shuffle(lap)
            self._rest += lap
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken


class Fresh:
    """Gives keys that nobody has seen."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __call__(self, count: int) -> list[str]:
        return [f"new:{number}" for number in itertools.islice(self._numbers, count)]
