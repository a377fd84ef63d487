"""The times and tags of an entry of the local seat."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, final

__all__ = ["Life", "commonest_ttl"]

_SLIDING_SHARE: Final = 0.1


@final
class Life:
    """The times and tags of an entry; times are monotonic seconds of the store's clock, ``math.inf`` for never.

    Attributes:
        created_at: When it was stored.
        fresh_until: Until when it is returned without a load.
        expires_at: Until when it can stand in for a failing load.
        refresh_at: From when a hit starts a refresh in the background.
        tags: Its tags.
        stamp: Where the order of invalidations stood when the work that made the value began.
        sliding: The ttl that every hit gives again, or ``None``.
        slides_at: From when a hit does.
        versions: The tags' versions on a remote store, for a copy of a remote entry.
    """

    __slots__ = (
        "created_at", "expires_at", "fresh_until", "refresh_at", "slides_at", "sliding", "stamp", "tags", "versions",
    )  # fmt: skip

    def __init__(
        self,
        created_at: float,
        fresh_until: float = math.inf,
        expires_at: float = math.inf,
        *,
        refresh_at: float = math.inf,
        tags: tuple[str, ...] = (),
        stamp: int = 0,
        sliding: float | None = None,
        slides_at: float = -math.inf,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.created_at = created_at
        self.fresh_until = fresh_until
        self.expires_at = expires_at
        self.refresh_at = refresh_at
        self.tags = tags
        self.stamp = stamp
        self.sliding = sliding
        self.slides_at = slides_at
        self.versions = versions

    @property
    def quick_until(self) -> float:
        """Until when a hit needs no second look."""
        if self.tags:
            return -math.inf
        return min(self.fresh_until, self.refresh_at if self.sliding is None else self.slides_at)

    def slide_seldom(self) -> None:
        """Have a hit give the whole ttl again when a tenth of it has passed: a remote store is told of each."""
        if self.sliding is not None:
            self.slides_at = self.fresh_until - self.sliding * (1.0 - _SLIDING_SHARE)

    def until(self, end: float) -> "Life":
        """This life, but without grace and over at ``end`` at the latest: that of a copy."""
        end = min(self.fresh_until, end)
        return Life(
            self.created_at,
            end,
            end,
            refresh_at=self.refresh_at,
            tags=self.tags,
            stamp=self.stamp,
            sliding=self.sliding,
            slides_at=self.slides_at,
            versions=self.versions,
        )


def commonest_ttl(usual: float, others: dict[str, float], ordinary: Iterable[str]) -> float:
    """The ttl that most entries have.

    A store remembers no ttl for those that have the usual one. This brings its table up to date when another has
    become the usual one.

    Args:
        usual: The ttl of those that are not in ``others``.
        others: The ttls of the rest; changed in place.
        ordinary: The keys of all entries that have a ttl and nothing more.
    """
    common, count = Counter(others.values()).most_common(1)[0]
    plain = [key for key in ordinary if key not in others]
    if count <= len(plain):
        return usual
    for key in [key for key, ttl in others.items() if ttl == common]:
        del others[key]
    others.update(dict.fromkeys(plain, usual))
    return common
