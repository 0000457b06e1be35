"""A site's secret -> hashes to look up by, and bytes that only the site can read.

Why sealed rows and not files beside the database: bytes and state are then committed in one
transaction, on SQLite as on PostgreSQL with several hosts, and a backup of the database is no copy
of patients. Who loses the key loses the undelivered documents; the images are still in the PACS.

AES-256-GCM with a random nonce (NIST SP 800-38D), HMAC-SHA-256 (FIPS 198-1), subkeys by HKDF
(RFC 5869). Knows nothing of what it seals.
"""

from __future__ import annotations

import hmac
import os
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mla_med.errors import ConfigError, LedgerError

MIN_SECRET_BYTES = 16
_NONCE_BYTES = 12


class SiteKey:
    """The same secret gives the same hashes: two sites' ledgers cannot be matched."""

    def __init__(self, secret: bytes):
        if len(secret) < MIN_SECRET_BYTES:
            raise ConfigError(
                f"The site key has {len(secret)} bytes; give at least {MIN_SECRET_BYTES} random ones.",
                code="KEY_TOO_SHORT",
            )
        self._lookup = _subkey(secret, b"mla_med ledger lookup")
        self._cipher = AESGCM(_subkey(secret, b"mla_med ledger seal"))

    def hash(self, kind: str, value: str | bytes) -> str:
        """Of a UID or of content. `kind` keeps a study's hash from equalling an instance's."""
        value = value.encode() if isinstance(value, str) else value
        return hmac.new(self._lookup, kind.encode() + b"\0" + value, sha256).hexdigest()

    def seal(self, content: bytes, about: str) -> bytes:
        """`about`: the row that it belongs to; sealed bytes that are moved to another row do not open."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, about.encode())

    def unseal(self, sealed: bytes, about: str) -> bytes:
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.encode())
        except (InvalidTag, ValueError):  # ValueError: too short to be anything that was sealed
            raise LedgerError(
                f"Row {about} does not open with this site key. Is it the key that the ledger was made with?",
                code="KEY_WRONG",
            ) from None


def _subkey(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)
