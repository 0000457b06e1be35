"""A report as DICOM SR or HL7 v2 ORU^R01 -> Written: its text by sections, and of which study it is.

SR: the content tree of Basic Text and Comprehensive SR (PS3.3 A.35.1, A.35.2; PS3.16 TID 2000), sections by
their codes (CID 7001). HL7: OBX of TX, FT and ST (v2.5.1 chapter 7), escapes undone (chapter 2.7). Names, IDs
and dates of birth that a document states of its patient are taken out of its text; who that is stays in
`Written` for matching, and goes no further than the importer. Knows no folders and no images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from dapt.importers.pair import language_of, lay_out
from mla_med.archive import open_file
from mla_med.dicom.context import without_identity
from mla_med.dicom.header import MALFORMED, guess_characters, quiet_pydicom
from mla_med.documents.codes import PRIVATE_SCHEME
from mla_med.errors import ReportError

MAX_DEPTH = 12
FINDINGS, IMPRESSION, CONTEXT, OTHER, LEFT_OUT = "findings", "impression", "context", "other", "left out"
SECTIONS = {
    **dict.fromkeys((("121070", "DCM"), ("59776-5", "LN"), ("121071", "DCM"), ("18782-3", "LN")), FINDINGS),
    **dict.fromkeys(
        (
            *(("121072", "DCM"), ("121073", "DCM"), ("19005-8", "LN"), ("121076", "DCM"), ("121077", "DCM")),
            ("55110-1", "LN"),
        ),
        IMPRESSION,
    ),
    **dict.fromkeys(
        (
            *(("121060", "DCM"), ("121062", "DCM"), ("121109", "DCM"), ("11329-0", "LN"), ("18785-6", "LN")),
            ("55115-0", "LN"),
        ),
        CONTEXT,
    ),
    # how it was examined, with what it was compared, and what was found wrong with the draft itself
    **dict.fromkeys(
        (
            *(("121064", "DCM"), ("121065", "DCM"), ("55111-9", "LN"), ("121066", "DCM"), ("55114-3", "LN")),
            *(("121111", "DCM"), ("55112-7", "LN"), ("121058", "DCM"), ("evidence", PRIVATE_SCHEME)),
        ),
        LEFT_OUT,
    ),
}
"""By code and scheme of the heading: SNOMED and LOINC headings that hospitals add fall under `other`."""
SUFFIXES = {"GDT": FINDINGS, "IMP": IMPRESSION}
"""Of OBX-3, behind an &: general description and impression (HL7 v2.5.1, 7.1.4)."""
FINAL = frozenset("FCAXU")
"""Result status (tables 0123 and 0085) of what somebody has signed; P, R, S and I are not."""
_TEXT_TYPES = frozenset(("TX", "FT", "ST"))
CHARACTERS = {
    **{"": "utf-8", "UNICODE UTF-8": "utf-8", "UNICODE": "utf-8", "ASCII": "ascii"},
    **{f"8859/{n}": f"iso8859-{n}" for n in (*range(1, 10), 15)},
    **{"GB 18030-2000": "gb18030", "BIG-5": "big5", "KS X 1001": "euc-kr", "ISO IR87": "iso2022_jp"},
}
"""MSH-18 (table 0211) -> as Python calls it."""
AROUND = frozenset(("HAS OBS CONTEXT", "HAS ACQ CONTEXT", "HAS CONCEPT MOD", "HAS PROPERTIES"))
"""Relationships (PS3.3 C.17.3.2.4) of what says who observed, how it was acquired, and what a name means."""
STUDY_UID = ("113014", "DCM")
MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Written:
    """One report. Who and which study: as the document states it, empty where it does not."""

    report: str
    context: str
    language: str
    study_uid: str
    accessions: tuple[str, ...] = field(repr=False)
    patient: str = field(repr=False)
    is_final: bool = True


def read_sr(path: Path) -> Written:
    """ReportError where it is no readable SR or holds no text."""
    try:
        with quiet_pydicom(), open_file(path) as file:
            dataset = pydicom.dcmread(file, force=True)
            guess_characters(dataset)
            sections = _sr_sections(dataset)
            language = _sr_language(dataset)
            stated = [_value(dataset, name) for name in ("StudyInstanceUID", "AccessionNumber", "PatientID")]
            final = _value(dataset, "PreliminaryFlag") != "PRELIMINARY"
            written = _to_written(sections, dataset, language)
    except (OSError, *MALFORMED) as error:
        raise ReportError("A structured report is damaged.", code="DOCUMENT_DAMAGED") from error
    study_uid, accession, patient = stated
    accessions = (accession,) if accession else ()
    return replace(written, study_uid=study_uid, accessions=accessions, patient=patient, is_final=final)


def read_hl7(path: Path) -> tuple[Written, ...]:
    """Every ORU^R01 of a file: one message, or a batch. ReportError where there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES)
    except OSError as error:
        raise ReportError(f"A message cannot be read: {error.strerror}.", code="DOCUMENT_DAMAGED") from error
    messages = [m for m in re.split(rb"(?:^|(?<=[\r\n\x0b\x1c]))(?=MSH)", data) if m.startswith(b"MSH")]
    with quiet_pydicom():  # which would print a name that is too long for DICOM
        found = [written for message in messages for written in _oru(message)]
    if not found:
        raise ReportError("No ORU^R01 message with a text in it.", code="NO_REPORT")
    return tuple(found)


# DICOM SR


def _sr_sections(dataset: Dataset) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for section, words in _sr_texts(dataset, OTHER, 0):
        sections.setdefault(section, []).append(words)
    return sections


def _sr_texts(item: Dataset, section: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth > MAX_DEPTH:
        return
    for child in item.get("ContentSequence") or ():
        if _value(child, "RelationshipType") in AROUND:
            continue
        inside = section
        for code in child.get("ConceptNameCodeSequence") or ():
            named = (_value(code, "CodeValue"), _value(code, "CodingSchemeDesignator"))
            inside = SECTIONS.get(named, section)
        # a finding under the heading of the impression is part of the impression
        inside = section if section != OTHER and inside != LEFT_OUT else inside
        if _value(child, "ValueType") == "TEXT" and (words := " ".join(_value(child, "TextValue").split())):
            yield inside, words
        yield from _sr_texts(child, inside, depth + 1)


def _sr_language(dataset: Dataset) -> str:
    """Language of content item and descendants (121049, DCM; TID 1204): its code is that of RFC 5646."""
    for child in dataset.get("ContentSequence") or ():
        name = [_value(code, "CodeValue") for code in child.get("ConceptNameCodeSequence") or ()]
        if name == ["121049"]:
            return "".join(_value(c, "CodeValue") for c in child.get("ConceptCodeSequence") or ())[:2].lower()
    return ""


def _value(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


# HL7


@dataclass
class _Message:
    separator: str
    component: str
    repetition: str
    subcomponent: str
    segments: list[list[str]]

    def of(self, name: str) -> list[list[str]]:
        return [segment for segment in self.segments if segment[0] == name]

    def parts(self, field_text: str) -> list[str]:
        return field_text.split(self.component)


def _oru(data: bytes) -> Iterator[Written]:
    message = _parse(data)
    if "ORU" not in message.parts(_field(message.segments[0], 9))[0]:
        return
    group: list[list[str]] = []
    person = (message.of("PID") or [["PID"]])[0]
    # an OBR and what follows it is one report
    for segment in (*message.segments, ["OBR"]):
        if segment[0] == "OBR" and group:
            written = _of_order(message, person, group)
            if written is not None:
                yield written
            group = []
        if segment[0] == "OBR" or group:
            group.append(segment)


def _parse(data: bytes) -> _Message:
    head = data[:8].decode("latin-1")
    if len(head) < 8 or head[3].isalnum():
        raise ReportError("A message without its separators.", code="DOCUMENT_DAMAGED")
    separator = head[3]
    first = re.split(rb"[\r\n]", data, maxsplit=1)[0].decode("latin-1").split(separator)
    name = _field(["MSH", separator, *first[1:]], 18).split(head[5])[0].strip().upper()
    try:
        text = data.decode(CHARACTERS[name])
    except (KeyError, UnicodeError) as error:
        raise ReportError(
            "A message is not in the characters that its MSH-18 states.", code="CHARACTERS_UNKNOWN"
        ) from error
    lines = [line.strip("\x0b\x1c") for line in re.split(r"[\r\n]+", text)]
    segments = [line.split(separator) for line in lines if re.match(r"[A-Z][A-Z0-9]{2}(?![A-Z0-9])", line)]
    # MSH-1 is the separator itself
    segments[0].insert(1, separator)
    return _Message(separator, head[4], head[5], head[7], segments)


def _of_order(message: _Message, person: Sequence[str], group: Sequence[Sequence[str]]) -> Written | None:
    order = group[0]
    observed = [segment for segment in group if segment[0] == "OBX"]
    sections: dict[str, list[str]] = {}
    for obx in observed:
        section = _obx_section(message, _field(obx, 3))
        for piece in _field(obx, 5).split(message.repetition):
            words = _unescaped(piece, message).strip()
            if _field(obx, 2) in _TEXT_TYPES and words:
                sections.setdefault(section, []).append(words)
    reason = _field(order, 31) or _field(order, 13)
    if reason:
        sections.setdefault(CONTEXT, []).append(_unescaped(_reason(message, reason), message))
    if not any(sections.get(name) for name in (FINDINGS, IMPRESSION, OTHER)):
        return None
    statuses = {_field(order, 25), *(_field(obx, 11) for obx in observed)} - {""}
    written = _to_written(sections, _identity(message, person, order), "")
    return replace(
        written,
        study_uid=_study_uid(message, observed),
        accessions=_accessions(message, order),
        patient=message.parts(_field(person, 3).split(message.repetition)[0])[0].strip(),
        is_final=bool(statuses) and statuses <= FINAL,
    )


def _reason(message: _Message, text: str) -> str:
    """Code^words^scheme: the words."""
    parts = message.parts(text.split(message.repetition)[0])
    return parts[1] if len(parts) > 1 and parts[1] else parts[0]


def _obx_section(message: _Message, concept: str) -> str:
    code, suffix = message.parts(concept)[0].partition(message.subcomponent)[::2]
    scheme = ([*message.parts(concept), "", "", ""])[2]
    return SUFFIXES.get(suffix.strip().upper()) or SECTIONS.get((code, scheme or "LN"), OTHER)


def _study_uid(message: _Message, observed: Sequence[Sequence[str]]) -> str:
    """Of an OBX that is coded DICOM study, of ZDS-1 (IHE RAD TF-2, 4.4.4.1.2.5) or of IPC-3."""
    for obx in observed:
        parts = message.parts(_field(obx, 3))
        if len(parts) > 2 and (parts[0], parts[2]) == STUDY_UID:
            return next((p for p in message.parts(_field(obx, 5)) if re.fullmatch(r"[\d.]{5,64}", p)), "")
    stated = [_field(s, 1) for s in message.of("ZDS")] + [_field(s, 3) for s in message.of("IPC")]
    return message.parts(stated[0])[0] if stated else ""


def _accessions(message: _Message, order: Sequence[str]) -> tuple[str, ...]:
    """Where hospitals put it: OBR-18, filler and placer number, IPC-1."""
    stated = [_field(order, n) for n in (18, 3, 2)] + [_field(s, 1) for s in message.of("IPC")]
    numbers = (_unescaped(message.parts(text)[0], message).strip() for text in stated)
    return tuple(dict.fromkeys(number for number in numbers if number))


def _identity(message: _Message, person: Sequence[str], order: Sequence[str]) -> Dataset:
    """What `without_identity` looks for, as DICOM names it."""
    dataset = Dataset()
    names = [message.parts(name)[:3] for name in _field(person, 5).split(message.repetition)]
    dataset.PatientName = "=".join("^".join(_unescaped(p, message) for p in parts) for parts in names[:3])
    dataset.PatientID = _unescaped(message.parts(_field(person, 3))[0], message)[:64]
    if re.fullmatch(r"\d{8}", _field(person, 7)[:8]):
        dataset.PatientBirthDate = _field(person, 7)[:8]
    if accession := next(iter(_accessions(message, order)), ""):
        dataset.add_new("AccessionNumber", "SH", accession[:16])
    return dataset


_ESCAPE = re.compile(r"\\([^\\\r\n]{0,64})\\")


def _unescaped(text: str, message: _Message) -> str:
    plain = {
        **{
            "F": message.separator,
            "S": message.component,
            "R": message.repetition,
            "T": message.subcomponent,
        },
        **{"E": "\\", ".br": "\n", ".sp": "\n", "H": "", "N": ""},
    }

    def undo(match: re.Match[str]) -> str:
        word = match[1]
        if word in plain:
            return plain[word]
        if re.fullmatch(r"X(?:[0-9A-Fa-f]{2})+", word):
            return bytes.fromhex(word[1:]).decode("utf-8", "replace")
        return "\n" if word.startswith(".") else ""

    return _ESCAPE.sub(undo, text)


def _field(segment: Sequence[str], number: int) -> str:
    return segment[number] if number < len(segment) else ""


# both


def _to_written(sections: dict[str, list[str]], identity: Dataset, language: str) -> Written:
    said = {name: without_identity("\n".join(lines), identity) for name, lines in sections.items()}
    told = "\n".join(said[name] for name in (OTHER, FINDINGS, IMPRESSION) if name in said)
    if not told.strip():
        raise ReportError("A report without a text.", code="NO_TEXT")
    language = language or language_of(told)

    def flowing(*names: str) -> str:
        """Lines that a sender broke anywhere, as prose."""
        words = (word for name in names for word in said.get(name, "").split())
        return ("" if language == "zh" else " ").join(words)

    has_headings = FINDINGS in said or IMPRESSION in said
    report = (
        lay_out(flowing(OTHER, FINDINGS), flowing(IMPRESSION), language) if has_headings else told.strip()
    )
    return Written(report, flowing(CONTEXT), language, "", (), "")
