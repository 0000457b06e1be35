"""What a bench found -> printed, and kept as Markdown and JSON. Knows no bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mla_med.files import write_json, write_text


def tell(name: str, words: str, values: Any, out: Path | None) -> None:
    """Prints `words`; with `out`, also NAME.md and NAME.json there."""
    print(words)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / f"{name}.md", words)
        write_json(out / f"{name}.json", values)
