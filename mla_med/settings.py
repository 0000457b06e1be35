"""A section of a site's TOML file -> its frozen dataclass, checked key by key. Knows no section's meaning."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from mla_med.errors import ConfigError

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "tuple[str, ...]": (list,),
}
T = TypeVar("T")


def read_section(
    path: Path, name: str, kind: type[T], over: Mapping[str, str] | None = None, places: Collection[str] = ()
) -> T:
    """The section [name] as a `kind`, a dataclass whose fields are of the types above; all its defaults where
    the file has no such section. `over`: values from elsewhere, which win where they are not empty.
    `places`: keys that name a file, a folder or a database; what is relative is so to the file's own folder,
    wherever a command is called from.

    ConfigError for a file that cannot be read, a value of another type, or an unknown key, with the nearest.
    """
    try:
        section = tomllib.loads(path.read_text("utf-8")).get(name, {})
    except OSError as error:
        raise ConfigError(f"Cannot read the settings {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML in UTF-8: {error}.") from error
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: [{name}] is no section.")
    known = {f.name: str(f.type) for f in fields(kind)}  # type: ignore[arg-type]
    defaults = {f.name: f.default for f in fields(kind) if f.name in places}  # type: ignore[arg-type]
    given = defaults | {key: _checked(path, name, key, value, known) for key, value in section.items()}
    given |= {key: beside(path, given[key]) for key in places}
    return kind(**given | {key: value for key, value in (over or {}).items() if value})


def beside(path: Path, place: str) -> str:
    """As seen from the settings' folder; what is empty, absolute or no file stays as it is."""
    found = re.match(r"sqlite(\+\w+)?:///", place)
    scheme = found[0] if found else ""
    name = place.removeprefix(scheme)
    if not name or "://" in name or name.startswith((":memory:", "file:")):
        return place
    return f"{scheme}{path.parent / name}"


def _checked(path: Path, name: str, key: str, value: Any, known: Mapping[str, str]) -> Any:
    if key not in known:
        near = get_close_matches(key, known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{path}: [{name}] has no key {key!r}.{hint}")
    wanted = known[key]
    fits = isinstance(value, _TYPES[wanted]) and isinstance(value, bool) == (wanted == "bool")
    if not fits or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
        words = wanted.replace("tuple[str, ...]", "list of str")
        raise ConfigError(f"{path}: [{name}] {key} must be of type {words}.")
    return tuple(value) if isinstance(value, list) else value
