"""Any Python object, by pickle: only for bytes whose signature was checked, because reading them runs code."""

import pickle
from typing import Any, Final, final

from asynccache.errors import DecodeError, EncodeError

__all__ = ["PickleSerializer"]

_PROTOCOL: Final = 5  # constant, so that every supported Python reads what another wrote


@final
class PickleSerializer:
    """Objects of any class that pickle knows. A class that is no longer there, or that will not be made, is a miss."""

    name: Final = "pickle"
    number: Final = 4

    def dumps(self, value: Any) -> bytes:
        """The object as a pickle.

        Raises:
            EncodeError: Its class, or that of something inside, cannot be pickled.
        """
        try:
            return pickle.dumps(value, _PROTOCOL)
        except Exception as error:
            raise EncodeError(f"a {type(value).__name__} cannot be pickled: {type(error).__name__}") from error

    def loads(self, data: bytes | memoryview) -> Any:
        """The object. Unpickling runs what the pickle says: the codec lets none pass that is not signed.

        Raises:
            DecodeError: It cannot be made any more.
        """
        try:
            return pickle.loads(data)
        except Exception as error:
            raise DecodeError(f"a pickled object cannot be made again: {type(error).__name__}") from error
