"""CSV or JSON lines of `path, context, report` -> Pairs; and how every table here is read.

    path,patient,age,sex,context,report,findings,language,split
    ct/0001.nii.gz,17,64,F,fever and cough,"Consolidation in ...",consolidation;pleural_effusion,en,train

Only `path` or `report` has to be there. A path is relative to the table, and leads to a folder or ZIP of
DICOM, a NIfTI file or a picture; of an MR in NIfTI, a column for each sequence (T1, T2, FLAIR, ...) leads to
its file. Knows no pixels.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dapt.importers.pair import (
    Hide,
    ImageSource,
    Imported,
    Pair,
    Refused,
    check_code,
    language_of,
)
from mla_med.corpus import SPLITS, finding_from
from mla_med.dicom.study import check_whole, read_study
from mla_med.errors import ConfigError, MlaMedError, ReportError, StudyError
from mla_med.imaging.nifti import is_nifti
from mla_med.report.context import context_text
from mla_med.types import ClinicalContext, Finding, Presence, Sex

SEQUENCES = ("T1", "T2", "FLAIR", "DWI", "ADC", "SWI", "T1 contrast")
KNOWN = frozenset(
    (
        *("path", "patient", "study", "context", "report", "age", "sex", "findings", "language", "split"),
        *("impression", *SEQUENCES),
    )
)
_MOST_CHARACTERS = 1 << 24
"""In one field of CSV; Python's own limit is 131,072."""
SPLIT_NAMES = {"dev": "validation", "val": "validation", "valid": "validation", **{s: s for s in SPLITS}}
"""What splits are called elsewhere."""


def read_table(source: Path, examination: str, hide: Hide) -> Imported:
    """`source`: the table, .csv, .tsv or .jsonl. ConfigError where a column has no meaning here."""
    rows = list(read_rows(source))
    columns = dict.fromkeys(name for row, _ in rows for name in row)
    if unknown := [name for name in columns if name not in KNOWN]:
        raise ConfigError(
            f"{source.name} has a column '{unknown[0]}' that means nothing here; there are: "
            f"{', '.join(sorted(KNOWN))}. Rename it, or leave it out.",
            code="COLUMN_UNKNOWN",
        )
    if not {"path", "report", *SEQUENCES} & set(columns):
        raise ConfigError(
            f"{source.name} has neither a column 'path' nor 'report'; it has {', '.join(columns) or 'none'}.",
            code="COLUMN_MISSING",
        )
    for number, (row, place) in enumerate(rows):
        key = hide("e", source.name, str(number))
        try:
            yield _to_pair(row, place, key, source.parent, examination, hide)
        except MlaMedError as error:
            yield Refused(key, error.code, str(error), place, _paths(row, source.parent))


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each row with its place; ReportError where the table is none."""
    text = _read_text(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        yield from _csv_rows(text, path.name)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _json_row(line, f"{path.name}, line {number}"), f"{path.name}, line {number}"


def is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv", ".jsonl")


def patient_context(age: float | None, sex: str, indication: str, protocol: str = "") -> str:
    """The line that a model reads of the request, as `context_text` has it."""
    stated = sex.strip().upper()[:1]
    known = Sex(stated) if stated in tuple(Sex) else None
    # "O" is the first letter of "other" and of nothing else
    words = ", ".join(filter(None, (indication.strip(), protocol.strip())))
    return context_text(ClinicalContext(age_years=age, sex=known, indication=words))


def age_years(text: str, place: str = "") -> float | None:
    """ "64", "64.5", or as DICOM has it, "064Y" (PS3.5 6.2, AS); None where nothing is stated."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*([DWMY]?)(?:ears?|rs?)?", text.strip(), re.IGNORECASE)
    if not text.strip():
        return None
    if match is None or (float(match[1]) > 130 and match[2].upper() in ("", "Y")):
        raise ReportError(f"{place}: an age of 0 to 130 years is wanted.", code="AGE_INVALID")
    days = {"D": 1.0, "W": 7.0, "M": 365.25 / 12}.get(match[2].upper())
    return float(match[1]) if days is None else round(float(match[1]) * days / 365.25, 2)


def split_name(text: str, place: str) -> str | None:
    if not text.strip():
        return None
    if text.strip().lower() not in SPLIT_NAMES:
        raise ReportError(
            f"{place}: no split of that name; there are {', '.join(SPLIT_NAMES)}.", code="SPLIT_UNKNOWN"
        )
    return SPLIT_NAMES[text.strip().lower()]


def read_findings(stated: Any, examination: str, place: str) -> tuple[Finding, ...]:
    """A list of codes or of {"code", "site", "side", "size_mm", "count"}; in CSV as JSON, or codes and ; ."""
    if isinstance(stated, str):
        text = stated.strip()
        try:
            stated = (
                json.loads(text) if text.startswith("[") else [c for c in re.split(r"[;,\s]+", text) if c]
            )
        except json.JSONDecodeError as error:
            raise ReportError(f"{place}: 'findings' is not JSON ({error.msg}).") from error
    if not isinstance(stated, list):
        raise ReportError(f"{place}: 'findings' is a list of codes, or codes with ; between.")
    found = []
    for one in stated:
        values = {"code": one} if isinstance(one, str) else one
        if not isinstance(values, dict) or not isinstance(values.get("code"), str):
            raise ReportError(f"{place}: a finding is a code or an object with a 'code'.")
        check_code(values["code"], examination, place)
        try:
            found.append(finding_from(values))
        except ValueError as error:
            raise ReportError(f"{place}: a side is right, left or bilateral.") from error
    return tuple(f for f in found if f.presence is Presence.PRESENT)


def image_at(path: Path, place: str) -> ImageSource:
    """A folder, ZIP or file of DICOM is read as far as its headers; StudyError where there is nothing."""
    if not path.exists():
        raise StudyError(f"{place}: nothing lies at its path.", code="PATH_MISSING")
    if path.is_dir() or path.suffix.lower() in (".zip", ".dcm", ""):
        study = read_study(path)
        check_whole(study)
        return ImageSource(study=study)
    return ImageSource({"": path})


def _to_pair(
    row: Mapping[str, Any], place: str, key: str, folder: Path, examination: str, hide: Hide
) -> Pair:
    said = {name: _text(value, name, place) for name, value in row.items() if name != "findings"}
    image = _image(said, folder, place)
    report = said.get("report", "").strip()
    if image is None and not report:
        raise ReportError(f"{place}: neither an image nor a report.", code="PAIR_EMPTY")
    context = said.get("context", "")
    age = age_years(said.get("age", ""), place)
    if age is not None or said.get("sex"):
        context = patient_context(age, said.get("sex", ""), context)
    if image is not None and image.study is not None and not context:
        context = context_text(image.study.context)
    given = row.get("findings")
    findings = None
    if given not in (None, ""):
        findings = read_findings(given, examination, place)
    # without a patient, every row is another one; a study of DICOM tells its own
    study = said.get("study") or (image.study.study_uid if image and image.study else "") or place
    return Pair(
        key=key,
        patient=hide.person(said.get("patient") or study),
        study=hide("s", study),
        image=image,
        context=context,
        report=report or None,
        language=said.get("language", "").strip().lower() or language_of(report or context),
        findings=findings,
        split=split_name(said.get("split", ""), place),
        place=place,
    )


def _image(said: Mapping[str, str], folder: Path, place: str) -> ImageSource | None:
    named = {role: folder / said[role] for role in SEQUENCES if said.get(role, "").strip()}
    if named:
        for role, path in named.items():
            if not is_nifti(path) or not path.exists():
                raise StudyError(f"{place}: no NIfTI file in its column {role}.", code="PATH_MISSING")
        return ImageSource(named)
    return image_at(folder / said["path"], place) if said.get("path", "").strip() else None


def _paths(row: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    named = (row.get(name) for name in ("path", *SEQUENCES))
    return tuple(folder / name for name in named if isinstance(name, str) and name)


def _text(value: Any, name: str, place: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        raise ReportError(f"{place}: '{name}' is a text or a number.")
    return str(value)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise StudyError(f"Cannot read {path}: {error.strerror}.", code="PATH_MISSING") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path.name} is not UTF-8. Save it as UTF-8.", code="TABLE_INVALID") from error


def _csv_rows(text: str, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    header = text.split("\n", 1)[0]
    csv.field_size_limit(_MOST_CHARACTERS)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    columns: list[str] = []
    try:
        for cells in reader:
            place = f"{name}, line {reader.line_num}"
            if not columns:
                columns = [cell.strip() for cell in cells]
            elif len(cells) == len(columns):
                yield dict(zip(columns, cells, strict=True)), place
            elif any(cells):
                raise ReportError(
                    f"{place}: {len(cells)} fields under {len(columns)} columns. Is a text not in quotes?",
                    code="TABLE_INVALID",
                )
    except csv.Error as error:
        raise ReportError(
            f"{name}, line {reader.line_num}: not CSV ({error}).", code="TABLE_INVALID"
        ) from error


def _json_row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ReportError(f"{place}: not JSON.", code="TABLE_INVALID") from error
    if not isinstance(row, dict):
        raise ReportError(
            f'{place}: expected an object like {{"path": "...", "report": "..."}}.', code="TABLE_INVALID"
        )
    return row
