"""Public collections of texts and pictures -> Pairs: MedPix 2.0, IU X-Ray, ROCO captions.

    medpix    data_{train,dev}.jsonl, descriptions_{train,dev}.jsonl, images/   (Siragusa et al., 2024)
    iu-xray   annotation.json, as R2Gen split it (Chen et al., 2020); text alone
    roco      captions.txt, licences.txt (Pelka et al., 2018); text alone

Splits are the official ones. Knows no pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dapt.importers.pair import PICTURE_SUFFIXES, Hide, ImageSource, Imported, Pair, Refused, lay_out
from dapt.importers.tables import SPLIT_NAMES, age_years, patient_context, read_rows
from mla_med.errors import ReportError, StudyError

MEDPIX_TEXTS = ("caption", "findings", "case")
"""What is the report of a picture: its caption, the findings of its case, or both and the diagnosis."""


def read_medpix(source: Path, hide: Hide, text: str = "caption") -> Imported:
    """A pair for each picture. The findings of a case speak of all its pictures."""
    pictures = source / "images"
    tables = sorted(source.glob("descriptions_*.jsonl"))
    if not tables or not pictures.is_dir():
        raise StudyError(
            f"No MedPix at {source}: descriptions_train.jsonl, data_train.jsonl and images/ are wanted.",
            code="SOURCE_DIFFERS",
        )
    suffix = {path.stem: path for path in sorted(pictures.iterdir()) if path.suffix in PICTURE_SUFFIXES}
    for table in tables:
        name = table.stem.removeprefix("descriptions_")
        cases = {
            str(row.get("U_id")): row.get("Case") or {} for row, _ in read_rows(source / f"data_{name}.jsonl")
        }
        for row, place in read_rows(table):
            yield _picture(row, place, cases, suffix, SPLIT_NAMES.get(name), text, hide)


def _picture(
    row: Mapping[str, Any],
    place: str,
    cases: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, Path],
    split: str | None,
    text: str,
    hide: Hide,
) -> Pair | Refused:
    image, case_id, said = str(row.get("image")), str(row.get("U_id")), row.get("Description") or {}
    case, key = cases.get(case_id, {}), hide("e", "medpix", image)
    if image not in files:
        return Refused(key, "PATH_MISSING", f"{place}: its picture is not in images/.", place)
    texts = {
        "caption": _words(said.get("Caption")),
        "findings": _words(case.get("Findings")),
        "diagnosis": _words(case.get("Case Diagnosis")),
    }
    try:
        age = age_years(_words(said.get("Age")), place)
    except ReportError:
        age = None  # "N/A", "newborn": a picture is worth more than its age
    protocol = ", ".join(filter(None, (_words(said.get("Modality")), _words(said.get("Plane")).lower())))
    reports = {
        "caption": texts["caption"],
        "findings": texts["findings"],
        "case": lay_out(
            " ".join(filter(None, (texts["caption"], texts["findings"]))), texts["diagnosis"], "en"
        ),
    }
    return Pair(
        key=key,
        patient=hide.person("medpix", case_id),
        study=hide("s", "medpix", case_id, str(row.get("Type"))),
        image=ImageSource({"": files[image]}),
        context=patient_context(age, _words(said.get("Sex")), _words(case.get("History")), protocol),
        report=reports[text] or None,
        split=split,
        texts={name: words for name, words in texts.items() if words},
        place=place,
    )


def read_iu_xray(source: Path, hide: Hide) -> Imported:
    path = source / "annotation.json" if source.is_dir() else source
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(
            f"No IU X-Ray at {source}: annotation.json is wanted.", code="SOURCE_DIFFERS"
        ) from error
    for name, rows in splits.items():
        for number, row in enumerate(rows, start=1):
            place = f"{path.name}, {name} {number}"
            report, key = _words(row.get("report")), hide("e", "iu-xray", str(row.get("id")))
            if not report:
                yield Refused(key, "PAIR_EMPTY", f"{place}: no report.", place)
                continue
            person = hide.person("iu-xray", str(row["id"]))
            study = hide("s", "iu-xray", str(row["id"]))
            yield Pair(key, person, study, report=report, split=SPLIT_NAMES.get(name), place=place)


def read_roco(source: Path, hide: Hide) -> Imported:
    """A patient is an article of PubMed Central: its figures often show one person."""
    path = source / "captions.txt" if source.is_dir() else source
    if not path.is_file():
        raise StudyError(f"No ROCO at {source}: captions.txt is wanted.", code="SOURCE_DIFFERS")
    article = _articles(path.with_name("licences.txt"))
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        name, _, caption = line.partition("\t")
        place, key = f"{path.name}, line {number}", hide("e", "roco", name)
        if not line:
            continue
        if not caption.strip():
            yield Refused(key, "PAIR_EMPTY", f"{place}: no caption.", place)
            continue
        person = hide.person("roco", article.get(name, name))
        yield Pair(key, person, hide("s", "roco", name), report=caption.strip(), place=place)


def _articles(path: Path) -> dict[str, str]:
    """ROCO_00020,PMC3970251_CRIONM2014-931546.003.jpg,CC BY -> the article."""
    if not path.is_file():
        return {}
    lines = (line.split(",") for line in path.read_text(encoding="utf-8").split("\n")[1:])
    return {cells[0]: cells[1].partition("_")[0] for cells in lines if len(cells) > 1}


def _words(value: object) -> str:
    """Of what a row says; nothing where it says that it says nothing."""
    text = " ".join(str(value).split()) if isinstance(value, str | int | float) else ""
    return (
        "" if text.strip(".").lower() in ("n/a", "na", "none", "null", "unknown", "not available") else text
    )
