"""What proves that an entry was written by one who knows a secret: a signature, or encryption."""

import hmac
import os
from hashlib import blake2b
from typing import Any, Final, TypeAlias, final

from asynccache.errors import ConfigError

__all__ = ["MAC_BYTES", "Encryption", "Seal", "Signature", "secret_of"]

MAC_BYTES: Final = 32
"""How long a signature is."""

_COPIED_BYTES: Final = 16_384  # below, a copy is cheaper than two calls more; above, it holds the interpreter's lock
_NONCE_BYTES: Final = 12
_LEAST_SECRET: Final = 16


@final
class Signature:
    """Signs and checks by one secret: HMAC-SHA-256."""

    def __init__(self, secret: bytes) -> None:
        self._key = _derived(secret, b"sign")

    def seal(self, binding: bytes, body: bytes) -> tuple[bytes, bytes]:
        """What proves the body, to stand before it, and the body."""
        return self._mac(binding, body), body

    def open(self, binding: bytes, body: bytes | memoryview) -> bytes | memoryview | None:
        """The body inside; ``None`` when it is not proved."""
        inside = body[MAC_BYTES:]
        return inside if hmac.compare_digest(self._mac(binding, inside), body[:MAC_BYTES]) else None

    def _mac(self, binding: bytes, body: bytes | memoryview) -> bytes:
        if len(body) < _COPIED_BYTES:
            return hmac.digest(self._key, binding + body, "sha256")
        mac = hmac.new(self._key, binding, "sha256")
        mac.update(body)
        return mac.digest()


@final
class Encryption:
    """Encrypts and decrypts by one secret: AES-256-GCM."""

    def __init__(self, secret: bytes) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ConfigError(
                'codec: encryption takes the library cryptography: install "asynccache[crypto]"'
            ) from error
        self._cipher = AESGCM(_derived(secret, b"encrypt"))
        self._invalid = InvalidTag

    def seal(self, binding: bytes, body: bytes) -> tuple[bytes, bytes]:
        """What proves the body, to stand before it, and the body."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce, self._cipher.encrypt(nonce, body, binding)

    def open(self, binding: bytes, body: bytes | memoryview) -> bytes | None:
        """The body inside; ``None`` when it is not proved."""
        try:
            return self._cipher.decrypt(bytes(body[:_NONCE_BYTES]), bytes(body[_NONCE_BYTES:]), binding)
        except (self._invalid, ValueError):
            return None


Seal: TypeAlias = Signature | Encryption
"""What is done to an entry that nobody else may write, or read."""


def secret_of(key: Any) -> bytes:
    """A user's key as bytes.

    Raises:
        ConfigError: It is none, or too short.
    """
    try:
        secret = key.encode() if isinstance(key, str) else key
    except UnicodeEncodeError:  # it holds the secret: it must not even be this error's context
        secret = None
    if not isinstance(secret, bytes) or len(secret) < _LEAST_SECRET:
        raise ConfigError(f"codec: a key is a secret of at least {_LEAST_SECRET} bytes")  # and is not shown
    return secret


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return blake2b(secret, digest_size=32, person=b"ac:" + purpose).digest()
