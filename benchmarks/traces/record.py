"""Records ``stdlib-names``: the names that a reader of the standard library's source meets, one after the other.

``python benchmarks/traces/record.py`` writes it again; another Python has other sources, so the committed file is the
trace and this is how it was made. Modules are read in a random order; each is a burst of its own names among those that
all share: what an indexer's symbol cache sees. Only numbers are kept, one per name, in the order of first meeting.
"""

import gzip
import io
import keyword
import random
import sys
import sysconfig
import tokenize
from array import array
from pathlib import Path

LENGTH = 150_000
TARGET = Path(__file__).with_name("stdlib-names.u32.gz")


def record() -> "array[int]":
    """The trace."""
    root = Path(sysconfig.get_path("stdlib"))
    modules = sorted(path for path in root.rglob("*.py") if not {"site-packages", "test", "tests"} & set(path.parts))
    random.Random(2023).shuffle(modules)
    numbers: dict[str, int] = {}
    trace = array("I")
    for module in modules:
        try:
            for token in tokenize.tokenize(io.BytesIO(module.read_bytes()).readline):
                if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                    trace.append(numbers.setdefault(token.string, len(numbers)))
                    if len(trace) == LENGTH:
                        return trace
        except (tokenize.TokenError, SyntaxError, UnicodeDecodeError):
            continue  # a few sources are broken on purpose
    return trace


if __name__ == "__main__":
    found = record()
    if sys.byteorder == "big":
        found.byteswap()
    TARGET.write_bytes(gzip.compress(found.tobytes(), 9, mtime=0))
    print(f"{TARGET.name}: {len(found)} accesses, {len(set(found))} names, {TARGET.stat().st_size} bytes")
