"""A document's bytes -> what is wrong with it: what no validator checks, then what dciodvfy says.

Validators see one file. That it names the patient and study of the images and says what the draft says
can only be seen with draft and images beside it, when it is written. That its evidence is of its study and
holds every image it refers to, that a device stands as its observer, that it is unverified and preliminary,
is seen then, and again from its bytes alone before they are sent.

    python -m mla_med.documents.check draft.dcm --source IMAGE [--draft draft.json]
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from mla_med.documents.envelope import COPIED, LANGUAGES, class_of, texts_of
from mla_med.documents.text import NOTICE
from mla_med.errors import OutputError
from mla_med.types import Draft, Reason

BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"

SR_CLASSES = (BASIC_TEXT_SR, COMPREHENSIVE_3D_SR)
WITH_CONTENT = (*SR_CLASSES, KEY_OBJECTS)

LANGUAGE, OBSERVER_TYPE, OBSERVER_UID, PROCEDURE_REPORTED = "121049", "121005", "121012", "121058"
"""Rows 3 and 4 of TID 2000, device type and region, came after 2022, and validators of then warn of them."""
OBSERVER_ITEMS = (*(f"1210{n:02d}" for n in range(5, 18)), "128774")
HEADINGS = ("121064", "121066", "121070", "121072", "121111")
"""Of PS3.16 CID 7001, in the order in which we write them."""
RELATIONSHIPS = {"CONTAINS", "HAS CONCEPT MOD", "HAS OBS CONTEXT", "HAS PROPERTIES", "INFERRED FROM"}
VALUES = {
    "TEXT": "TextValue",
    "CODE": "ConceptCodeSequence",
    "NUM": "MeasuredValueSequence",
    "UIDREF": "UID",
    "PNAME": "PersonName",
    "IMAGE": "ReferencedSOPSequence",
    "SCOORD3D": "GraphicData",
}
"""Type of a content item -> where its value stands."""
VALIDATOR_S = 60.0
ROW_ITEMS = ("121065", "121071", "121073")
"""Of PS3.16 CID 7002, what we write below them."""


def refuse_problems(content: bytes, draft: Draft, header: Dataset) -> None:
    """OutputError with the first problem; the gate that every DICOM document of ours goes through."""
    if problems := cross_check(content, draft, header):
        raise OutputError(
            f"A document of study {draft.provenance.study_uid} must not leave: {problems[0].words}",
            code=problems[0].code,
        )


def cross_check(content: bytes, draft: Draft | None, header: Dataset) -> tuple[Reason, ...]:
    """`header`: of an image of the study, COPIED at least. `draft`: what the document has to say, and which
    images were read for it; None: that is not checked. Words hold no value of a patient."""
    document = dcmread(io.BytesIO(content), force=True)
    return (*_patient_problems(document, header), *_own_problems(content, document, draft))


def check_alone(content: bytes, document: Dataset) -> tuple[Reason, ...]:
    """What can be seen of a document with nothing beside it. `document`: `content`, as it was read."""
    return (*_belonging_problems(document), *_own_problems(content, document, None))


def _own_problems(content: bytes, document: Dataset, draft: Draft | None) -> tuple[Reason, ...]:
    problems = [*_file_problems(content, document), *_flag_problems(document)]
    if document.get("SOPClassUID") in WITH_CONTENT or "ContentSequence" in document:
        problems += _evidence_problems(document, draft)
        problems += [*_observer_problems(document), *_item_problems(document)]
    if document.get("SOPClassUID") == BASIC_TEXT_SR:
        problems += [*_template_problems(document), *_text_problems(document, draft)]
    return tuple(problems)


def _file_problems(content: bytes, document: Dataset) -> Iterator[Reason]:
    if content[:132] != bytes(128) + b"DICM":
        yield Reason("PREAMBLE", "The preamble of the file is not zero.")
    meta = document.get("file_meta") or Dataset()
    for stated, named in (
        ("MediaStorageSOPInstanceUID", "SOPInstanceUID"),
        ("MediaStorageSOPClassUID", "SOPClassUID"),
    ):
        if not document.get(named) or meta.get(stated) != document.get(named):
            yield Reason("FILE_META", f"{named} is missing or the file meta information has another one.")
    if document.get("SpecificCharacterSet") != "ISO_IR 192":
        yield Reason("NOT_UTF8", "SpecificCharacterSet is not ISO_IR 192.")
    if any("\ufffd" in text for _, text in texts_of(document)):
        yield Reason("TEXT_LOST", "A text holds the character that stands for lost ones.")


def _patient_problems(document: Dataset, header: Dataset) -> Iterator[Reason]:
    for keyword in COPIED:
        there, wanted = document.get(keyword), header.get(keyword)
        if str(there if there is not None else "") != str(wanted if wanted is not None else ""):
            code = "OTHER_STUDY" if keyword.startswith(("Study", "Accession")) else "OTHER_PATIENT"
            yield Reason(code, f"{keyword} is not that of the images.")


def _belonging_problems(document: Dataset) -> Iterator[Reason]:
    if not document.get("PatientID") and not document.get("PatientName"):
        # beside its images it may do without; in a PACS it would be anybody's
        yield Reason("NO_PATIENT", "It names no patient.")


def _flag_problems(document: Dataset) -> Iterator[Reason]:
    """Preliminary for ever, and by nobody's verification."""
    kind = document.get("SOPClassUID")
    flagged = kind in (*SR_CLASSES, ENCAPSULATED_PDF) or "VerificationFlag" in document
    if flagged and document.get("VerificationFlag") != "UNVERIFIED":
        yield Reason("NOT_UNVERIFIED", "VerificationFlag is not UNVERIFIED.")
    report = kind in SR_CLASSES or "CompletionFlag" in document
    if report and document.get("PreliminaryFlag") != "PRELIMINARY":
        yield Reason("NOT_PRELIMINARY", "PreliminaryFlag is not PRELIMINARY.")
    if any(element.tag == 0x0040A073 for element in document):
        yield Reason("VERIFIER_NAMED", "Somebody stands as its verifying observer.")
    if not str(document.get("SeriesDescription") or "").startswith(NOTICE):
        yield Reason("NO_NOTICE", "SeriesDescription does not begin with the notice.")


def _evidence_problems(document: Dataset, draft: Draft | None) -> Iterator[Reason]:
    studies = document.get("CurrentRequestedProcedureEvidenceSequence") or []
    if any(study.get("StudyInstanceUID") != document.get("StudyInstanceUID") for study in studies):
        yield Reason("EVIDENCE_OF_OTHER_STUDY", "The evidence is of another study.")
    evidence = {
        instance.get("ReferencedSOPInstanceUID")
        for study in studies
        for series in study.get("ReferencedSeriesSequence") or []
        for instance in series.get("ReferencedSOPSequence") or []
    }
    referred = {
        reference.get("ReferencedSOPInstanceUID")
        for item in items_of(document)
        for reference in item.get("ReferencedSOPSequence") or []
    }
    if referred - evidence:
        yield Reason("NOT_IN_EVIDENCE", f"{len(referred - evidence)} images are referred to and no evidence.")
    if draft is not None and evidence - class_of(draft).keys():
        yield Reason("EVIDENCE_NOT_READ", "Images stand as evidence that were not read.")


def _observer_problems(document: Dataset) -> Iterator[Reason]:
    """TID 1001, 1002 and 1004: a device, by its UID."""
    found = {_name(item): item for item in document.get("ContentSequence") or []}
    types = [
        code.get("CodeValue")
        for item in document.get("ContentSequence") or []
        if _name(item) == OBSERVER_TYPE
        for code in item.get("ConceptCodeSequence") or []
    ]
    if "121007" not in types or not found.get(OBSERVER_UID, Dataset()).get("UID"):
        yield Reason("NO_OBSERVER", "No device stands as its observer.")


def _item_problems(document: Dataset) -> Iterator[Reason]:
    """Relationships that TID 2000, 1500 and 2010 know, and values for those that need one (PS3.3 C.17.3)."""
    items = list(items_of(document))
    if odd := {str(item.get("RelationshipType")) for item in items} - RELATIONSHIPS:
        yield Reason(
            "RELATIONSHIP", f"Items have a relationship that these templates do not know: {len(odd)}."
        )
    for kind, value in VALUES.items():
        if any(item.get("ValueType") == kind and not item.get(value) for item in items):
            yield Reason("NO_VALUE", f"An item of type {kind} has no {value}.")


def _template_problems(document: Dataset) -> Iterator[Reason]:
    """PS3.16 TID 2000, as far as we write it: which items, in which order."""
    template = document.get("ContentTemplateSequence") or [Dataset()]
    if template[0].get("TemplateIdentifier") != "2000":
        yield Reason("TEMPLATE", "It does not name TID 2000.")
    items = list(document.get("ContentSequence") or [])
    ranks = [_rank(_name(item)) for item in items]
    if None in ranks or ranks != sorted(rank for rank in ranks if rank is not None):
        yield Reason("TEMPLATE", "Its items are not those of TID 2000, in their order.")
    languages = [
        code.get("CodeValue")
        for item in items
        if _name(item) == LANGUAGE
        for code in item.get("ConceptCodeSequence") or []
    ]
    if len(languages) != 1 or languages[0] not in LANGUAGES:
        yield Reason("LANGUAGE", "It does not state its language.")
    below = [item for heading in items for item in heading.get("ContentSequence") or []]
    if any(_name(item) not in ROW_ITEMS or item.get("ValueType") != "TEXT" for item in below):
        yield Reason("TEMPLATE", "Below its headings stands what TID 2002 does not allow.")


def _rank(name: str) -> int | None:
    if name in HEADINGS:
        return 10 + HEADINGS.index(name)
    if name in OBSERVER_ITEMS:
        return 3
    return {PROCEDURE_REPORTED: 1, LANGUAGE: 2}.get(name)


def _text_problems(document: Dataset, draft: Draft | None) -> Iterator[Reason]:
    """Every sentence of the draft, letter by letter, and of a refusal every reason."""
    if draft is None:
        return
    said = [
        str(item.get("TextValue") or "") for item in items_of(document) if item.get("ValueType") == "TEXT"
    ]
    report = draft.report
    if report is None:
        wanted = [f"{reason.code}: {reason.words}" for reason in draft.gate.reasons]
    else:
        wanted = [s.text for s in (*report.sentences, *report.impression)]
    if missing := [text for text in wanted if text.strip() and text.rstrip() not in said]:
        yield Reason("TEXT_LOST", f"{len(missing)} of {len(wanted)} sentences of the draft are not in it.")


def items_of(item: Dataset) -> Iterator[Dataset]:
    """The content items below one, and below those."""
    for child in item.get("ContentSequence") or []:
        yield child
        yield from items_of(child)


def _name(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence") or [Dataset()]
    return str(names[0].get("CodeValue") or "")


def has_validator() -> bool:
    return shutil.which("dciodvfy") is not None


def validator_errors(content: bytes) -> tuple[str, ...]:
    """What dciodvfy (Debian: dicom3tools) calls errors. OutputError where it is not installed."""
    if not has_validator():
        raise OutputError(
            "dciodvfy is not installed; install dicom3tools, or check without it.", code="NO_VALIDATOR"
        )
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(content)
        file.flush()
        try:
            done = subprocess.run(
                ["dciodvfy", "-new", file.name],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=VALIDATOR_S,
            )
        except subprocess.TimeoutExpired:
            return (f"dciodvfy did not end in {VALIDATOR_S:g} s.",)
    lines = (done.stdout + done.stderr).splitlines()
    if not lines:
        return ("dciodvfy said nothing.",)
    return tuple(line for line in lines if line.startswith("Error"))


def main(arguments: Iterable[str] | None = None) -> int:
    import argparse
    import json

    from mla_med.documents.envelope import libraries_silent, read_image
    from mla_med.documents.json import draft_from_json

    parser = argparse.ArgumentParser(prog="python -m mla_med.documents.check", description=__doc__)
    parser.add_argument("documents", type=Path, nargs="+", help="DICOM documents")
    parser.add_argument("--source", type=Path, required=True, help="an image of the study")
    parser.add_argument("--draft", type=Path, help="draft.json; without it, what they say is not checked")
    asked = parser.parse_args(None if arguments is None else list(arguments))
    draft = draft_from_json(json.loads(asked.draft.read_text("utf-8"))) if asked.draft else None
    with libraries_silent():
        header, found = read_image(asked.source, list(COPIED)), 0
        for path in asked.documents:
            content = path.read_bytes()
            problems = [f"{p.code}: {p.words}" for p in cross_check(content, draft, header)]
            problems += validator_errors(content) if has_validator() else ["dciodvfy is not installed"]
            found += len(problems)
            print(path.name, *(problems or ["sound"]), sep="\n  ")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
