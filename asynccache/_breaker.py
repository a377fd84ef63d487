"""A circuit breaker: after a failure it says when to try again, so that callers of what is away do not wait for it.

*Closed*, everything passes. *Open*, nothing does, until the pause is over, which doubles with each failure. Then it is
*half open*: one attempt is made in the background, which closes or opens it. The pattern is Nygard's (Release It!,
2007).
"""

import math
import random
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, final

__all__ = ["Breaker", "BreakerState"]

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]

_FIRST_PAUSE: Final = 0.06
_LONGEST_PAUSE: Final = 0.4
_TOLD_SECONDS: Final = 1.0
_FORGOTTEN_SECONDS: Final = 5.0  # a caller who comes this long after the last failure is worth a wait


@final
class Breaker:
    """Remembers failures of one server, for all connections to it: one of them tries.

    Args:
        now: Seconds that never go back.
    """

    __slots__ = ("_failed_at", "_failures", "_now", "_probing", "_quiet_until", "_retry_at", "_since", "_told")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures = 0
        self._failed_at = 0.0
        self._retry_at = 0.0
        self._probing = False
        self._since = 0.0
        self._told = False
        self._quiet_until = -math.inf

    @property
    def state(self) -> BreakerState:
        """What it lets through now."""
        if not self.tripped:
            return "closed"
        return "half_open" if self._now() >= self._retry_at else "open"

    @property
    def failed_at(self) -> float | None:
        """When it failed last, if nothing has succeeded since."""
        return self._failed_at if self._failures else None

    @property
    def tripped(self) -> bool:
        """Whether a caller is to be refused rather than kept waiting."""
        return self._failures > 0 and self._now() - self._failed_at < _FORGOTTEN_SECONDS

    def allows(self) -> bool:
        """Whether an attempt may be made now."""
        return self._failures == 0 or (not self._probing and self._now() >= self._retry_at)

    def probe(self) -> bool:
        """Note that an attempt begins; whether it is the one that others wait for until it has `probed`."""
        self._probing = self._failures > 0
        return self._probing

    def probed(self) -> None:
        """Note that such an attempt has come to nothing, so that another may be made."""
        self._probing = False

    def failed(self, began: float = math.inf) -> bool:
        """Note a failure: nobody tries for a while. Whether it is to be told: the first is, at most once a second.

        Args:
            began: When what has failed was begun: before the latest failure, this one tells nothing new.
        """
        if began < self._failed_at:
            return False
        self._failures += 1
        self._failed_at = self._now()
        if self._failures == 1:
            self._since = self._failed_at
        pause = min(_FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10), _LONGEST_PAUSE)
        self._retry_at = self._failed_at + pause * random.uniform(0.9, 1.1)  # so that processes spread
        if self._told or self._failed_at < self._quiet_until:
            return False
        self._told, self._quiet_until = True, self._failed_at + _TOLD_SECONDS
        return True

    def succeeded(self) -> float | None:
        """Forget all failures; for how many seconds there were some, if that was told."""
        seconds = self._now() - self._since if self._told else None
        self._failures = 0
        self._failed_at = 0.0
        self._probing = self._told = False
        return seconds
