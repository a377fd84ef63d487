"""The copies of a remote store's entries in the local one: which are made, how long they are believed, when they go.

A copy is made of what was read, unless a write came between the question and the answer. Where the store tells of
changes (`Coherence`), a copy lives as long as its entry, until the store says that it has changed, or that it cannot
tell any more. Where it does not, a copy is believed for a second at most, or as long as the user of the local store
said.

A copy with tags is believed while the versions of its tags, as they were read last, are its own; a version that has
changed since is not known, and the copies with that tag are read again.

A store tells of what was *read* from it. What a process writes by itself is no copy of that kind: it is not kept where
copies are to be coherent, and the next read fetches it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, final

from asynccache._life import Life
from asynccache._tags import record_key, tag_of
from asynccache.backend import Backend, Coherence
from asynccache.backends.memory import MemoryBackend

__all__ = ["Copies"]

_INCOHERENT_SECONDS: Final = 1.0
_MOST_VERSIONS: Final = 100_000


@final
class Copies:
    """What the local seat has of the remote one's.

    Args:
        local: The local store, if there is one.
        remote: The remote store, if there is one.
    """

    def __init__(self, local: MemoryBackend | None, remote: Backend | None) -> None:
        self._local = local
        self._versions: dict[str, str] = {}
        self._reading: dict[str, object] = {}
        self._coherence: Coherence | None = None
        if local is None or remote is None:
            return
        self._coherence = remote.coherence
        if self._coherence is not None:
            self._coherence.watch(self.changed)
        elif local.max_ttl is None:
            local.max_ttl = _INCOHERENT_SECONDS

    # Reading

    def reading(self, keys: Iterable[str]) -> object:
        """Note that the keys are being read; what `undisturbed` and `read` are to be given."""
        token = object()
        self._reading.update(dict.fromkeys(keys, token))
        return token

    def undisturbed(self, key: str, token: object) -> bool:
        """Whether nobody has written the key since it was asked for."""
        return self._reading.get(key) is token

    def read(self, keys: Iterable[str], token: object) -> None:
        """Note that the keys have been read."""
        reading = self._reading
        for key in keys:
            if reading.get(key) is token:
                del reading[key]

    def keep(self, key: str, value: Any, now: float, life: Life) -> None:
        """Keep what was read, undisturbed."""
        if self._local is None or now >= life.fresh_until:
            return
        if self._coherence is not None and not self._coherence.live:
            life = life.until(now + _INCOHERENT_SECONDS)
        self._local.put(key, value, now, None, life)

    def read_versions(self, versions: Mapping[str, str], token: object) -> None:
        """Note the versions of tags that have been read."""
        if self._coherence is None:
            return
        if len(self._versions) + len(versions) > _MOST_VERSIONS:
            self._versions.clear()
        for tag, version in versions.items():
            if self.undisturbed(record_key(tag), token):
                self._versions[tag] = version

    def believes(self, life: Life) -> bool:
        """Whether the tags of a copy still have the versions that they had."""
        if self._coherence is None or not life.versions:
            return True
        known = self._versions
        return all(known.get(tag) == version for tag, version in life.versions.items())

    # Writing

    def disturb(self, key: str) -> None:
        """Note that the key is being written: what is being read of it may be older."""
        self._reading.pop(key, None)

    def disturb_all(self) -> None:
        """Note that any key may be written."""
        self._reading.clear()

    def written(self, key: str, value: Any, now: float, ttl: float | None, life: Life | None) -> bool:
        """Have the local store hold what was written, where nobody else can change it unheard."""
        if self._local is None:
            return True
        if self._coherence is None:
            if life is not None:
                life.slide_seldom()
            return self._local.put(key, value, now, ttl, life)
        self._local.remove(key)
        return True

    def unsent(self, key: str, value: Any, now: float, ttl: float | None, life: Life | None) -> None:
        """Have the local store hold, for a moment, what the remote one could not be given."""
        if self._local is None:
            return
        if self._coherence is not None:
            life = life or (Life(now) if ttl is None else Life(now, now + ttl, now + ttl))
            life = life.until(now + _INCOHERENT_SECONDS)
        self._local.put(key, value, now, ttl, life)

    # What the store tells

    def changed(self, keys: Sequence[str] | None) -> None:
        """Drop the copies of keys that have changed; all of them when any key may have."""
        local = self._local
        if local is None:
            return
        if keys is None:
            self._reading.clear()
            self._versions.clear()
            local.clear()
            return
        for key in keys:
            self._reading.pop(key, None)
            tag = tag_of(key)
            if tag is None:
                local.remove(key)
            else:
                self._versions.pop(tag, None)
