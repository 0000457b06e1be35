"""What a bench found -> printed, and kept as Markdown and JSON. Knows no bench."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mla_med.files import write_text


def tell(name: str, words: str, values: Any, out: Path | None) -> None:
    """Prints `words`; with `out`, also NAME.md and NAME.json there."""
    print(words)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / f"{name}.md", words)
        write_text(out / f"{name}.json", json.dumps(_finite(values), indent=1) + "\n")


def _finite(values: Any) -> Any:
    """JSON knows neither infinity nor what is not a number: null."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
