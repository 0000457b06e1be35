"""Text or values -> a file that is there whole or not at all."""

from __future__ import annotations

import json
import math
import os
import secrets
from pathlib import Path
from typing import Any

from mla_med.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """Writes beside `path` and renames: of two that write at once one is there, whole. OutputError in one
    line where that fails, and nothing left."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
        part.replace(path)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror}. Free some space and run it again."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """As `write_text`. JSON knows neither infinity nor what is not a number: null."""
    write_text(path, json.dumps(_finite(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """What was renamed or linked in it is still there after a power cut (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
