"""Entries to bytes and back: the one format of everything that leaves the process.

::

    offset  bytes  format version 1; numbers are big-endian
    0       1      magic, 0xAC: no JSON, text or pickle begins with it
    1       1      format version
    2       1      the serializer's number
    3       1      flags: 1 lz4, 2 signed, 4 encrypted, 8 tags, 16 plain data of a type; the rest are zero
    4       6      when the entry was made: seconds since 1970, times 65,536
    10      5      how long it is fresh after that: seconds times 1,024; all ones: for ever
    15      5      how long it can stand in after that (its grace), likewise
    20      4      the CRC-32 of binding and body; zero where the entry is signed or encrypted
    24             with flag 8, the tags: their number (2 bytes); for each its name and its version, each as
                   length (2 bytes) and UTF-8
                   with flag 2, HMAC-SHA-256 of binding and body (32 bytes)
                   the body: the serializer's bytes
                     with flag 1, their length (4 bytes) and an lz4 block
                     with flag 4, a nonce (12 bytes) and what AES-256-GCM makes of that, the binding as its
                     associated data
    binding        bytes 0-3, the tags as above, the whole key's length (4 bytes) and the whole key in UTF-8

The record of a tag, whose key ends in two NULs and ``tag``, has the tag's version as a text, whatever the serializer.

The times are bound by neither checksum nor signature, so that a store can give an entry new ones without its secrets.
The *whole key* is that of the store, the namespace in front: an entry that is moved to another key is none. Secrets
are derived from the user's by BLAKE2b, one for signing and one for encryption.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from struct import Struct
from struct import error as StructError
from typing import Any, Final, final

from asynccache._compression import compressed, expanded
from asynccache._layout import (
    FOREVER,
    LATEST,
    LONGEST,
    SPAN_TICKS,
    TAG_RECORD,
    TICKS,
    binding,
    spans,
    tags_bytes,
    tags_from,
    times_from,
    utf8,
)  # fmt: skip
from asynccache._seals import MAC_BYTES, Encryption, Seal, Signature, secret_of
from asynccache.entry import MISSING, Entry
from asynccache.errors import ConfigError, DecodeError, EncodeError
from asynccache.serializer import Serializer
from asynccache.serializers.json import JsonSerializer
from asynccache.serializers.plain import BytesSerializer, StrSerializer

__all__ = ["Codec", "codec_of"]

_MAGIC: Final = 0xAC
_VERSION: Final = 1
_LZ4, _SIGNED, _ENCRYPTED, _TAGS, _TYPED = 1, 2, 4, 8, 16
_SEALED: Final = _SIGNED | _ENCRYPTED
_HEADER: Final = Struct(">BBBBHIBIBII")
_TIMES: Final = Struct(">BIBI")
_TIMES_AT: Final = 10
_DEFAULT_COMPRESS: Final = 1_024
_DEFAULT_MAX_BYTES: Final = 64 * 1_024 * 1_024


@final
class Codec:
    """Entries to bytes and back, by one serializer.

    Args:
        serializer: ``"json"``, ``"bytes"``, ``"str"``, ``"pickle"``, or a `Serializer`.
        keys: Secrets of at least 16 bytes, for signing (or encryption): the first writes, all read. ``"pickle"`` needs
            one.
        encrypt: Whether to encrypt with AES-256-GCM by the keys instead of signing; takes the ``crypto`` extra.
        compress: From how many bytes lz4 is tried (it is used where it helps); ``None`` for never.
        max_bytes: The largest value that is written or read, as the serializer has it.
        plain: Whether to write the serializer's bytes alone, for other programs to read: without header, tags, grace,
            compression and keys.

    Raises:
        ConfigError: The options contradict each other, or a library is missing.
    """

    __slots__ = (
        "_compress", "_digits", "_loads", "_number", "_records", "_sealing", "_seals", "_serializer", "_simple",
        "_simple_below", "_simple_crc", "_simple_from", "_simple_to", "max_bytes", "plain",
    )  # fmt: skip

    def __init__(
        self,
        serializer: str | Serializer = "json",
        *,
        keys: Sequence[str | bytes] = (),
        encrypt: bool = False,
        compress: int | None = _DEFAULT_COMPRESS,
        max_bytes: int = _DEFAULT_MAX_BYTES,
        plain: bool = False,
    ) -> None:
        if isinstance(keys, str | bytes) or not isinstance(keys, Sequence):  # a set has no first one
            raise ConfigError("codec: keys is a list of secrets, not one")
        secrets = [secret_of(key) for key in keys]
        if encrypt and not secrets:
            raise ConfigError("codec: encryption takes keys=[...]")
        if plain and (secrets or encrypt):
            raise ConfigError("codec: plain values are neither signed nor encrypted")
        if type(max_bytes) is not int or not 0 < max_bytes < 2**32:
            raise ConfigError(f"codec: max_bytes is a whole number from 1 to {2**32 - 1:,}, not {max_bytes!r}")
        if compress is not None and (type(compress) is not int or compress < 0):
            raise ConfigError(f"codec: compress is a number of bytes, or None, not {compress!r}")
        if isinstance(serializer, str):
            serializer = _serializer_named(serializer, signed=bool(secrets), plain=plain)
        elif isinstance(serializer, type) or not hasattr(serializer, "dumps"):
            raise ConfigError(
                "codec: serializer is a name or a Serializer, an object with name, number, dumps and loads"
            )
        elif type(number := getattr(serializer, "number", None)) is not int or not 128 <= number <= 255:
            raise ConfigError(
                f"codec: {type(serializer).__name__}: a serializer of your own has a number from 128 to 255"
            )
        self._serializer = serializer
        self._number = serializer.number
        self._loads = serializer.loads
        self._digits = isinstance(serializer, JsonSerializer)
        self._compress = math.inf if compress is None or plain else compress
        # A tag's version is text, whatever the values are.
        self._records = (
            None if plain or serializer.number == StrSerializer.number else Codec("str", keys=keys, encrypt=encrypt)
        )
        self._seals: list[Seal] = [(Encryption if encrypt else Signature)(secret) for secret in secrets]
        self._sealing = 0 if not secrets else _ENCRYPTED if encrypt else _SIGNED
        self.max_bytes = max_bytes
        self.plain = plain
        simple = bytes((_MAGIC, _VERSION, self._number, 0))
        self._simple = int.from_bytes(simple, "big")
        self._simple_crc = zlib.crc32(simple)
        # Nothing is as long as what has a seal, or no header.
        self._simple_from = _LARGE if secrets or plain else _HEADER.size
        self._simple_to = min(_LARGE, max_bytes + 1)
        self._simple_below = 0 if secrets or plain else self._compress

    def encode(self, key: str, entry: Entry, shift: float = 0.0) -> bytes:
        """The entry as bytes, for this key alone.

        Args:
            key: The whole key.
            entry: The entry.
            shift: Seconds by which the store's clock is ahead of the cache's.

        Raises:
            EncodeError: The value would not come back equal, or is too large.
            ConfigError: Plain values have neither tags nor grace.
        """
        return b"".join(self.encode_parts(key, entry, shift))

    def encode_parts(self, key: str, entry: Entry, shift: float = 0.0) -> tuple[bytes, bytes]:
        """As `encode`: what stands before the value, and the value. To copy ten megabytes takes a millisecond."""
        if self._records is not None and key.endswith(TAG_RECORD):
            return self._records.encode_parts(key, entry, shift)
        return self._encoded(key, self._body(entry.value), entry, shift)

    def encode_fresh(self, name: bytes, value: Any, now: float, ttl: float | None) -> bytes | None:
        """What `encode` makes of an entry that is made now and of which a ttl says all; ``None`` where it would raise.

        Args:
            name: The whole key in UTF-8.
            value: The value.
            now: Seconds since 1970 by the clock of the store.
            ttl: Seconds that it is fresh; ``None`` for ever.
        """
        try:
            body = self._body(value)
        except Exception:  # as in plain_value
            return None
        fresh = FOREVER if ttl is None else int(min(ttl * SPAN_TICKS, FOREVER))
        if len(body) >= self._simple_below or fresh > LONGEST:
            until = math.inf if ttl is None else now + ttl
            entry = Entry(value=None, created_at=now, fresh_until=until, expires_at=until)
            return b"".join(self._encoded(name.decode(), body, entry, 0.0))
        made = int(now * TICKS)
        check = _crc32(body, _crc32(name, _crc32(_pack_length(len(name)), self._simple_crc)))
        head = self._simple, made >> 32, made & 0xFFFFFFFF, fresh >> 32, fresh & 0xFFFFFFFF, check
        return _SIMPLE.pack(*head) + body

    def _body(self, value: Any) -> bytes:
        body = self._serializer.dumps(value)
        if len(body) > self.max_bytes:
            raise EncodeError(f"a value of {len(body):,} bytes is more than max_bytes={self.max_bytes:,}")
        return body

    def _encoded(self, key: str, body: bytes, entry: Entry, shift: float) -> tuple[bytes, bytes]:
        if self.plain:
            if entry.tags or entry.expires_at != entry.fresh_until:
                raise ConfigError("codec: plain values have neither tags nor grace")
            return b"", body
        if len(body) < self._compress and not (self._seals or entry.tags or entry.typed):  # what most entries are
            whole = utf8(key)
            check = zlib.crc32(body, zlib.crc32(whole, zlib.crc32(_LENGTH.pack(len(whole)), self._simple_crc)))
            return self._header(0, entry, shift, check), body
        flags = self._sealing
        if len(body) >= self._compress and (packed := compressed(body)) is not None:
            body = packed
            flags |= _LZ4
        if entry.typed:
            flags |= _TYPED
        tags = b""
        if entry.tags:
            flags |= _TAGS
            tags = tags_bytes(entry.tags)
        bound = binding(bytes((_MAGIC, _VERSION, self._number, flags)), tags, key)
        check, proof = 0, b""
        if self._seals:
            proof, body = self._seals[0].seal(bound, body)
        else:
            check = zlib.crc32(body, zlib.crc32(bound))
        return b"".join((self._header(flags, entry, shift, check), tags, proof)), body

    def _header(self, flags: int, entry: Entry, shift: float, check: int) -> bytes:
        made = min(max(int((entry.created_at + shift) * TICKS), 0), LATEST)
        fresh, grace = spans(made, entry.fresh_until + shift, entry.expires_at + shift)
        return _HEADER.pack(
            _MAGIC, _VERSION, self._number, flags,
            made >> 32, made & 0xFFFFFFFF, fresh >> 32, fresh & 0xFFFFFFFF, grace >> 32, grace & 0xFFFFFFFF, check,
        )  # fmt: skip

    def decode(self, key: str, data: bytes, shift: float = 0.0, more: Sequence[bytes] = ()) -> Entry:
        """The entry that the bytes stand for, under this key; a plain one without its times.

        Args:
            key: The whole key.
            data: The bytes, or the first of them: at least the header.
            shift: As in `encode`.
            more: The rest of them.

        Raises:
            DecodeError: They are damaged, of another version, format, serializer or key, or not signed as they should
                be.
        """
        if self._records is not None and key.endswith(TAG_RECORD):
            return self._records.decode(key, data, shift, more)
        if self.plain:
            data = b"".join((data, *more))
            if len(data) > self.max_bytes:
                raise DecodeError("the value is larger than max_bytes")
            return Entry(value=self._loads(data), created_at=0.0)
        try:
            magic, version, number, flags, m1, m0, f1, f0, g1, g0, check = _HEADER.unpack_from(data)
        except StructError:
            raise DecodeError("the bytes are too few for an entry") from None
        if magic != _MAGIC:
            raise DecodeError("the bytes are no entry")
        if version != _VERSION or flags > 31:
            raise DecodeError(f"an entry of format version {version}, which this one cannot read")
        if number != self._number:
            raise DecodeError(f"an entry of another serializer than {self._serializer.name}")
        if flags & _SEALED != self._sealing:
            raise DecodeError("the entry is not signed or encrypted as it should be")
        tags: Mapping[str, str] | None = None
        if not (flags or more) and len(data) < min(
            _LARGE, self.max_bytes
        ):  # most entries, without a call more than it takes
            whole, body = utf8(key), data[_HEADER.size :]
            if zlib.crc32(body, zlib.crc32(b"".join((data[:4], len(whole).to_bytes(4, "big"), whole)))) != check:
                raise DecodeError("the bytes of an entry are damaged, or another key's")
            value = self._loads(body)
        else:
            start = _HEADER.size
            if flags & _TAGS:
                if more:  # seldom, and there may be more of them than in the first part
                    data, more = b"".join((data, *more)), ()
                tags, start = tags_from(data, start)
            value = self._value(key, data, start, flags, check, more)
        made = (m1 << 32) | m0
        fresh, grace = (f1 << 32) | f0, (g1 << 32) | g0
        created_at = made / TICKS - shift
        fresh_until = math.inf if fresh == FOREVER else created_at + fresh / SPAN_TICKS
        expires_at = math.inf if FOREVER in (fresh, grace) else created_at + (fresh + grace) / SPAN_TICKS
        typed = flags & _TYPED != 0
        if tags is None:
            return Entry(
                value=value, created_at=created_at, fresh_until=fresh_until, expires_at=expires_at, typed=typed
            )
        times = {"created_at": created_at, "fresh_until": fresh_until, "expires_at": expires_at}
        return Entry(value=value, **times, tags=tags, typed=typed)

    def head(self, key: str, data: bytes, shift: float = 0.0) -> Entry | None:
        """The entry that begins with these bytes, with `MISSING` for its value; ``None`` when they do not hold all of
        its tags. Whether the rest is damaged, another key's or wrongly sealed is not seen: that takes the rest.

        Args:
            key: The whole key.
            data: The first bytes of it: at least the header, and the number of its tags.
            shift: As in `encode`.

        Raises:
            DecodeError: They are of another version, format or serializer, or not signed as they should be.
        """
        if self._records is not None and key.endswith(TAG_RECORD):
            return self._records.head(key, data, shift)
        ours = bytes((_MAGIC, _VERSION, self._number))
        if data[:3] != ours or data[3] > 31 or data[3] & _SEALED != self._sealing:
            return self.decode(key, data, shift)  # which says what is wrong
        tags: Mapping[str, str] = {}
        if data[3] & _TAGS:
            try:
                tags = tags_from(data, _HEADER.size)[0]
            except DecodeError:
                return None
        times = times_from(data, shift)
        return Entry(value=MISSING, **times, tags=tags, typed=data[3] & _TYPED != 0)

    def plain_value(self, name: bytes, data: bytes, now: float) -> tuple[Any] | None:
        """The value alone of an entry of which it says all: fresh, small, without tags, seal, compression and type;
        ``None`` where `decode` is to be asked. It is a third of the work.

        Args:
            name: The whole key in UTF-8.
            data: The bytes.
            now: Seconds since 1970 by the clock of the store.
        """
        if not self._simple_from < len(data) < self._simple_to:
            return None
        head, m1, m0, f1, f0, check = _unpack_simple(data)
        if head != self._simple or m1 * 65_536.0 + m0 / 65_536.0 + f1 * 4_194_304.0 + f0 / 1_024.0 <= now:
            return None  # one that is fresh for ever is so for 34 years at least
        body = data[24:]
        if _crc32(body, _crc32(name, _crc32(_pack_length(len(name)), self._simple_crc))) != check:
            return None
        try:
            return (self._loads(body),)
        except Exception:  # whatever a serializer of a user's may raise: `decode` raises it where it is taken
            return None

    def size(self, data: bytes) -> int:
        """About how many bytes the value has for the serializer: what reading them costs."""
        if self.plain or len(data) <= _HEADER.size or data[3] & (_LZ4 | _ENCRYPTED) != _LZ4:
            return len(data)  # what is encrypted tells its length to nobody
        start = _HEADER.size
        if data[3] & _TAGS:
            try:
                start = tags_from(data, start)[1]
            except DecodeError:
                return len(data)
        if data[3] & _SIGNED:
            start += MAC_BYTES
        return int.from_bytes(data[start : start + 4], "big")

    def retimed(self, data: bytes, fresh_until: float, expires_at: float) -> bytes:
        """The bytes of an entry with other times; those of a plain one have none."""
        if self.plain:
            return data
        made = int.from_bytes(data[4:10], "big")
        fresh, grace = spans(made, fresh_until, expires_at)
        times = _TIMES.pack(fresh >> 32, fresh & 0xFFFFFFFF, grace >> 32, grace & 0xFFFFFFFF)
        return data[:_TIMES_AT] + times + data[_TIMES_AT + _TIMES.size :]

    def countable(self, key: str) -> int | None:
        """What a store needs to write a counter's entry by itself: the CRC-32 of the binding of an entry without
        flags; ``None`` where it cannot, because whole numbers are not digits or are sealed."""
        if self._sealing or self.plain or not self._digits:
            return None
        return zlib.crc32(binding(bytes((_MAGIC, _VERSION, self._number, 0)), b"", key))

    def __repr__(self) -> str:
        sealed = {_SIGNED: ", signed", _ENCRYPTED: ", encrypted"}.get(self._sealing, "")
        return f"<Codec {self._serializer.name}{sealed}{', plain' if self.plain else ''}>"

    def _value(self, key: str, data: bytes, start: int, flags: int, check: int, more: Sequence[bytes]) -> Any:
        body: bytes | memoryview = data[start:] if more or len(data) < _LARGE else memoryview(data)[start:]
        if more:
            body = b"".join((body, *more))  # of bytes alone: so much of them is copied without the interpreter's lock
        bound = binding(data[:4], data[_HEADER.size : start], key)
        if self._sealing:
            if check:
                raise DecodeError("the bytes of an entry are damaged")
            body = self._opened(bound, body)
        elif zlib.crc32(body, zlib.crc32(bound)) != check:
            raise DecodeError("the bytes of an entry are damaged, or another key's")
        if flags & _LZ4:
            body = expanded(body, self.max_bytes)
        elif len(body) > self.max_bytes:
            raise DecodeError("the value is larger than max_bytes")
        return self._loads(body)

    def _opened(self, bound: bytes, body: bytes | memoryview) -> bytes | memoryview:
        for seal in self._seals:
            opened = seal.open(bound, body)
            if opened is not None:
                return opened
        raise DecodeError("an entry's signature is not right")


_SIMPLE: Final = Struct(">IHIBI5xI")  # the header, without a grace
_LENGTH: Final = Struct(">I")
_unpack_simple: Final = _SIMPLE.unpack_from
_pack_length: Final = _LENGTH.pack
_crc32: Final = zlib.crc32
_LARGE: Final = 65_536  # bytes from which a view is cheaper than a copy


def codec_of(given: Any) -> Codec:
    """The codec that a user means by a name, a mapping of options, or a `Codec`; JSON when nothing is said.

    Raises:
        ConfigError: It is none of these, or an option is wrong.
    """
    if given is None:
        return Codec()
    if isinstance(given, Codec):
        return given
    if isinstance(given, str):
        return Codec(given)
    if isinstance(given, Mapping):
        known = ("serializer", "keys", "encrypt", "compress", "max_bytes", "plain")
        for name in given:
            if name not in known:
                raise ConfigError(f"codec has no option {name!r}; there are {', '.join(known)}")
        options: Mapping[str, Any] = given
        return Codec(**options)
    if not isinstance(given, type) and hasattr(given, "dumps") and hasattr(given, "number"):
        serializer: Serializer = given
        return Codec(serializer)
    raise ConfigError(f"codec is a serializer's name, a Codec or a mapping of its options, not {type(given).__name__}")


def _serializer_named(name: str, *, signed: bool, plain: bool) -> Serializer:
    if name == "json":
        return JsonSerializer(tags=not plain)
    if name == "bytes":
        return BytesSerializer()
    if name == "str":
        return StrSerializer()
    if name != "pickle":
        raise ConfigError(f"codec: there is no serializer {name!r}; there are bytes, json, pickle and str")
    if not signed:
        raise ConfigError("codec: pickle takes keys=[...], secrets to sign with: reading a pickle runs what is in it")
    from asynccache.serializers.pickle import PickleSerializer  # who does not ask for it has it nowhere

    return PickleSerializer()
