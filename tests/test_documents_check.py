"""Broken documents -> caught, by dciodvfy or by the checks that no validator makes."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable

import pytest
from phantom_drafts import phantom_draft
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from mla_med.documents import check
from mla_med.documents.check import cross_check, items_of, validator_errors
from mla_med.documents.envelope import file_bytes, libraries_silent, read_header
from mla_med.documents.sr import draft_to_sr
from mla_med.documents.write import write_documents

SEED = 3  # a head in Chinese, with a cited finding


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A draft, its source header and its sound Basic Text SR."""
    draft = phantom_draft(SEED, tmp_path_factory.mktemp("images"))
    path = draft.verdicts[0].series.instances[0].path
    with libraries_silent():
        return draft, read_header(path, draft.provenance), file_bytes(draft_to_sr(draft, path))


def named(sr: Dataset, code: str) -> list[Dataset]:
    return [i for i in items_of(sr) if i.ConceptNameCodeSequence[0].CodeValue == code]


def without(*keywords: str) -> Callable[[Dataset], None]:
    return lambda sr: [delattr(sr, keyword) for keyword in keywords] and None


def setting(**values) -> Callable[[Dataset], None]:
    return lambda sr: [setattr(sr, key, value) for key, value in values.items()] and None


def dropped(*codes: str) -> Callable[[Dataset], None]:
    def change(sr: Dataset) -> None:
        kept = [i for i in sr.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue not in codes]
        sr.ContentSequence = kept

    return change


def first_text(**values) -> Callable[[Dataset], None]:
    def change(sr: Dataset) -> None:
        item = named(sr, "121071")[0]
        for key, value in values.items():
            if value is None:
                delattr(item, key)
            else:
                setattr(item, key, value)

    return change


def evidence_of_another_study(sr: Dataset) -> None:
    sr.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID = "2.25.4711"


def evidence_lost(sr: Dataset) -> None:
    cited = {i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in named(sr, "121080")}
    series = sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    series.ReferencedSOPSequence = [
        i for i in series.ReferencedSOPSequence if i.ReferencedSOPInstanceUID not in cited
    ]


def number_in_a_text_report(sr: Dataset) -> None:
    item = named(sr, "121071")[0]
    item.ValueType = "NUM"
    del item.TextValue
    item.MeasuredValueSequence = []


def order_turned(sr: Dataset) -> None:
    sr.ContentSequence = list(sr.ContentSequence)[::-1]


def text_replaced(sr: Dataset) -> None:
    item = named(sr, "121071")[0]
    item.TextValue = item.TextValue.replace(item.TextValue[0], "?")


MUTANTS: dict[str, Callable[[Dataset], None]] = {
    # the three that neither dciodvfy nor PixelMed nor dsrdump catches
    "no observer context": dropped(*check.OBSERVER_ITEMS),
    "evidence of another study": evidence_of_another_study,
    "PatientID unlike the images": setting(PatientID="OTHER"),
    "no completion flag": without("CompletionFlag"),
    "no verification flag": without("VerificationFlag"),
    "verified by nobody": setting(VerificationFlag="VERIFIED"),
    "a completion flag that is none": setting(CompletionFlag="DRAFT"),
    "no evidence": without("CurrentRequestedProcedureEvidenceSequence"),
    "an image that is no evidence": evidence_lost,
    "no procedure step sequence": without("ReferencedPerformedProcedureStepSequence"),
    "no series": without("SeriesInstanceUID"),
    "no content date": without("ContentDate"),
    "no language": dropped("121049"),
    "items out of order": order_turned,
    "a text item without text": first_text(TextValue=None),
    "a relationship that is none": first_text(RelationshipType="CAUSES"),
    "a number in a text report": number_in_a_text_report,
    "a character that was replaced": text_replaced,
}


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_eighteen_of_eighteen_broken_reports_are_caught(world):
    draft, header, sound = world
    assert not cross_check(sound, draft, header)
    assert not validator_errors(sound)
    caught = {}
    for name, change in MUTANTS.items():
        content = mutated(sound, change)
        ours = [p.code for p in cross_check(content, draft, header)]
        caught[name] = (bool(validator_errors(content)), bool(ours))
    theirs, own = (sum(c[n] for c in caught.values()) for n in (0, 1))
    print(f"\n{len(caught)} mutants: dciodvfy {theirs}, our checks {own}")
    assert [name for name, by in caught.items() if not any(by)] == []
    assert len(caught) == 18


@pytest.mark.parametrize(
    ("mutant", "code"),
    [
        ("no observer context", "NO_OBSERVER"),
        ("evidence of another study", "EVIDENCE_OF_OTHER_STUDY"),
        ("PatientID unlike the images", "OTHER_PATIENT"),
        ("an image that is no evidence", "NOT_IN_EVIDENCE"),
        ("verified by nobody", "NOT_UNVERIFIED"),
        ("a character that was replaced", "TEXT_LOST"),
        ("items out of order", "TEMPLATE"),
    ],
)
def test_cross_checks_need_no_validator(world, mutant, code):
    draft, header, sound = world
    found = cross_check(mutated(sound, MUTANTS[mutant]), draft, header)
    assert code in [problem.code for problem in found]
    assert not re.search(r"OTHER\b|P-0", " ".join(problem.words for problem in found))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (setting(PatientName="Somebody^Else"), "OTHER_PATIENT"),
        (setting(AccessionNumber="A999"), "OTHER_STUDY"),
        (setting(SpecificCharacterSet="ISO_IR 100"), "NOT_UTF8"),
        (setting(PreliminaryFlag="FINAL"), "NOT_PRELIMINARY"),
        (setting(SeriesDescription="Report"), "NO_NOTICE"),
        (setting(VerifyingObserverSequence=[Dataset()]), "VERIFIER_NAMED"),
    ],
)
def test_what_else_must_not_leave(world, change, code):
    draft, header, sound = world
    assert code in [p.code for p in cross_check(mutated(sound, change), draft, header)]


def test_a_preamble_that_could_be_run_is_caught(world):
    draft, header, sound = world
    assert [p.code for p in cross_check(b"MZ" + sound[2:], draft, header)] == ["PREAMBLE"]


def test_evidence_that_was_never_read_is_caught(world, tmp_path):
    _, header, sound = world
    other = phantom_draft(SEED + 2, tmp_path)
    assert "EVIDENCE_NOT_READ" in [p.code for p in cross_check(sound, other, header)]


def test_the_command_tells_sound_from_broken(world, tmp_path, capsys):
    draft, _, sound = world
    source = str(draft.verdicts[0].series.instances[0].path)
    (tmp_path / "sound.dcm").write_bytes(sound)
    (tmp_path / "broken.dcm").write_bytes(mutated(sound, setting(PatientID="OTHER")))
    if check.has_validator():
        assert check.main([str(tmp_path / "sound.dcm"), "--source", source]) == 0
        assert "sound" in capsys.readouterr().out
    assert check.main([str(tmp_path / "broken.dcm"), "--source", source]) == 1
    assert "OTHER_PATIENT" in capsys.readouterr().out


def test_every_document_passes_the_gate_before_anybody_has_it(world, monkeypatch):
    draft = world[0]
    seen = []
    monkeypatch.setattr(
        "mla_med.documents.write.refuse_problems", lambda content, *_: seen.append(content[128:132])
    )
    assert len(write_documents(draft, formats=("sr", "sr3d", "kos", "txt"))) == 4
    assert seen == [b"DICM"] * 3


def mutated(content: bytes, change: Callable[[Dataset], None]) -> bytes:
    with libraries_silent(), disable_value_validation():
        sr = dcmread(io.BytesIO(content))
        change(sr)
        file = io.BytesIO()
        sr.save_as(file, enforce_file_format=True)
    return file.getvalue()
