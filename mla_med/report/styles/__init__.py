"""Style packs: how a department words its reports, as data. One folder a language, one file a style."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from mla_med.errors import ConfigError
from mla_med.report.schema import CHEST_CT

Style = dict[str, Any]


@cache
def load_style(name: str = "prose", language: str = "en") -> Style:
    """-> the phrases of a packaged style. ConfigError names what exists when it is unknown."""
    folder = files(__package__) / language
    source = folder / f"{name}.toml"
    if not source.is_file():
        known = sorted(f.name.removesuffix(".toml") for f in folder.iterdir()) if folder.is_dir() else []
        raise ConfigError(
            f"No style '{name}' in language '{language}'; there are: {', '.join(known) or 'none'}.",
            code="STYLE_UNKNOWN",
        )
    style = tomllib.loads(source.read_text(encoding="utf-8"))
    missing = sorted(set(CHEST_CT) - set(style))
    assert not missing, f"style {name} has no phrases for {missing}"
    return style
