"""A file of references and a file of drafts -> pairs of texts, and what is missing from them.

JSON lines or CSV of any system. A line of JSON ends at "\\n" and nowhere else, a field of CSV where its
quotes end, so no text can shift a pair. Pairs are joined by id, never by place: a set that lacks drafts,
holds some twice or holds others is refused, because scoring what is left flatters whoever drafts only
the easy ones. What is allowed all the same counts as an empty draft. Knows no scores.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mla_med.errors import ConfigError, ReportError

IDS = ("id", "study_id", "study_uid", "uid", "accession", "AccessionNo")
TEXTS = ("report", "text")
REFERENCES = ("reference", "ref", "ground_truth", "gt", *TEXTS)
DRAFTS = ("draft", "prediction", "pred", "hypothesis", "hyp", "generated", *TEXTS)
"""Names of the fields; the first that a row has is taken, so one file may hold both texts."""

KINDS = ("missing", "empty", "duplicate", "unknown")
"""What a set of drafts can be allowed to have."""

_LIKE = '{"id": "1", "report": "..."}'
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_CHARACTERS = 1 << 24
"""In one field of CSV; Python's own limit is 131,072."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts of one study, and what else the two rows say of it (sex, age, maker, kernel, ...)."""

    id: str
    reference: str
    draft: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Ids in the order of their files. What the first three name has an empty draft in the pairs."""

    num_references: int
    missing: tuple[str, ...] = ()
    """References without a draft."""
    empty: tuple[str, ...] = ()
    """Drafts without a word."""
    duplicate: tuple[str, ...] = ()
    """Ids that several drafts have: which one was meant, nobody can say."""
    unknown: tuple[str, ...] = ()
    """Drafts without a reference; they are left out."""
    empty_references: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the references, those that have a draft with words in it."""
        without = len(self.missing) + len(self.empty) + len(self.duplicate)
        return 1 - without / self.num_references


@dataclass(frozen=True, slots=True)
class Pairs:
    """In the order of the references."""

    pairs: tuple[Pair, ...]
    coverage: Coverage

    @property
    def references(self) -> list[str]:
        return [pair.reference for pair in self.pairs]

    @property
    def drafts(self) -> list[str]:
        return [pair.draft for pair in self.pairs]


@dataclass(frozen=True, slots=True)
class Row:
    """One text with its id, and the other fields of its row."""

    id: str
    text: str
    meta: dict[str, Any]
    place: str


def read_pairs(refs: Path, drafts: Path, allow: Collection[str] = ()) -> Pairs:
    """`allow`: kinds of faults (KINDS, or "all") that count as empty drafts instead of being refused."""
    allowed = _allowed(allow)
    references, repeated = _by_id(read_rows(refs, REFERENCES))
    if repeated:
        raise ReportError(f"{_again(repeated[0], references)}; keep one.", code="IDS_DUPLICATE")
    found, doubled = _by_id(read_rows(drafts, DRAFTS))
    if doubled and "duplicate" not in allowed:
        raise ReportError(
            f"{_again(doubled[0], found)}; keep one, "
            "or allow duplicate ids, which then count as empty drafts.",
            code="IDS_DUPLICATE",
        )
    twice = {row.id for row in doubled}
    coverage = Coverage(
        num_references=len(references),
        missing=tuple(key for key in references if key not in found),
        empty=tuple(k for k, row in found.items() if k in references and k not in twice and _is_empty(row)),
        duplicate=tuple(key for key in found if key in twice and key in references),
        unknown=tuple(key for key in found if key not in references),
        empty_references=tuple(key for key, row in references.items() if _is_empty(row)),
    )
    _check(coverage, allowed, refs.name, drafts.name)
    pairs = tuple(_pair(row, None if row.id in twice else found.get(row.id)) for row in references.values())
    return Pairs(pairs, coverage)


def read_texts(path: Path) -> list[str]:
    """Texts alone, such as the training reports that floors are taken from; ids may be absent."""
    return [text for text, _, _ in _texts(path, TEXTS + REFERENCES)]


def _allowed(allow: Collection[str]) -> frozenset[str]:
    wrong = sorted(set(allow) - {*KINDS, "all"})
    if wrong:
        raise ConfigError(f"Cannot allow {wrong[0]!r} drafts; choose of {', '.join(KINDS)}, or all.")
    return frozenset(KINDS if "all" in allow else allow)


def _by_id(rows: Iterator[Row]) -> tuple[dict[str, Row], list[Row]]:
    first: dict[str, Row] = {}
    again = []
    for row in rows:
        if row.id in first:
            again.append(row)
        else:
            first[row.id] = row
    return first, again


def _again(row: Row, first: Mapping[str, Row]) -> str:
    return f"{row.place}: id {row.id!r} stood there before ({first[row.id].place})"


def _is_empty(row: Row) -> bool:
    return not row.text.strip()


def _check(coverage: Coverage, allowed: Collection[str], refs: str, drafts: str) -> None:
    if coverage.unknown and "unknown" not in allowed:
        raise ReportError(
            f"{_some(coverage.unknown)} of {drafts} not in {refs}. Are these drafts of another set?",
            code="IDS_UNKNOWN",
        )
    if coverage.missing and "missing" not in allowed:
        raise ReportError(
            f"{_some(coverage.missing)} of {refs} without a draft in {drafts}. "
            "Draft them, or allow missing drafts, which then score as empty reports.",
            code="IDS_MISSING",
        )
    for keys, name in ((coverage.empty, drafts), (coverage.empty_references, refs)):
        if keys and "empty" not in allowed:
            raise ReportError(
                f"{_some(keys)} of {name} without a word of text. "
                "Fill them in, or allow empty ones, which then score as they are.",
                code="TEXTS_EMPTY",
            )


def _pair(reference: Row, draft: Row | None) -> Pair:
    meta = {**draft.meta, **reference.meta} if draft else dict(reference.meta)
    return Pair(reference.id, reference.text, draft.text if draft else "", meta)


def _some(keys: Sequence[str]) -> str:
    named = ", ".join(map(repr, keys[:3])) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} id{'s' * (len(keys) > 1)} ({named})"


def read_rows(path: Path, names: Sequence[str]) -> Iterator[Row]:
    for text, row, place in _texts(path, names):
        key = next((name for name in IDS if name in row), None)
        if key is None:
            raise ReportError(f"{place}: no 'id'; it holds {_held(row)}. {_also(IDS[1:])}")
        known = {key, *REFERENCES, *DRAFTS}
        yield Row(_id(row[key], key, place), text, {k: v for k, v in row.items() if k not in known}, place)


def _texts(path: Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any], str]]:
    number = 0
    for row, place in _read_csv(path) if path.suffix.lower() in (".csv", ".tsv") else _read_lines(path):
        number += 1
        name = next((name for name in names if name in row), None)
        if name is None:
            other = [name for name in names if name not in TEXTS]
            raise ReportError(f"{place}: no {TEXTS[0]!r}; it holds {_held(row)}. {_also((TEXTS[1], *other))}")
        yield _text(row[name], name, place), row, place
    if not number:
        raise ReportError(f"{path.name} holds no reports; expected lines like {_LIKE}.")


def _read_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    text = _read_text(path)
    if text.lstrip().startswith("["):
        raise ReportError(
            f"{path.name} is one JSON array; write one object a line, as jq -c '.[]' {path.name} does."
        )
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path.name}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ReportError(
                f"{place}: not JSON ({error.msg}, column {error.colno}). Each line is an object like "
                f"{_LIKE}; a CSV file has to end in .csv or .tsv."
            ) from error
        except RecursionError as error:
            raise ReportError(f"{place}: JSON nested too deeply.") from error
        if not isinstance(row, dict):
            raise ReportError(f"{place}: expected an object like {_LIKE}.")
        yield row, place


def _read_csv(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    text = _read_text(path)
    header = text.split("\n", 1)[0]
    csv.field_size_limit(_MOST_CHARACTERS)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    columns: list[str] = []
    try:
        for cells in reader:
            place = f"{path.name}, line {reader.line_num}"
            if not columns:
                columns = [cell.strip() for cell in cells]
                twice = [name for name in columns if name and columns.count(name) > 1]
                if twice:
                    raise ReportError(f"{place}: two columns are called {twice[0]!r}; rename one.")
                continue
            if not any(cells):
                continue
            if len(cells) != len(columns):
                raise ReportError(
                    f"{place}: {len(cells)} fields under {len(columns)} columns. Is a text not in quotes?"
                )
            yield dict(zip(columns, cells, strict=True)), place
    except csv.Error as error:
        raise ReportError(f"{path.name}, line {reader.line_num}: not CSV ({error}).") from error


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReportError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise ReportError(f"{path.name}, line {number}: not UTF-8; save the file as UTF-8.") from error


def _id(value: object, name: str, place: str) -> str:
    if type(value) is int:
        return str(value)  # many archives number their studies
    if isinstance(value, str) and not value.strip():
        raise ReportError(f"{place}: {name!r} is empty; every report needs one of its own.")
    return _text(value, name, place)


def _text(value: object, name: str, place: str) -> str:
    if not isinstance(value, str):
        raise ReportError(f"{place}: {name!r} must be a string, not {json.dumps(value)[:40]}.")
    if _SURROGATE.search(value):
        raise ReportError(f"{place}: {name!r} holds half a character (a lone surrogate).")
    return value


def _also(names: Sequence[str]) -> str:
    return f"It may also be called {', '.join(names[:-1])} or {names[-1]}."


def _held(row: Mapping[str, object]) -> str:
    return ", ".join(map(repr, row)) or "nothing"
