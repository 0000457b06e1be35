"""A file that its owner alone may read -> the secret in it. A new one appears whole, or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from mla_med.errors import ConfigError
from mla_med.files import sync_folder


def read_secret(path: Path, *, make: bool = False) -> bytes:
    """The bytes of a file that its owner alone may read; with `make`, a new one where there is none."""
    try:
        if make and not path.exists():
            _make_secret(path)
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Cannot read the secret in {path}: {error.strerror}.") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"{path} holds a secret and others may read it: chmod 600 {path}.", code="SECRET_EXPOSED"
        )
    return content


def _make_secret(path: Path) -> None:
    """Whole or not at all: of two processes that start at once one makes it, and neither reads half a key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
    sync_folder(path.parent)  # or a power cut takes its name, and all that was sealed with it is lost
