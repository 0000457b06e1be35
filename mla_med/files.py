"""Text or values -> a file that is there whole or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mla_med.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """Writes beside `path` and renames. OutputError in one line, nothing left, where that fails."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"Cannot write {path}: {error.strerror}. Free some space and run it again."
        ) from error


def write_json(path: Path, values: Any) -> None:
    """As `write_text`. JSON knows neither infinity nor what is not a number: null."""
    write_text(path, json.dumps(_finite(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
