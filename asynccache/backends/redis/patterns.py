"""Text as a pattern of SCAN that matches nothing else."""

import re
from typing import Final

__all__ = ["escaped"]

_SPECIAL: Final = re.compile(r"([\\*?\[\]])")


def escaped(text: str) -> str:
    """The text with a backslash before each character that means something."""
    return _SPECIAL.sub(r"\\\1", text)
