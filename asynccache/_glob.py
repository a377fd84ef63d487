"""Glob patterns over keys, as Redis's ``MATCH`` reads them, matched in time that no pattern can blow up.

The dialect: ``*`` any text, ``?`` one character, ``[abc]``, ``[a-z]`` and ``[^x]`` one character of (or outside) a
class, a backslash in front of an ordinary character. The corners are Redis's too: a class that is never closed ends
with the pattern, ``]`` right after ``[`` closes an empty class (which nothing matches; ``[^]`` matches anything), a
range may be written backwards, and a backslash at the very end is itself. One thing differs: ``?`` and classes take a
whole character here, a byte in Redis.

The method: between two stars a pattern has a fixed length, and the leftmost place where such a piece fits is always a
right one (a later place only leaves less text for the rest). So the pattern becomes one regular expression whose
pieces are atomic groups: none is ever tried again. Cost: at worst the product of the lengths of text and longest
piece, never exponential.
"""

import re
from collections.abc import Callable

__all__ = ["compile_glob", "literal_prefix"]

_ANY = "*"


def compile_glob(pattern: str) -> Callable[[str], bool]:
    """A function that tells whether a whole text matches the pattern."""
    pieces = [""]  # regular expressions of a fixed length, cut at the stars
    plain = True  # whether nothing but ordinary characters (and perhaps one star after them) has been seen
    for character, expression in _read(pattern):
        if expression == _ANY:
            if pieces[-1] or len(pieces) == 1:
                pieces.append("")
        else:
            pieces[-1] += expression
            plain = plain and character is not None and len(pieces) == 1
    if plain:
        literal = literal_prefix(pattern)
        if len(pieces) == 1:
            return lambda text: text == literal
        return (lambda text: text.startswith(literal)) if literal else (lambda text: True)
    first, *later = pieces
    if later:
        *middle, last = later
        first += "".join(f"(?>.*?{piece})" for piece in middle) + f".*{last}"
    fits = re.compile(first, re.DOTALL).fullmatch
    return lambda text: fits(text) is not None


def literal_prefix(pattern: str) -> str:
    """The text with which everything that matches begins: what stands in front of the first special character."""
    prefix = ""
    for character, _ in _read(pattern):
        if character is None:
            break
        prefix += character
    return prefix


def _read(pattern: str) -> list[tuple[str | None, str]]:
    """The pattern's elements: the ordinary character (or ``None``), and a regular expression for it (or a star)."""
    elements: list[tuple[str | None, str]] = []
    at, end = 0, len(pattern)
    while at < end:
        character = pattern[at]
        at += 1
        if character == "*":
            elements.append((None, _ANY))
        elif character == "?":
            elements.append((None, "."))
        elif character == "[":
            expression, at = _read_class(pattern, at)
            elements.append((None, expression))
        else:
            if character == "\\" and at < end:
                character = pattern[at]
                at += 1
            elements.append((character, re.escape(character)))
    return elements


def _read_class(pattern: str, at: int) -> tuple[str, int]:
    """A regular expression for the class that opens just before ``at``, and where it ends."""
    end = len(pattern)
    negated = at < end and pattern[at] == "^"
    at += negated
    members: list[str] = []
    while at < end and pattern[at] != "]":
        if pattern[at] == "\\" and at + 1 < end:
            members.append(re.escape(pattern[at + 1]))
            at += 2
        elif at + 2 < end and pattern[at + 1] == "-":
            low, high = sorted((pattern[at], pattern[at + 2]))
            members.append(f"{re.escape(low)}-{re.escape(high)}")
            at += 3
        else:
            members.append(re.escape(pattern[at]))
            at += 1
    at += at < end  # the closing bracket
    if not members:
        return ("." if negated else "(?!)"), at
    return f"[{'^' if negated else ''}{''.join(members)}]", at
