"""A folder of TOML -> Style: how a department words and lays out its reports, as data.

    my_style/
      style.toml        language, headings, words for sides, sites and change, layout
      chest_ct.toml     the phrases of one examination, one table a finding (brain_mr.toml, ...)

`base` in style.toml names another style: what this one does not say, that one does. Packaged styles
lie in `styles/<language>/<name>`; a site writes its own folder and checks it with `mla-med style`.
Knows no reports.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import Any

from mla_med.errors import ConfigError
from mla_med.report.interpret import rules
from mla_med.report.schema import SCHEMAS, SITES, FindingType, Place
from mla_med.types import Change, Presence, Side

STYLES = Path(str(files("mla_med.report"))) / "styles"
WORDINGS = ("present", "absent", "cannot_say", "impression")
"""What every finding needs phrases for; a countable one also `several` and `impression_several`."""
KEY_OF = {Presence.PRESENT: "present", Presence.ABSENT: "absent", Presence.CANNOT_SAY: "cannot_say"}


@dataclass(frozen=True, slots=True)
class Group:
    """A headed paragraph of the findings section."""

    title: str
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Wording:
    """The phrases of one examination. The first of each list is preferred; all of them are read."""

    technique: str
    normal: tuple[str, ...]
    """The impression where nothing is present."""
    cannot_say: tuple[str, ...]
    """One sentence of the impression for all that could not be said; {terms} are the findings."""
    groups: tuple[Group, ...]
    """Empty: one paragraph in the order of the schema."""
    terms: Mapping[str, str]
    """Code -> the bare term."""
    interpretations: Mapping[str, tuple[str, ...]]
    """Keys of interpretations.toml -> sentences of the impression."""
    phrases: Mapping[str, Mapping[str, tuple[str, ...]]]
    """Code -> present, several, absent, cannot_say, impression, impression_several -> phrases."""
    changes: Mapping[str, Mapping[Change, str]]
    """Code -> what is put before the stop of a sentence whose finding has changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Style:
    """How reports read. Slots of a phrase: {place}, {side}, {site}, {size} in mm, {size_cm}, {count}."""

    name: str
    language: str
    stop: str
    """What ends a sentence."""
    between: str
    """What stands between the sentences of a section."""
    listed: str
    """What stands between the terms of a list."""
    bullet: str
    """What stands before each sentence; {n} is its number."""
    headings: Mapping[str, str]
    """technique, findings, impression."""
    sides: Mapping[Side, str]
    sites: Mapping[str, str]
    place: str
    """How a side and a site are joined."""
    places: Mapping[str, str]
    """Exceptions to that, by "side site": {"right upper_lobe": "RUL"}."""
    examinations: Mapping[str, Wording]

    def wording(self, examination: str) -> Wording:
        """The phrases of an examination; ConfigError names those that there are."""
        if examination not in self.examinations:
            raise ConfigError(
                f"Style '{self.name}' ({self.language}) has no phrases for '{examination}'; "
                f"there are: {', '.join(self.examinations)}. Add {examination}.toml to its folder.",
                code="STYLE_INCOMPLETE",
            )
        return self.examinations[examination]

    def place_words(self, place: Place) -> str:
        side, site = place
        exception = self.places.get(f"{side or ''} {site or ''}".strip())
        if exception is not None:
            return exception
        if side is None or site is None:
            return self.sides[side] if side else self.sites[site] if site else ""
        return self.place.format(side=self.sides[side], site=self.sites[site])


@cache
def load_style(name: str = "prose", language: str = "en") -> Style:
    """A packaged style; ConfigError names those that exist."""
    folder = STYLES / language / name
    if not (folder / "style.toml").is_file():
        known = ", ".join(packaged_styles(language)) or "none"
        raise ConfigError(
            f"No style '{name}' in language '{language}'; there are: {known}.", code="STYLE_UNKNOWN"
        )
    return read_style(folder)


def packaged_styles(language: str) -> tuple[str, ...]:
    return tuple(sorted(path.parent.name for path in (STYLES / language).glob("*/style.toml")))


def packaged_languages() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in STYLES.iterdir() if path.is_dir()))


def read_style(folder: Path) -> Style:
    """A folder -> its style, completed from its base. ConfigError says what is missing or misspelt."""
    tables = _read_tables(folder)
    words = tables.pop("style")
    _check_words(words, f"{folder}/style.toml")
    changes = {change: _text(words, "changes", folder, change) for change in Change}
    return Style(
        name=folder.name,
        language=_text(words, "language", folder),
        stop=_text(words, "stop", folder),
        between=_text(words, "between", folder),
        listed=_text(words, "listed", folder),
        bullet=_text(words, "bullet", folder),
        headings={name: _text(words, "headings", folder, name) for name in _HEADINGS},
        sides={side: _text(words, "sides", folder, side) for side in Side},
        sites=_sites(words, tables, folder),
        place=_text(words, "place", folder),
        places=dict(words.get("places", {})),
        examinations={name: _to_wording(name, table, changes, folder) for name, table in tables.items()},
    )


_HEADINGS = ("technique", "findings", "impression")
_WORDS = ("language", "base", "stop", "between", "listed", "bullet", "place")
_TABLES: Mapping[str, Collection[str]] = {
    "headings": _HEADINGS,
    "sides": tuple(Side),
    "sites": tuple(SITES),
    "places": tuple(
        dict.fromkeys(
            " ".join(filter(None, place))
            for schema in SCHEMAS.values()
            for kind in schema.values()
            for place in kind.places
            if any(place)
        )
    ),
    "changes": tuple(Change),
}
SLOTS = ("place", "side", "site", "size", "size_cm", "count", "terms")


def _check_words(words: Mapping[str, Any], where: str) -> None:
    _check_keys(words, (*_WORDS, *_TABLES), where)
    for name, legal in _TABLES.items():
        _check_keys(words.get(name, {}), legal, f"{where} [{name}]")


def _check_keys(table: Mapping[str, Any], legal: Collection[str], where: str) -> None:
    """A misspelt key would be passed over, and the words of the base written."""
    odd = sorted(set(table) - set(legal))
    if odd:
        raise ConfigError(f"{where}: '{odd[0]}' is not one of: {', '.join(legal)}.", code="STYLE_INVALID")


def _sites(words: Mapping[str, Any], examinations: Iterable[str], folder: Path) -> Mapping[str, str]:
    needed = [site for name in examinations for kind in SCHEMAS[name].values() for site in kind.sites]
    return {site: _text(words, "sites", folder, site) for site in dict.fromkeys(needed)}


def _read_tables(folder: Path, depth: int = 0) -> dict[str, dict[str, Any]]:
    """ "style" and each examination -> its table, laid over those of the base."""
    own = {path.stem: _read_toml(path) for path in sorted(folder.glob("*.toml"))}
    if "style" not in own:
        raise ConfigError(
            f"{folder} holds no style.toml. A style is a folder with style.toml and a file of phrases "
            "for each examination.",
            code="STYLE_UNKNOWN",
        )
    unknown = sorted(set(own) - {"style", *SCHEMAS})
    if unknown:
        raise ConfigError(
            f"{folder}: {unknown[0]}.toml is no examination; there are: {', '.join(SCHEMAS)}.",
            code="STYLE_INVALID",
        )
    base = own["style"].get("base")
    if base is None:
        return own
    if depth > 4:
        raise ConfigError(f"{folder}: the base of a style leads back to itself.", code="STYLE_INVALID")
    below = _read_tables(_find_base(folder, base, own["style"]), depth + 1)
    return {name: _lay_over(below.get(name, {}), own.get(name, {})) for name in {**below, **own}}


def _find_base(folder: Path, base: str, words: Mapping[str, Any]) -> Path:
    places = (folder.parent / base, STYLES / str(words.get("language", "en")) / base)
    for place in places:
        if (place / "style.toml").is_file():
            return place
    raise ConfigError(f"{folder}: its base '{base}' is neither beside it nor packaged.", code="STYLE_UNKNOWN")


def _lay_over(below: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged, everything else is replaced."""
    both = {**below, **own}
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            both[key] = _lay_over(below[key], value)
    return both


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", code="STYLE_INVALID") from error


def _text(table: Mapping[str, Any], key: str, folder: Path, inner: str | None = None) -> str:
    value = table.get(key) if inner is None else table.get(key, {}).get(inner)
    if not isinstance(value, str):
        name = key if inner is None else f"{inner} under [{key}]"
        raise ConfigError(f"{folder}/style.toml lacks the text {name}.", code="STYLE_INCOMPLETE")
    return value


def _to_wording(
    examination: str, table: dict[str, Any], changes: Mapping[Change, str], folder: Path
) -> Wording:
    """`changes` are the words of the style; a finding may have its own: an effusion does not grow."""
    schema = SCHEMAS[examination]
    where = f"{folder}/{examination}.toml"
    unknown = sorted(set(table) - set(schema) - {"technique", "impression", "interpretations", "groups"})
    if unknown:
        raise ConfigError(f"{where}: [{unknown[0]}] is no finding of this examination.", code="STYLE_INVALID")
    for code in table.keys() & schema.keys():
        _check_keys(table[code], ("term", "changes", *_keys(schema[code])), f"{where} [{code}]")
    impression = table.get("impression", {})
    return Wording(
        technique=str(table.get("technique", "")),
        normal=_phrases(impression, "normal", f"{where} [impression]"),
        cannot_say=_phrases(impression, "cannot_say", f"{where} [impression]"),
        groups=_groups(table.get("groups", []), schema, where),
        terms={code: str(table.get(code, {}).get("term", kind.term)) for code, kind in schema.items()},
        interpretations={
            rule.key: _phrases(table.get("interpretations", {}), rule.key, f"{where} [interpretations]")
            for rule in rules(examination)
        },
        phrases={
            code: {key: _phrases(table.get(code, {}), key, f"{where} [{code}]") for key in _keys(kind)}
            for code, kind in schema.items()
        },
        changes={code: _changes(table.get(code, {}), changes, f"{where} [{code}]") for code in schema},
    )


def _changes(table: Mapping[str, Any], usual: Mapping[Change, str], where: str) -> Mapping[Change, str]:
    own = table.get("changes", {})
    _check_keys(own, tuple(Change), f"{where} changes")
    return {change: str(own.get(change, said)) for change, said in usual.items()}


def _keys(kind: FindingType) -> tuple[str, ...]:
    return (*WORDINGS, "several", "impression_several") if kind.countable else WORDINGS


def _phrases(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise ConfigError(f"{where} lacks phrases for '{key}'.", code="STYLE_INCOMPLETE")
    for phrase in value:
        _check_slots(phrase, f"{where} {key}")
    return tuple(value)


def _check_slots(phrase: str, where: str) -> None:
    try:
        slots = [slot for _, slot, _, _ in Formatter().parse(phrase) if slot is not None]
    except ValueError as error:
        raise ConfigError(f"{where}: the braces of '{phrase}' do not match.", code="STYLE_INVALID") from error
    _check_keys(dict.fromkeys(slots), SLOTS, f"{where}: the slots of '{phrase}'")


def _groups(rows: list[dict[str, Any]], schema: Mapping[str, FindingType], where: str) -> tuple[Group, ...]:
    groups = tuple(Group(row["title"], tuple(row["codes"])) for row in rows)
    named = [code for group in groups for code in group.codes]
    if groups and sorted(named) != sorted(schema):
        odd = sorted(set(named) ^ set(schema)) or sorted({c for c in named if named.count(c) > 1})
        raise ConfigError(
            f"{where}: the groups have to name every finding once; see '{odd[0]}'.", code="STYLE_INVALID"
        )
    return groups
