"""Folders of DICOM studies, their reports as SR among them or as HL7 messages beside them -> Pairs.

A study is matched with the reports that name it: by StudyInstanceUID, else by accession number, else by the
patient where both sides know one study and one report of theirs. Each entry of the source is read by itself:
an archive of any size passes through, and a study that lies under two entries is refused the second time.
What nobody has signed is not learnt from: a model that reads its own drafts learns its own mistakes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pydicom

from dapt.importers.documents import Written, read_hl7, read_sr
from dapt.importers.pair import Hide, ImageSource, Imported, Pair, Refused, language_of
from mla_med.archive import open_file
from mla_med.dicom.header import MALFORMED, guess_characters, quiet_pydicom
from mla_med.dicom.source import DAMAGE
from mla_med.dicom.study import check_whole, read_studies
from mla_med.errors import MlaMedError, ReportError, StudyError
from mla_med.report.context import context_text
from mla_med.types import Study

MESSAGE_SUFFIXES = (".hl7", ".oru", ".er7")
_TAGS = [
    "SpecificCharacterSet",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "RequestAttributesSequence",
]


def read_dicom_sr(source: Path, hide: Hide, allow_preliminary: bool = False) -> Imported:
    """A pair for each study: its images, the newest words of its SRs, or both."""
    for study, refused in _studies(source, hide):
        if refused is not None:
            yield refused
        if study is None:
            continue
        found, problems = _reports_in(study, allow_preliminary)
        for error in problems:
            yield _refused(study, error, hide)
        yield from _pairs(study, found, hide)


def read_dicom_hl7(
    source: Path, hide: Hide, reports: Path | None = None, allow_preliminary: bool = False
) -> Imported:
    """`reports`: the folder of the messages; None: they lie under `source` too, as .hl7, .oru or .er7."""
    messages, problems = _messages(reports or source, hide, allow_preliminary)
    yield from problems
    studies = [(study, refused) for study, refused in _studies(source, hide)]
    known = [study for study, _ in studies if study is not None]
    matched = match([(s.study_uid, *_stated(s)) for s in known], messages)
    taken = {id(written) for found in matched.values() for written in found}
    for study, refused in studies:
        if refused is not None:
            yield refused
        if study is not None:
            yield from _pairs(study, matched.get(study.study_uid, ()), hide)
    for number, written in enumerate(messages):
        if id(written) not in taken:
            key = hide("e", "hl7", written.study_uid, *written.accessions, str(number))
            yield _text_alone(written, key, hide)


def match(
    studies: Sequence[tuple[str, str, tuple[str, ...]]], reports: Sequence[Written]
) -> dict[str, list[Written]]:
    """Study UID, patient and accession numbers of each study -> the reports of each, in their order."""
    by_uid = {uid: uid for uid, _, _ in studies}
    by_accession: dict[tuple[str, str], list[str]] = defaultdict(list)
    by_patient: dict[str, list[str]] = defaultdict(list)
    for uid, patient, accessions in studies:
        by_patient[patient].append(uid)
        for number in accessions:
            by_accession[patient, number].append(uid)
    per_patient = Counter(written.patient for written in reports)
    found: dict[str, list[Written]] = defaultdict(list)
    for written in reports:
        named = [by_uid[written.study_uid]] if written.study_uid in by_uid else []
        # a number alone is not enough: two hospitals count from one
        for number in written.accessions:
            named = named or by_accession.get((written.patient, number), [])
        if not named and not written.study_uid and written.patient and per_patient[written.patient] == 1:
            named = by_patient.get(written.patient, [])
        if len(named) == 1:
            found[named[0]].append(written)
    return found


def _studies(source: Path, hide: Hide) -> Iterator[tuple[Study | None, Refused | None]]:
    seen: set[str] = set()
    any_study = False
    for entry in _entries(source):
        try:
            studies = read_studies(entry)
        except StudyError as error:
            if error.code != "NO_DICOM":
                yield None, Refused(hide("e", "dicom", entry.name), error.code, str(error), "", (entry,))
            continue
        for study in studies:
            if not study.study_uid:
                for problem in (p for p in study.problems if p.code in DAMAGE):
                    yield (
                        None,
                        Refused(hide("e", "dicom", entry.name), problem.code, problem.words, "", (entry,)),
                    )
                continue
            any_study = True
            key = hide("e", "dicom", study.study_uid)
            if study.study_uid in seen:
                words = "The study lies under two entries of the source. Put its files into one folder."
                yield None, Refused(key, "STUDY_TWICE", words, "", (entry,))
                continue
            try:
                check_whole(study)
            except StudyError as error:
                yield None, Refused(key, error.code, str(error), "", (entry,))
                continue
            seen.add(study.study_uid)
            yield study, None
    if not any_study:
        raise StudyError(f"{source} holds no DICOM study.", code="NO_DICOM")


def _entries(source: Path) -> list[Path]:
    """What lies in the source; the source itself where files of one study lie in it directly."""
    if not source.is_dir():
        return [source]
    inside = sorted(p for p in source.iterdir() if p.suffix.lower() not in MESSAGE_SUFFIXES)
    folders = [p for p in inside if p.is_dir() or p.suffix.lower() == ".zip"]
    return folders if len(folders) == len(inside) else [source]


def _reports_in(study: Study, allow_preliminary: bool) -> tuple[list[Written], list[ReportError]]:
    found, problems = [], []
    paths = dict.fromkeys(i.path for s in study.series if s.modality == "SR" for i in s.instances)
    for path in paths:
        try:
            written = read_sr(path)
        except ReportError as error:
            problems.append(error)
            continue
        if written.is_final or allow_preliminary:
            found.append(written)
        else:
            problems.append(_preliminary("structured report"))
    return found, problems


def _messages(source: Path, hide: Hide, allow_preliminary: bool) -> tuple[list[Written], list[Refused]]:
    found, problems = [], []
    paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in MESSAGE_SUFFIXES and p.is_file())
    for path in paths:
        key = hide("e", "hl7", path.name)
        try:
            written = read_hl7(path)
        except ReportError as error:
            problems.append(Refused(key, error.code, str(error), "", (path,)))
            continue
        found += [one for one in written if one.is_final or allow_preliminary]
        if not allow_preliminary and not all(one.is_final for one in written):
            unsigned = _preliminary("message")
            problems.append(Refused(key, unsigned.code, str(unsigned), "", (path,)))
    return found, problems


def _preliminary(noun: str) -> ReportError:
    return ReportError(
        f"A {noun} that nobody has signed. Send the final one, or allow preliminary ones.",
        code="REPORT_PRELIMINARY",
    )


def _pairs(study: Study, reports: Sequence[Written], hide: Hide) -> Imported:
    image = ImageSource(study=study)
    patient = _stated(study)[0]
    if not image.files and not reports:
        return
    # an addendum comes after what it adds to
    report = "\n".join(dict.fromkeys(written.report for written in reports))
    request = next((written.context for written in reports if written.context), "")
    yield Pair(
        key=hide("e", "dicom", study.study_uid),
        # a study without a patient ID is of nobody else
        patient=hide.person(patient or study.study_uid),
        study=hide("s", study.study_uid),
        image=image if image.files else None,
        context=context_text(replace(study.context, indication=study.context.indication or request)),
        report=report or None,
        language=reports[0].language if reports else language_of(study.context.indication),
    )


def _text_alone(written: Written, key: str, hide: Hide) -> Pair:
    own = written.study_uid or key
    return Pair(
        key=key,
        patient=hide.person(written.patient or own),
        study=hide("s", own),
        context=written.context,
        report=written.report,
        language=written.language,
    )


def _refused(study: Study, error: MlaMedError, hide: Hide) -> Refused:
    return Refused(hide("e", "dicom", study.study_uid), error.code, str(error))


def _stated(study: Study) -> tuple[str, tuple[str, ...]]:
    """Patient ID and accession numbers of the first image, or report."""
    series = sorted(study.series, key=lambda s: s.modality not in ("CT", "MR"))
    if not series:
        return "", ()
    try:
        with quiet_pydicom(), open_file(series[0].instances[0].path) as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
            guess_characters(dataset)
            items = [dataset, *(dataset.get("RequestAttributesSequence") or ())]
            numbers = (str(item.get("AccessionNumber") or "").strip() for item in items)
            patient = str(dataset.get("PatientID") or "").strip()
    except (OSError, *MALFORMED):
        return "", ()
    return patient, tuple(dict.fromkeys(filter(None, numbers)))
