"""TOML -> Examinations: what each examination is read from, checked before anything relies on it.

The packaged `examinations.toml` explains the keys; a site's file of the same form changes them.
Knows nothing of series or of how a criterion compares them.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from mla_med.dicom.sequence import WEIGHTED_KINDS
from mla_med.errors import ConfigError
from mla_med.types import Modality

ORIENTATIONS = ("axial", "coronal", "sagittal", "oblique")


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a manufacturer's reconstruction kernels are called: patterns on upper case."""

    manufacturer: str
    """How the manufacturer's name starts, upper case; empty: it holds for all."""
    soft: tuple[str, ...] = ()
    sharp: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """One series that an examination wants."""

    criteria: tuple[str, ...]
    """By which candidates are compared, the weightiest first."""
    orientations: tuple[str, ...] = ("axial",)
    """The preferred first; others are never chosen."""
    thickness_mm: tuple[float, float] = (0.5, 5.0)
    role: str = ""
    sequence: str = ""
    """A kind of MrSequence; empty: any."""
    b_value: tuple[float, float] = (800.0, 1200.0)
    """s/mm2: within, the highest is preferred."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What an examination is read from."""

    name: str
    modality: str
    wanted: Wanted
    """The one series; where there are `sequences`, what holds for each unless it says otherwise."""
    sequences: tuple[Wanted, ...] = ()
    body_words: tuple[str, ...] = ()
    """Any of them in the body part or the series description agrees."""
    other_body_words: tuple[str, ...] = ()
    """Any of them, without one of the above, excludes."""
    min_coverage_mm: float = 0.0
    min_coverage_share: float = 0.5
    """A series covers too little if it is shorter than this share of the longest candidate."""
    phases: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Name of a contrast phase and the patterns of its words; the preferred phase first."""
    kernels: tuple[Kernels, ...] = ()


Tables = dict[str, dict[str, dict[str, Any]]]
"""Kind of table -> name -> key -> checked value."""
Check = Callable[[Any, str], Any]
"""Takes a stored value and its place in words, and gives what the dataclasses hold."""


def read_examinations(path: Path | None, criteria: Collection[str]) -> dict[str, Examination]:
    """By name: the packaged examinations, changed by those of `path`. `criteria` are the known ones."""
    tables = _packaged()
    if path is not None:
        tables = _merged(tables, _read(path.read_text, path.name))
    where = "examinations.toml" if path is None else path.name
    kernels = tuple(_kernels(table, f"{where}: kernel.{name}") for name, table in tables["kernel"].items())
    return {
        name: _examination(name, table, tables["phase"], kernels, criteria, f"{where}: examination.{name}")
        for name, table in tables["examination"].items()
    }


@cache
def _packaged() -> Tables:
    source = files(__package__) / "examinations.toml"
    return _read(source.read_text, source.name)


def _read(read_text: Callable[..., str], where: str) -> Tables:
    try:
        stored = tomllib.loads(read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{where} cannot be read: {error.strerror}. Give a TOML file of examinations.",
            code="RULES_UNREADABLE",
        ) from error
    except ValueError as error:
        raise ConfigError(f"{where} is not TOML in UTF-8: {error}.", code="RULES_UNREADABLE") from error
    _check_known(stored, KEYS, f"{where} has no table")
    return {kind: _named_tables(stored.get(kind, {}), kind, f"{where}: {kind}") for kind in KEYS}


def _named_tables(stored: Any, kind: str, place: str) -> dict[str, dict[str, Any]]:
    if not isinstance(stored, dict) or not all(isinstance(table, dict) for table in stored.values()):
        raise _invalid(place, "needs a name behind it, as in [examination.chest_ct]")
    return {name: _checked(table, KEYS[kind], f"{place}.{name}") for name, table in stored.items()}


def _checked(table: Mapping[str, Any], keys: Mapping[str, Check], place: str) -> dict[str, Any]:
    _check_known(table, keys, f"{place} has no key")
    return {key: keys[key](value, f"{place}.{key}") for key, value in table.items()}


def _check_known(
    words: Iterable[str], known: Iterable[str], complaint: str, code: str = "UNKNOWN_KEY"
) -> None:
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]
            raise ConfigError(f"{complaint} {word!r}. Did you mean {near!r}?", code=code)


def _invalid(place: str, words: str) -> ConfigError:
    return ConfigError(f"{place} {words}.", code="RULES_INVALID")


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _invalid(place, f"is a text, not {value!r}")
    return value


def _upper(value: Any, place: str) -> str:
    return _text(value, place).upper()


def _texts(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _invalid(place, f"is a list of texts, not {value!r}")
    return tuple(value)


def _uppers(value: Any, place: str) -> tuple[str, ...]:
    return tuple(text.upper() for text in _texts(value, place))


def _patterns(value: Any, place: str) -> tuple[str, ...]:
    for pattern in _texts(value, place):
        try:
            re.compile(pattern)
        except re.error as error:
            raise _invalid(place, f"holds {pattern!r}, which is no regular expression: {error}") from error
    return tuple(value)


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise _invalid(place, f"is a number from 0 up, not {value!r}")
    return float(value)


def _share(value: Any, place: str) -> float:
    if _number(value, place) > 1:
        raise _invalid(place, f"is a share from 0 to 1, not {value!r}")
    return float(value)


def _range(value: Any, place: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise _invalid(place, f"is two numbers, the lower first, not {value!r}")
    low, high = (_number(number, place) for number in value)
    if low > high:
        raise _invalid(place, f"is two numbers, the lower first, not {value!r}")
    return low, high


def _modality(value: Any, place: str) -> str:
    _check_known([_text(value, place)], [*map(str, Modality)], f"{place} is CT or MR, not", "RULES_INVALID")
    return value


def _orientations(value: Any, place: str) -> tuple[str, ...]:
    _check_known(_texts(value, place), ORIENTATIONS, f"{place} has no orientation", "RULES_INVALID")
    return tuple(value)


def _sequence(value: Any, place: str) -> str:
    _check_known([_text(value, place)], WEIGHTED_KINDS, f"{place} has no sequence", "RULES_INVALID")
    return value


def _sequences(value: Any, place: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise _invalid(place, "is a list of tables, as in [[examination.brain_mr.sequences]]")
    checked = tuple(_checked(table, SEQUENCE_KEYS, f"{place}[{n}]") for n, table in enumerate(value))
    for key in ("role", "sequence"):
        named = [table.get(key, "") for table in checked]
        if "" in named or len(set(named)) < len(named):
            raise _invalid(place, f"needs a {key} in each table, each another one")
    return checked


WANTED_KEYS: dict[str, Check] = {
    "orientations": _orientations,
    "thickness_mm": _range,
    "criteria": _texts,
}
SEQUENCE_KEYS: dict[str, Check] = {**WANTED_KEYS, "role": _text, "sequence": _sequence, "b_value": _range}
KEYS: dict[str, dict[str, Check]] = {
    "examination": {
        **WANTED_KEYS,
        "modality": _modality,
        "sequences": _sequences,
        "body_words": _uppers,
        "other_body_words": _uppers,
        "min_coverage_mm": _number,
        "min_coverage_share": _share,
        "phases": _texts,
    },
    "kernel": {"manufacturer": _upper, "soft": _patterns, "sharp": _patterns},
    "phase": {"words": _patterns},
}


def _merged(packaged: Tables, own: Tables) -> Tables:
    """Key by key; the packaged tables keep their order, the new ones follow."""
    return {
        kind: {
            name: packaged[kind].get(name, {}) | own[kind].get(name, {})
            for name in packaged[kind] | own[kind]
        }
        for kind in KEYS
    }


def _kernels(table: Mapping[str, Any], place: str) -> Kernels:
    if "manufacturer" not in table:
        raise _invalid(place, "needs manufacturer")
    return Kernels(**table)


def _examination(
    name: str,
    table: Mapping[str, Any],
    phases: Mapping[str, Mapping[str, Any]],
    kernels: tuple[Kernels, ...],
    criteria: Collection[str],
    place: str,
) -> Examination:
    missing = [key for key in ("modality", "criteria") if not table.get(key)]
    if missing:
        raise _invalid(place, f"needs {' and '.join(missing)}")
    _check_known(table.get("phases", ()), phases, f"{place} has no phase", "RULES_INVALID")
    shared = {key: table[key] for key in WANTED_KEYS if key in table}
    wanted = Wanted(**shared)
    sequences = tuple(Wanted(**(shared | own)) for own in table.get("sequences", ()))
    for one in (wanted, *sequences):
        _check_known(one.criteria, criteria, f"{place} has no criterion", "UNKNOWN_CRITERION")
    rest = {key: table[key] for key in table if key not in (*WANTED_KEYS, "sequences", "phases")}
    named_phases = tuple((phase, phases[phase].get("words", ())) for phase in table.get("phases", ()))
    return Examination(
        name=name, wanted=wanted, sequences=sequences, phases=named_phases, kernels=kernels, **rest
    )
