"""The traces: four generated ones, and the recorded one that lies in ``traces/``."""

import gzip
import random
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

__all__ = ["TRACES", "loop", "recorded", "shifting", "zipf", "zipf_and_scan"]


def zipf(length: int, keys: int = 10_000, exponent: float = 0.9, seed: int = 1) -> Sequence[int]:
    """Independent draws, the n-th most popular key with a chance in proportion to ``n ** -exponent``."""
    weights = list(accumulate(rank**-exponent for rank in range(1, keys + 1)))
    return random.Random(seed).choices(range(keys), cum_weights=weights, k=length)


def zipf_and_scan(length: int, seed: int = 2) -> Sequence[int]:
    """Zipf 0.9, broken again and again by a walk over keys that are asked for once and never again."""
    popular = iter(zipf(length, seed=seed))
    trace: list[int] = []
    scanned = 1_000_000
    while len(trace) < length:
        trace += [next(popular) for _ in range(min(3_000, length - len(trace)))]
        walk = min(1_000, length - len(trace))
        trace += range(scanned, scanned + walk)
        scanned += walk
    return trace


def loop(length: int, keys: int = 3_000, seed: int = 3) -> Sequence[int]:
    """The same keys round and round, with one access in ten a Zipf draw from others: the worst that LRU can meet."""
    popular = zipf(length, seed=seed)
    choose = random.Random(seed)
    trace: list[int] = []
    turn = 0
    for other in popular:
        if choose.random() < 0.1:
            trace.append(keys + other)
        else:
            trace.append(turn % keys)
            turn += 1
    return trace


def shifting(length: int, phases: int = 10, seed: int = 4) -> Sequence[int]:
    """Zipf 0.9 whose popular keys are other ones in each phase: what was frequent is a burden."""
    choose = random.Random(seed)
    trace: list[int] = []
    for phase in range(phases):
        renamed = list(range(10_000))
        choose.shuffle(renamed)
        trace += [renamed[key] for key in zipf(length // phases, seed=seed * 100 + phase)]
    return trace


def recorded(length: int) -> Sequence[int]:
    """``stdlib-names``, or its beginning."""
    trace = array("I")
    trace.frombytes(gzip.decompress((Path(__file__).parent / "traces" / "stdlib-names.u32.gz").read_bytes()))
    if sys.byteorder == "big":
        trace.byteswap()
    return trace[:length]


TRACES: Mapping[str, Callable[[int], Sequence[int]]] = {
    "zipf 0.9": zipf,
    "zipf + scan": zipf_and_scan,
    "loop": loop,
    "shifting hot set": shifting,
    "stdlib names": recorded,
}
