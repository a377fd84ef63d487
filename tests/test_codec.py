"""Entries to bytes and back: the format, what damages it, what it refuses, who may write it."""

import ast
import hashlib
import hmac
import json
import math
import pickle
import sqlite3
import subprocess
import sys
import threading
import traceback
import zlib
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import lz4.block
import lz4.frame
import pytest
from golden.make import KEY, KINDS, described, entry_of, main
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import emptied

from asynccache import Cache, ConfigError, DecodeError, EncodeError, Entry
from asynccache.backends.file import FileBackend
from asynccache.codec import Codec, codec_of
from asynccache.serializers.json import JsonSerializer

GOLDEN = Path(__file__).parent / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
SECRET, OTHER = "k" * 32, b"another secret of some length"
HEADER = 24
TIMES = range(4, 20)

CODECS = {
    "json": Codec(),
    "lz4": Codec(compress=0),
    "uncompressed": Codec(compress=None),
    "signed": Codec(keys=[SECRET]),
    "encrypted": Codec(keys=[SECRET], encrypt=True),
    "encrypted lz4": Codec(keys=[SECRET], encrypt=True, compress=0),
    "pickle": Codec("pickle", keys=[SECRET]),
}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def entry(value: Any = "value", **more: Any) -> Entry:
    return Entry(value=value, created_at=1.0, **more)


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
TIME = st.floats(0, 4e9)
SPAN = st.floats(0, 1e9)  # an entry is fresh for 34 years at most, if not for ever
TAGGED = (
    st.binary(max_size=30)
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.timedeltas()
    | st.frozensets(st.integers(), max_size=3)
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | TAGGED,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4) | st.tuples(inner),
    max_leaves=8,
)


@every_codec
@settings(max_examples=60, deadline=None)
@given(
    VALUES,
    TEXT,
    TIME,
    SPAN | st.just(math.inf),
    SPAN | st.just(math.inf),
    st.dictionaries(TEXT, TEXT, max_size=3),
    st.booleans(),
)
def test_an_entry_comes_back(
    codec: Codec, value: Any, key: str, made: float, ttl: float, grace: float, tags: dict[str, str], typed: bool
) -> None:
    """Value, times and tags are what they were; the times to a millisecond, and never later."""
    before = Entry(
        value=value, created_at=made, fresh_until=made + ttl, expires_at=made + ttl + grace, tags=tags, typed=typed
    )
    after = codec.decode(key, codec.encode(key, before))
    assert after.value == value
    assert type(after.value) is type(value)
    assert dict(after.tags) == tags
    assert after.typed == typed
    for name in ("created_at", "fresh_until", "expires_at"):
        old, new = getattr(before, name), getattr(after, name)
        assert new == old or old - 1.1 / 1_024 <= new <= old


@pytest.mark.parametrize("options", [{}, {"compress": 0}, {"keys": [SECRET]}, {"keys": [SECRET], "encrypt": True}])
@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), TEXT, TEXT)
def test_bytes_and_text_come_back(options: dict[str, Any], data: bytes, text: str, key: str) -> None:
    """Under each seal, and never as the other of the two."""
    raw, written = Codec("bytes", **options), Codec("str", **options)
    assert raw.decode(key, raw.encode(key, entry(data))).value == data
    assert written.decode(key, written.encode(key, entry(text))).value == text
    with pytest.raises(DecodeError):
        written.decode(key, raw.encode(key, entry(data)))
    for codec, value in ((raw, text), (written, data)):
        with pytest.raises(EncodeError):
            codec.encode(key, entry(value))


@pytest.mark.parametrize("length", [65_511, 65_512, 65_536, 300_000])
def test_a_large_entry_comes_back(length: int) -> None:
    """On both sides of the size from which the bytes are read in place, by every codec and serializer."""
    noise = hashlib.shake_256(b"noise").digest(length)
    for codec in CODECS.values():
        for value in ("x" * length, noise.hex(), {"tagged": noise}):
            before = entry(value, tags={"red": "1"})
            assert codec.decode("key", codec.encode("key", before)) == before
    for options in ({}, {"keys": [SECRET]}, {"keys": [SECRET], "encrypt": True}):
        for name, value in (("bytes", noise), ("str", noise.hex())):
            codec = Codec(name, **options)
            assert codec.decode("key", codec.encode("key", entry(value))).value == value


@pytest.mark.parametrize(
    "value",
    [Decimal("1.50"), UUID(int=5), date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC), timedelta(1), {1, 2}, (1, [2])],
    ids=repr,
)
@every_codec
def test_a_tagged_type_comes_back(codec: Codec, value: Any) -> None:
    """Of the same type, as text has it too: 1.50 is not 1.5."""
    found = codec.decode("key", codec.encode("key", entry([value]))).value
    assert repr(found) == repr([value])


@pytest.mark.parametrize(("name", "sealed"), [("json", 0), ("lz4", 0), ("signed", 32), ("encrypted", 28)])
@pytest.mark.parametrize("value", [1, "x" * 100, {"a": [1, 2, 3]}, "y" * 5_000])
def test_a_header_is_small(name: str, sealed: int, value: Any) -> None:
    """At most 24 bytes over what the serializer writes, and what a seal takes; less where lz4 helps."""
    plain = len(JsonSerializer().dumps(value))
    data = CODECS[name].encode("key", entry(value, fresh_until=5.0, expires_at=9.0))
    assert len(data) <= plain + 24 + sealed
    if name != "json" and len(str(value)) > 1_000:
        assert len(data) < plain / 2 + 24 + sealed


def test_lz4_is_used_where_it_helps() -> None:
    """Past the threshold and when the bytes get fewer."""
    assert len(Codec().encode("k", entry("x" * 1_000))) > 1_000
    assert len(Codec().encode("k", entry("x" * 1_100))) < 100
    noise = hashlib.sha512(b"").hexdigest() * 3  # repeats, but not within a short text
    assert len(Codec(compress=0).encode("k", entry(noise[:60]))) == 24 + 62
    assert len(Codec(compress=None).encode("k", entry("x" * 5_000))) > 5_000


# Files of released versions


@pytest.mark.parametrize("name", sorted(INDEX))
def test_a_golden_file_is_read_for_ever(name: str) -> None:
    """What a released version wrote is read as its entry, which the index tells without the script."""
    told = INDEX[name]
    found = Codec(**told["options"]).decode(told["key"], (GOLDEN / name).read_bytes())
    value = ast.literal_eval(told["value"])
    assert found.value == value
    assert type(found.value) is type(value)
    assert found.created_at == told["created_at"]
    for time in ("fresh_until", "expires_at"):
        assert getattr(found, time) == (math.inf if told[time] is None else told[time])
    assert dict(found.tags) == told["tags"]
    assert found.typed == told["typed"]


@pytest.mark.parametrize("name", sorted(INDEX))
def test_a_golden_file_is_never_edited(name: str) -> None:
    """Its bytes are those of its day."""
    assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == INDEX[name]["sha256"]


def test_every_kind_has_a_golden_file() -> None:
    """The files, their index and the kinds are the same set, and say the same."""
    names = {f"v1-{kind}.bin" for kind in KINDS}
    assert names == set(INDEX) == {path.name for path in GOLDEN.glob("*.bin")}
    for kind in KINDS:
        assert {"sha256": INDEX[f"v1-{kind}.bin"]["sha256"], **described(kind)} == INDEX[f"v1-{kind}.bin"]


def test_golden_files_are_made_once(tmp_path: Path) -> None:
    """The script writes over nothing, and makes none anew that is gone or that the index does not know."""
    main(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(made) == {*INDEX, "index.json"}
    main(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made
    (tmp_path / "v1-str.bin").unlink()
    with pytest.raises(SystemExit, match=r"v1-str\.bin"):
        main(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(SystemExit, match=r"v1-json\.bin"):
        main(tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "encrypted" not in kind])
def test_the_format_is_written_as_it_was(kind: str) -> None:
    """The same entry makes the same bytes as when its golden file was made."""
    if "lz4" not in kind:  # whose compressor may change
        assert Codec(**KINDS[kind][0]).encode(KEY, entry_of(kind)) == (GOLDEN / f"v1-{kind}.bin").read_bytes()


# Damage

SAMPLES = [(kind, Codec(**KINDS[kind][0]), (GOLDEN / f"v1-{kind}.bin").read_bytes()) for kind in KINDS]
every_sample = pytest.mark.parametrize(
    ("codec", "data"), [each[1:] for each in SAMPLES], ids=[each[0] for each in SAMPLES]
)


@every_sample
def test_a_cut_is_seen(codec: Codec, data: bytes) -> None:
    """Bytes that end too early are refused, wherever they end, and so are bytes that go on."""
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            codec.decode(KEY, data[:length])
    for more in (b"\0", b"more", data):
        with pytest.raises(DecodeError):
            codec.decode(KEY, data + more)


@every_sample
def test_every_flipped_bit_is_seen(codec: Codec, data: bytes) -> None:
    """No bit can flip unseen, but for those of the times, which a store may change."""
    for place in range(len(data)):
        if place in TIMES:
            continue
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(DecodeError):
                codec.decode(KEY, bytes(damaged))


def test_every_flipped_bit_of_a_large_value_is_seen() -> None:
    """As far as the checksum reaches, and it is not the value's form that tells."""
    codec = Codec("bytes", compress=None)
    good = codec.encode("key", entry(hashlib.shake_256(b"noise").digest(4_000)))
    for place in range(HEADER, len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[place] ^= 1 << bit
            with pytest.raises(DecodeError):
                codec.decode("key", bytes(damaged))


@pytest.mark.parametrize("name", ["signed", "encrypted"])
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_change_under_a_seal_is_seen(name: str, data: st.DataObject) -> None:
    """Any bytes in the place of any others, however large the value is."""
    codec = CODECS[name]
    good = codec.encode("key", entry("x" * 100 + hashlib.shake_256(b"noise").digest(40_000).hex()))
    place = data.draw(st.integers(HEADER, len(good) - 1))
    damaged = good[:place] + data.draw(st.binary(max_size=8)) + good[place + data.draw(st.integers(0, 8)) :]
    if damaged != good:
        with pytest.raises(DecodeError):
            codec.decode("key", damaged)


@every_sample
def test_another_keys_bytes_are_refused(codec: Codec, data: bytes) -> None:
    """An entry that was moved to another key or namespace is none."""
    for key in ("shop:user:u\0view", "shop2:user:ü\0view", "shop:user:ü", ""):
        with pytest.raises(DecodeError):
            codec.decode(key, data)


FOREIGN = {
    "nothing": b"",
    "object": b"{}",
    "null": b"null",
    "json": b'{"a":1,"b":[1,2,3],"c":"long enough for a header"}',
    "text": b"plain text that is long enough for a header",
    "zeros": b"\0" * 100,
    "ones": b"\xff" * 100,
    "magic": b"\xac" * 100,
    "pickle": pickle.dumps({"a": 1, "b": "long enough for a header"}),
    "lz4 frame": lz4.frame.compress(b"x" * 100),
    "lz4 block": lz4.block.compress(b"x" * 100),
}


@every_sample
def test_foreign_bytes_are_refused(codec: Codec, data: bytes) -> None:
    """What another program, another version or another codec wrote is no entry, under the same key."""
    foreign = [
        *FOREIGN.values(),
        data[::-1],
        *(bytes([magic]) + data[1:] for magic in range(256) if magic != 0xAC),
        *(data[:1] + bytes([version]) + data[2:] for version in range(256) if version != 1),
        *(data[:2] + bytes([number]) + data[3:] for number in range(256) if number != data[2]),
        *(data[:3] + bytes([flags]) + data[4:] for flags in range(256) if flags != data[3]),
        *(other for _, reader, other in SAMPLES if repr(reader) != repr(codec)),
    ]
    for each in foreign:
        with pytest.raises(DecodeError):
            codec.decode(KEY, each)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_mutated_bytes_are_an_entry_or_an_error(sample: tuple[str, Codec, bytes], data: st.DataObject) -> None:
    """Whatever happens to the bytes, reading them gives an entry or a DecodeError."""
    _, codec, good = sample
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        damaged[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        assert isinstance(codec.decode(KEY, bytes(damaged)), Entry)
    except DecodeError:
        pass


@given(st.binary(max_size=200), st.sampled_from([codec for _, codec, _ in SAMPLES]))
def test_any_bytes_are_an_error(data: bytes, codec: Codec) -> None:
    """Bytes of any origin, also behind a good header: a DecodeError and nothing else."""
    for document in (data, bytes([0xAC, 1, 1, data[0] % 32 if data else 0]) + data):
        try:
            codec.decode("key", document)
        except DecodeError:
            pass


# Bombs


def checked(head: bytes, body: bytes) -> bytes:
    """An entry under ``key`` with a right checksum, whatever it says of itself."""
    binding = head + (3).to_bytes(4, "big") + b"key"
    check = zlib.crc32(body, zlib.crc32(binding))
    return head + bytes(16) + check.to_bytes(4, "big") + body


def forged(raw: int, block: bytes) -> bytes:
    """An entry with a right checksum that claims to unpack to so many bytes."""
    return checked(bytes((0xAC, 1, 1, 1)), raw.to_bytes(4, "big") + block)


def test_a_forged_entry_is_made_right() -> None:
    """The forgeries of these tests are refused for what they claim, and for nothing else."""
    block = lz4.block.compress(b'"abc"' + b" " * 100, store_size=False)
    assert Codec().decode("key", forged(105, block)).value == "abc"
    for claim in (1, 104, 106, 200):
        with pytest.raises(DecodeError, match="compressed"):
            Codec().decode("key", forged(claim, block))


def test_a_right_checksum_is_not_enough() -> None:
    """Version, serializer, seal and flags are each looked at for themselves."""
    good = bytes((0xAC, 1, 1, 0))
    assert Codec().decode("key", checked(good, b"1")).value == 1
    assert Codec().decode("key", checked(good[:3] + b"\x10", b"1")).typed
    wrong = [
        *(bytes([magic]) + good[1:] for magic in range(256) if magic != 0xAC),
        *(good[:1] + bytes([version]) + good[2:] for version in range(256) if version != 1),
        *(good[:2] + bytes([number]) + good[3:] for number in range(256) if number != 1),
        *(good[:3] + bytes([flags]) for flags in range(256) if flags not in (0, 16)),
    ]
    for head in wrong:
        with pytest.raises(DecodeError):
            Codec().decode("key", checked(head, b"1"))
    with pytest.raises(DecodeError, match="signed"):
        CODECS["signed"].decode("key", checked(good, b"1"))


BOMB = """
import resource, sys, lz4.block
sys.path.insert(0, "tests")
from test_codec import forged
from asynccache import DecodeError
from asynccache.codec import Codec

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

block = lz4.block.compress(bytes(127_000_000), store_size=False)  # half a megabyte: 255 times is what a block can do
larger = lz4.block.compress(bytes(512 * 2**20), store_size=False)  # two megabytes
codec, wide = Codec(), Codec(max_bytes=2**32 - 1)
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # forget the peak of making the bomb
before = peak()
bombs = [
    forged(127_000_000, block), forged(10, block), forged(64 * 2**20, block), forged(512 * 2**20, larger),
    forged(64 * 2**20, larger), forged(2**32 - 1, block[:20]), forged(64 * 2**20, b"\\0" * 8),
    *(bytes((0xAC, 1, 1, flags)) + b"\\xff" * 36 for flags in range(256)),
]
for data in bombs:
    try:
        codec.decode("key", data)
    except DecodeError:
        pass
    else:
        raise SystemExit("it was read")
try:
    wide.decode("key", forged(2**32 - 1, block[:20]))
except DecodeError:
    pass
else:
    raise SystemExit("it was read")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    """Bytes that claim or unpack to more than they may take no hundred megabytes."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", BOMB], capture_output=True, text=True, timeout=60, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert int(done.stdout) < 100_000_000


def test_a_claim_is_looked_at_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the claim cannot be true nothing is unpacked at all."""
    monkeypatch.setattr(lz4.block, "decompress", lambda *_, **__: pytest.fail("it was unpacked"))
    for data in (forged(64 * 2**20 + 1, b"x" * 10**6), forged(2**32 - 1, b"xx"), forged(10_000, b"x" * 39)):
        with pytest.raises(DecodeError, match="claim"):
            Codec().decode("key", data)


def test_a_value_can_be_too_large() -> None:
    """What would not be read again is not written, and what is larger than this reader takes is not read."""
    small, large = Codec(max_bytes=100, compress=None), Codec()
    with pytest.raises(EncodeError, match="max_bytes=100"):
        small.encode("key", entry("x" * 99))
    for codec in (large, Codec(compress=0)):
        with pytest.raises(DecodeError):
            small.decode("key", codec.encode("key", entry("x" * 200)))
    with pytest.raises(DecodeError):
        Codec(max_bytes=100, plain=True).decode("key", b'"' + b"x" * 200 + b'"')


def test_the_size_of_a_value_is_known_before_it_is_read() -> None:
    """A compressed value is as large as it will be."""
    assert Codec().size(Codec().encode("key", entry("x" * 100_000))) == 100_002
    assert Codec(compress=None).size(Codec(compress=None).encode("key", entry("x" * 100_000))) > 100_000
    assert Codec().size(b"") == 0


# Secrets


@pytest.mark.parametrize("encrypt", [False, True], ids=["signed", "encrypted"])
def test_keys_are_changed_without_a_loss(encrypt: bool) -> None:
    """The first key writes, all read; who has not the key of an entry cannot read it."""
    old, new = Codec(keys=[SECRET], encrypt=encrypt), Codec(keys=[OTHER], encrypt=encrypt)
    both = Codec(keys=[OTHER, SECRET], encrypt=encrypt)
    assert both.decode("key", old.encode("key", entry())).value == "value"
    assert new.decode("key", both.encode("key", entry())).value == "value"
    for reader, writer in ((old, new), (old, both), (Codec(), old), (old, Codec())):
        with pytest.raises(DecodeError):
            reader.decode("key", writer.encode("key", entry()))


def test_signing_and_encrypting_do_not_stand_in_for_each_other() -> None:
    """With one secret for both, neither reads the other's."""
    signed, encrypted = CODECS["signed"], CODECS["encrypted"]
    for reader, writer in ((signed, encrypted), (encrypted, signed)):
        with pytest.raises(DecodeError):
            reader.decode("key", writer.encode("key", entry()))


def test_a_flag_cannot_be_taken_away() -> None:
    """The reader says what is signed, not the bytes; nor can tags, the type or the compression be changed."""
    codec = CODECS["signed"]
    data = bytearray(codec.encode("key", entry("x" * 5_000, tags={"red": "1"})))
    for flags in range(256):
        if flags != data[3]:
            with pytest.raises(DecodeError):
                codec.decode("key", bytes(data[:3]) + bytes([flags]) + bytes(data[4:]))
    assert CODECS["encrypted"].encode("key", entry())[24:] != CODECS["encrypted"].encode("key", entry())[24:]


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library's function for that."""
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(one) or compare(one, other))
    good = CODECS["signed"].encode("key", entry())
    CODECS["signed"].decode("key", good)
    assert compared == [good[24:56]]
    Codec(keys=[OTHER, SECRET]).decode("key", good)
    assert len(compared) == 3, "each key is tried by it"
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: False)
    with pytest.raises(DecodeError):
        CODECS["signed"].decode("key", good)


async def test_counters_are_signed_too(tmp_path: Path) -> None:
    """Where signing is on, a counter that was not signed is a miss, and one that is counted is signed."""
    path = tmp_path / "store"
    cache = Cache(f"file://{path}", codec={"serializer": "json", "keys": [SECRET]})
    assert await cache.incr("n") == 1
    assert await cache.incr("n") == 2
    database = sqlite3.connect(path / "entries-1.sqlite3", isolation_level=None)
    data = database.execute("select data from entries").fetchone()[0]
    assert data[3] == 2
    forged_one = Codec().encode("n", entry(1_000))
    database.execute("update entries set data = ?", (forged_one,))
    database.close()
    assert await cache.get("n") is None
    assert cache.stats().errors == 1
    assert await cache.incr("n") == 1
    await cache.aclose()


@pytest.mark.parametrize(
    "options",
    [
        {"serializer": "pickle"},
        {"serializer": "pickle", "keys": []},
        {"keys": ["short secret"]},
        {"keys": [SECRET, "short secret"]},
        {"keys": [b"secret of 15 b."]},
        {"keys": [bytearray(OTHER)]},
        {"keys": SECRET.encode()},
        {"keys": SECRET},
        {"keys": [5]},
        {"keys": OTHER},
        {"encrypt": True},
        {"plain": True, "keys": [SECRET]},
        {"plain": True, "encrypt": True},
        {"serializer": "jsno"},
        {"max_bytes": 0},
        {"max_bytes": "1"},
        {"max_bytes": 2**32},
        {"compress": -1},
        {"compress": "1k"},
        {"serialiser": "json"},
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    """The error says what is wrong, and no secret."""
    with pytest.raises(ConfigError, match="codec") as caught:
        codec_of(options)
    shown = "".join(traceback.format_exception(caught.value, limit=0)) + repr(caught.value)
    assert "secret" not in shown.replace("a secret of at least", "").replace("secrets to sign", "").replace(
        "list of secrets", ""
    )
    assert SECRET not in shown


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encryption without its library is refused, with what to install."""
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigError, match=r"asynccache\[crypto\]"):
        Codec(keys=[SECRET], encrypt=True)


def test_no_secret_is_shown() -> None:
    """A codec shows what it does and not by which keys."""
    assert repr(CODECS["signed"]) == "<Codec json, signed>"
    assert repr(CODECS["encrypted"]) == "<Codec json, encrypted>"
    assert repr(Codec("str", plain=True)) == "<Codec str, plain>"
    for codec in CODECS.values():
        assert SECRET not in repr(codec)


# Forms


class Upper:
    """A serializer of one's own."""

    name = "upper"
    number = 200

    def dumps(self, value: Any) -> bytes:
        return str(value).upper().encode()

    def loads(self, data: bytes | memoryview) -> Any:
        return bytes(data).decode()


def test_a_codec_is_named_in_many_ways() -> None:
    """By nothing, a name, options, a serializer of one's own, or itself."""
    assert repr(codec_of(None)) == repr(codec_of("json")) == repr(codec_of({})) == "<Codec json>"
    assert codec_of(CODECS["json"]) is CODECS["json"]
    for form in (Upper(), Codec(Upper()), {"serializer": Upper()}):
        codec = codec_of(form)
        assert codec.decode("key", codec.encode("key", entry("a"))).value == "A"
    for number in (128, 255):
        Upper.number = number
        assert codec_of(Upper()).encode("key", entry("a"))[2] == number
    Upper.number = 200
    for wrong in (5, object(), [1], b"json", "yaml", {"serializer": "yaml"}, {1: 2}):
        with pytest.raises(ConfigError):
            codec_of(wrong)


@pytest.mark.parametrize("number", [-1, 0, 1, 127, 256])
def test_a_serializer_of_ones_own_has_a_number_of_its_own(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 128 to 255: the others are this package's, or no byte."""
    monkeypatch.setattr(Upper, "number", number)
    with pytest.raises(ConfigError, match="128"):
        codec_of(Upper())


def test_other_times_take_no_secret() -> None:
    """Times can be changed by who cannot read the entry, and nothing else changes."""
    for codec in CODECS.values():
        data = codec.encode("key", entry("value", fresh_until=10.0, expires_at=20.0, tags={"a": "1"}))
        other = Codec().retimed(data, 100.0, 300.0)
        assert (other[:10], other[20:]) == (data[:10], data[20:])
        assert Codec().retimed(other, 10.0, 20.0) == data
        changed = codec.decode("key", Codec().retimed(data, 100.0, 300.0))
        assert (changed.fresh_until, changed.expires_at) == (100.0, 300.0)
        assert (changed.value, changed.created_at, dict(changed.tags)) == ("value", 1.0, {"a": "1"})
        endless = codec.decode("key", Codec().retimed(data, math.inf, math.inf))
        assert endless.fresh_until == endless.expires_at == math.inf
    assert Codec(plain=True).retimed(b"1", 5.0, 6.0) == b"1"


def test_plain_values_are_the_serializers_bytes() -> None:
    """For other programs: exactly what the serializer writes, and no grace, tags or types of ours."""
    codec = Codec(plain=True)
    assert codec.encode("key", entry({"a": [1, None]})) == b'{"a":[1,null]}'
    assert codec.decode("key", b' {"a": 1} ').value == {"a": 1}
    for more in ({"tags": {"a": "1"}}, {"fresh_until": 5.0, "expires_at": 9.0}):
        with pytest.raises(ConfigError, match="neither tags nor grace"):
            codec.encode("key", entry(1, **more))
    for value in ((1,), {1: 2}, float("nan")):
        with pytest.raises(EncodeError):
            codec.encode("key", entry(value))
    with pytest.raises(DecodeError):
        codec.decode("key", b"\x01{}")


async def test_plain_values_in_a_cache(tmp_path: Path) -> None:
    """At rest are the serializer's bytes; tags and grace are the caller's mistake, and store nothing."""
    path = tmp_path / "store"
    cache = Cache(f"file://{path}", codec={"serializer": "json", "plain": True})
    await cache.set("key", {"a": [1, None]}, ttl=60)
    assert await cache.get("key") == {"a": [1, None]}
    for more in ({"tags": ["red"]}, {"ttl": 60, "grace": 60}):
        with pytest.raises(ConfigError, match="neither tags nor grace"):
            await cache.set("other", 1, **more)
    with pytest.raises(EncodeError, match="plain JSON"):
        await cache.set("other", (1, 2))
    database = sqlite3.connect(path / "entries-1.sqlite3")
    stored = dict(database.execute("select key, data from entries where key in ('key', 'other')"))
    assert stored == {"key": b'{"a":[1,null]}'}
    database.close()
    await cache.aclose()


def test_too_many_tags_are_refused() -> None:
    """A tag's name and version have room for 65,535 bytes."""
    assert Codec().decode("k", Codec().encode("k", entry(tags={"x" * 65_535: "1"}))).tags
    with pytest.raises(EncodeError, match="tags"):
        Codec().encode("k", entry(tags={"x" * 65_536: "1"}))


def test_threads_share_a_codec() -> None:
    """It keeps nothing between two calls."""
    problems: list[Any] = []

    def work(number: int) -> None:
        for turn in range(200):
            for codec in CODECS.values():
                key = f"{number}:{turn}"
                if codec.decode(key, codec.encode(key, entry([number] * turn))).value != [number] * turn:
                    problems.append(key)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


# In a cache


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\0",
        b"{}",
        b'"value"',
        b"\xac",
        b"\xac\x01" + bytes(22),
        b"\xac\x02" + bytes(40),
        b"\xff" * 50,
        b"42",
        pickle.dumps("value"),
        forged(2**32 - 1, b"x"),
        lz4.frame.compress(b"value"),
        None,
    ],
)
async def test_damaged_bytes_under_a_key_are_a_miss(tmp_path: Path, damage: bytes | None) -> None:
    """Whatever is under a key: a miss, told and then replaced, never an exception, also with ``on_error="raise"``."""
    store = FileBackend(tmp_path / "store")
    cache = Cache(store, on_error="raise")
    await cache.set_many({"key": "old", "other": 1})
    if damage is None:  # another key's bytes
        change = "update entries set data = (select data from entries where key = 'other') where key = 'key'"
        await store.write(lambda connection: connection.execute(change).rowcount)
    else:
        change = "update entries set data = ? where key = 'key'"
        await store.write(lambda connection: connection.execute(change, (damage,)).rowcount)
    assert await cache.get("key") is None
    assert await cache.get_many(["key", "other"]) == {"other": 1}
    assert await cache.ttl("key") is None
    assert cache.stats().errors >= 3
    assert await cache.get_or_set("key", lambda: "new") == "new"
    assert await cache.get("key") == "new"
    await store.aclose()


async def test_a_value_that_cannot_be_stored_is_returned_and_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A memoized function's value that is no JSON reaches its caller, is not stored, and shows up in no log."""
    cache = Cache(f"file://{tmp_path}/store")

    class Secret:
        def __repr__(self) -> str:
            return "secret"

    @cache.memoize(key="key")
    async def find():
        return {"secret": Secret()}

    assert str(await find()) == "{'secret': secret}"
    assert await cache.get("key") is None
    assert cache.stats().errors == 1
    assert "EncodeError" in caplog.text
    assert "secret" not in caplog.text
    with pytest.raises(EncodeError, match="value"):
        await cache.set("key", {"a": Secret()})
    with pytest.raises(EncodeError, match=r"value\['b'\]"):
        await cache.set_many({"a": 1, "x": {"b": Secret()}})
    await cache.aclose()


def test_a_very_long_ttl_ends_after_34_years() -> None:
    """A ttl has room for 34 years; one that is longer is not for ever, and not over."""
    century = 100 * 365.25 * 86_400.0
    after = Codec().decode("k", Codec().encode("k", entry(fresh_until=century, expires_at=2 * century)))
    assert 34 * 365 * 86_400 < after.fresh_until < century
    assert after.fresh_until < after.expires_at < 2 * century


def test_a_flip_far_inside_is_seen() -> None:
    """A single bit anywhere in a long entry: half a checksum would miss some of them."""
    codec = Codec("bytes", compress=None)
    good = codec.encode("key", entry(hashlib.shake_256(b"n").digest(20_000)))
    for back in (*range(10_700, 10_760), *range(11_560, 11_600), 1, 19_999):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[-back] ^= 1 << bit
            with pytest.raises(DecodeError):
                codec.decode("key", bytes(damaged))


def test_a_secret_that_is_no_text_is_not_shown() -> None:
    """A secret with a lone surrogate, as a strange environment variable gives one, is in no error and in no context."""
    with pytest.raises(ConfigError) as caught:
        Codec(keys=["hidden" * 5 + "\ud800"])
    shown = "".join(traceback.format_exception(caught.value))
    assert "hiddenhidden" not in shown.replace('Codec(keys=["hidden" * 5', "")
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "options",
    [
        {"keys": None},
        {"keys": 5},
        {"keys": {SECRET}},
        {"serializer": 5},
        {"serializer": None},
        {"serializer": Upper},
        {"max_bytes": True},
        {"compress": True},
    ],
)
def test_options_of_a_wrong_type_are_refused(options: dict[str, Any]) -> None:
    """Each is a ConfigError, not whatever happens to it."""
    with pytest.raises(ConfigError, match="codec"):
        Codec(**options)


def test_what_has_no_utf8_is_an_encode_error() -> None:
    """A key or a tag with a lone surrogate, which a cache refuses before."""
    with pytest.raises(EncodeError):
        Codec().encode("\ud800", entry())
    with pytest.raises(EncodeError):
        Codec().encode("key", entry(tags={"\ud800": "1"}))


def test_the_size_of_a_sealed_value_is_known_too() -> None:
    """Signed or tagged, it is as large as it will be; encrypted it tells nobody."""
    for codec in (Codec(), CODECS["signed"]):
        for tags in ({}, {"red": "1"}):
            assert codec.size(codec.encode("key", entry("x" * 100_000, tags=tags))) == 100_002
    assert CODECS["encrypted"].size(CODECS["encrypted"].encode("key", entry("x" * 100_000))) < 1_000
    damaged = bytearray(Codec().encode("key", entry("x" * 100_000, tags={"red": "1"})))
    damaged[24:26] = b"\xff\xff"
    assert Codec().size(bytes(damaged)) == len(damaged)


class Numbers:
    """A serializer of a user's, which keeps nothing but whole numbers."""

    name, number = "numbers", 200

    def dumps(self, value: Any) -> bytes:
        if type(value) is not int:
            raise EncodeError("whole numbers only")
        return b"%d" % value

    def loads(self, data: bytes | memoryview) -> Any:
        return int(bytes(data))


@pytest.mark.parametrize("store", ["file", "redis"])
@pytest.mark.parametrize(
    ("codec", "value"),
    [
        ("bytes", b"value"),
        ("str", "value"),
        (Numbers(), 7),
        (Codec("bytes", keys=["0123456789abcdef"]), b"value"),
        (Codec("pickle", keys=["0123456789abcdef"], encrypt=True), {1}),
    ],
    ids=["bytes", "str", "own", "signed", "encrypted"],
)
async def test_tags_go_with_every_serializer(tmp_path: Path, store: str, codec: Any, value: Any) -> None:
    """A tag's version is no value of the user's: what keeps bytes alone has tags too."""
    url = (tmp_path / "store").as_uri() if store == "file" else emptied()
    async with Cache(url, codec=codec, on_error="raise") as cache:
        await cache.set("key", value, 60, tags=["tag"])
        assert await cache.get("key") == value
        await cache.invalidate_tags("tag")
        assert await cache.get("key") is None


@pytest.mark.parametrize("store", ["file", "redis"])
async def test_a_tags_record_that_cannot_be_read_is_replaced(tmp_path: Path, store: str) -> None:
    """Its secret has been taken out: what is stored with the tag from now on is found."""
    url = (tmp_path / "store").as_uri() if store == "file" else emptied()
    async with Cache(url, codec=Codec(keys=[SECRET])) as cache:
        await cache.set("key", 1, 60, tags=["tag"])
        assert await cache.get("key") == 1
    async with Cache(url, codec=Codec(keys=[OTHER])) as cache:
        await cache.set("key", 2, 60, tags=["tag"])
        assert await cache.get("key") == 2
        await cache.invalidate_tags("tag")
        assert await cache.get("key") is None
