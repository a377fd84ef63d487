"""Makes the golden files of a format version: bytes that every later version must read. Made once, never edited.

    python tests/golden/make.py

A file that is there is left alone, and so is its line in the index; one that is gone is not made anew. A new kind is
added to KINDS.
"""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from asynccache.codec import Codec
from asynccache.entry import Entry

HERE = Path(__file__).parent
KEY = "shop:user:ü\0view"
SECRET = "k" * 32
VALUE = {"id": 7, "name": "Ada", "tags": ["a", "b"], "score": 1.5, "none": None, "big": 18446744073709551615}
LONG = {"text": "lorem ipsum " * 200}
KINDS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "json": ({}, VALUE, {}),
    "json-tagged": ({}, {"when": (1, 2), "set": {3}, 5: b"\x00\xff"}, {}),
    "json-lz4": ({}, LONG, {}),
    "json-tags": ({}, VALUE, {"tags": {"shop:red": "0123", "shop:ü": "v2"}}),
    "json-ttl": ({}, VALUE, {"fresh_until": 1_800_000_060.5, "expires_at": 1_800_000_060.5}),
    "json-grace": ({}, VALUE, {"fresh_until": 1_800_000_060.0, "expires_at": 1_800_003_660.0}),
    "json-endless-grace": ({}, VALUE, {"fresh_until": 1_800_000_060.0}),
    "json-typed": ({}, VALUE, {"typed": True}),
    "json-signed": ({"keys": [SECRET]}, VALUE, {"tags": {"shop:red": "1"}}),
    "json-encrypted": ({"keys": [SECRET], "encrypt": True}, VALUE, {}),
    "json-encrypted-lz4": ({"keys": [SECRET], "encrypt": True}, LONG, {"tags": {"shop:red": "1"}}),
    "bytes": ({"serializer": "bytes"}, b"\x00\x01\xfe\xff", {}),
    "str": ({"serializer": "str"}, "grün\x00", {}),
    "pickle": ({"serializer": "pickle", "keys": [SECRET]}, {"a": (1, 2), "b": {3}}, {}),
    "counter": ({}, 42, {}),
}


def entry_of(kind: str) -> Entry:
    """The entry that a golden file stands for."""
    _, value, more = KINDS[kind]
    times = {"created_at": 1_800_000_000.25, "fresh_until": math.inf, "expires_at": math.inf}
    return Entry(value=value, **{**times, **more})


def described(kind: str) -> dict[str, Any]:
    """What the index says of a file, all but its SHA-256: enough to read it without this script. No time is never."""
    entry = entry_of(kind)
    return {
        "key": KEY,
        "options": KINDS[kind][0],
        "value": repr(entry.value),
        "created_at": entry.created_at,
        "fresh_until": None if entry.fresh_until == math.inf else entry.fresh_until,
        "expires_at": None if entry.expires_at == math.inf else entry.expires_at,
        "tags": dict(entry.tags),
        "typed": entry.typed,
    }


def main(here: Path = HERE) -> None:
    index_file = here / "index.json"
    index = json.loads(index_file.read_text()) if index_file.exists() else {}
    for kind, (options, _, _) in KINDS.items():
        name = f"v1-{kind}.bin"
        path = here / name
        if path.exists() and name in index:
            continue
        if path.exists() or name in index:
            raise SystemExit(f"{name}: a golden file and its line in the index are kept together; bring back the other")
        data = Codec(**options).encode(KEY, entry_of(kind))
        with path.open("xb") as file:
            file.write(data)
        index[name] = {"sha256": hashlib.sha256(data).hexdigest(), **described(kind)}
    index_file.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
