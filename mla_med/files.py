"""Text -> a file that is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

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
