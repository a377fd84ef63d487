"""The exceptions that leave this package.

::

    CacheError
    ├── BackendError            the store failed (degraded to a miss unless on_error="raise")
    │   ├── BackendUnavailable  the store could not be asked
    │   └── BackendTimeout      the store did not answer in time
    ├── CodecError
    │   ├── EncodeError         a value would not come back equal
    │   └── DecodeError         bytes at rest are damaged or foreign
    ├── InvalidKeyError         (also a ValueError)
    ├── ConfigError             (also a ValueError)
    ├── LoadError
    │   ├── LoadTimeout         (also a TimeoutError)
    │   ├── LoadCancelled
    │   └── RecursiveLoad
    ├── LockTimeout             (also a TimeoutError)
    ├── NotSupported
    └── CacheClosed

What a factory raises is not wrapped: it reaches the callers as it is. What a store's library raises is always wrapped,
with the original as ``__cause__``.
"""

__all__ = [
    "BackendError",
    "BackendTimeout",
    "BackendUnavailable",
    "CacheClosed",
    "CacheError",
    "CodecError",
    "ConfigError",
    "DecodeError",
    "EncodeError",
    "InvalidKeyError",
    "LoadCancelled",
    "LoadError",
    "LoadTimeout",
    "LockTimeout",
    "NotSupported",
    "RecursiveLoad",
]


class CacheError(Exception):
    """The root: every error that this package makes is one of these."""


class BackendError(CacheError):
    """Raised when a store fails, with its library's exception as ``__cause__``.

    Attributes:
        reason: Why, in words for a log: without keys and values. Empty where only the kind of error is known.
        sent: Whether the store may have been asked; where it was not, nothing has happened there.
        operation: What a cache asked of it: ``get``, ``set``, …, as in the metric ``cache.operation.duration``. Empty
            where the store tells of something that no call has asked for.
        cache: The name of that cache.
    """

    reason = ""
    sent = True
    operation = ""
    cache = ""


class BackendUnavailable(BackendError):
    """Raised when a store cannot be asked: refused, reset, or behind an open breaker."""


class BackendTimeout(BackendError):
    """Raised when a store does not answer within the operation's deadline."""


class CodecError(CacheError):
    """Raised when a value cannot be turned into bytes, or bytes into a value."""


class EncodeError(CodecError):
    """Raised when a value cannot be stored so that it comes back equal."""


class DecodeError(CodecError):
    """Raised when stored bytes are damaged, of an unknown version, or somebody else's."""


class InvalidKeyError(CacheError, ValueError):
    """Raised when a key or namespace is not a non-empty, well-formed text of at most 1,024 bytes."""


class ConfigError(CacheError, ValueError):
    """Raised when an option is unknown, ill-typed or contradicts another one."""


class LoadError(CacheError):
    """Raised when a load ends without a value for a reason that is not the factory's own exception."""


class LoadTimeout(LoadError, TimeoutError):
    """Raised when a load passes its ``hard_timeout`` and no stale value can stand in."""


class LoadCancelled(LoadError):
    """Raised when the factory that a caller waits for was cancelled, though the caller was not."""


class RecursiveLoad(LoadError):
    """Raised when a factory waits, directly or through other keys, for the key that it is loading."""


class LockTimeout(CacheError, TimeoutError):
    """Raised when a lock is not obtained within its ``timeout``."""


class NotSupported(CacheError):
    """Raised when the store has no such ability."""


class CacheClosed(CacheError):
    """Raised when a cache is used after ``aclose``."""
