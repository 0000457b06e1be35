"""A study goes in, a draft or a refusal comes out: the whole house with the packaged model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from conftest import sr_errors
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from phantoms import volume_series
from pydicom.uid import generate_uid

from mla_med.acceptance import TEST_SEEDS, draft_phantoms
from mla_med.dicom.study import read_study
from mla_med.documents.html import draft_to_html
from mla_med.documents.json import draft_from_json
from mla_med.documents.sr import draft_to_sr
from mla_med.documents.text import draft_to_text
from mla_med.drafting import Options, draft_folder, draft_study
from mla_med.errors import CheckpointError
from mla_med.model import CHECKPOINTS, DEFAULT_CHECKPOINT
from mla_med.model.checkpoint import load_checkpoint
from mla_med.phantom.examine import examine
from mla_med.phantom.sites import site_of
from mla_med.report.parse import parse_report
from mla_med.report.render import body_text
from mla_med.report.style import load_style
from mla_med.types import Presence, Side

FILES = ["draft.dcm", "draft.html", "draft.json", "draft.txt"]


@pytest.fixture(scope="module")
def drafted(phantom_series, checkpoint):
    return draft_study(read_study(phantom_series), checkpoint)


def test_a_phantom_is_drafted_with_what_was_planted(drafted):
    draft, _ = drafted
    assert draft.gate.accepted, draft.gate.reasons
    present = {f.code for f in draft.report.findings if f.presence is Presence.PRESENT}
    assert {"lung_mass", "pleural_effusion", "cardiomegaly"} <= present
    assert draft.complaints == ()


def test_the_text_states_exactly_the_findings(drafted):
    draft, _ = drafted
    assert parse_report(body_text(draft.report)).findings == draft.report.findings


def test_every_present_finding_cites_slices_of_the_study(drafted):
    draft, volume = drafted
    known = {i.sop_instance_uid for i in volume.series.instances}
    present = [f for f in draft.report.findings if f.presence is Presence.PRESENT]
    for finding in present:
        assert finding.evidence is not None
        assert set(finding.evidence.sop_instance_uids) <= known
        low, high = np.array(finding.evidence.box_mm)
        assert (high > low).all()
        assert 0.0 <= finding.confidence <= 1.0


def test_of_an_enhanced_object_the_frames_are_cited(phantom_series, checkpoint, tmp_path):
    """All slices have one UID: without frame numbers (PS3.3 10.3) a viewer opens the first."""
    classic = [pydicom.dcmread(path) for path in sorted(phantom_series.iterdir())]
    enhanced = LegacyConvertedEnhancedCTImage(classic, generate_uid(), 1, generate_uid(), 1)
    enhanced.save_as(tmp_path / "1.dcm")
    draft, _ = draft_study(read_study(tmp_path), checkpoint)
    mass = next(f for f in draft.report.findings if f.code == "lung_mass")
    ((uid, frames),) = mass.evidence.cited
    assert uid == enhanced.SOPInstanceUID
    low, high = (corner[2] for corner in mass.evidence.box_mm)
    place = enhanced.PerFrameFunctionalGroupsSequence[frames[0] - 1].PlanePositionSequence[0]
    assert place.ImagePositionPatient[2] == pytest.approx((low + high) / 2, abs=3.0)
    sr = draft_to_sr(draft, tmp_path / "1.dcm")
    numbers = [e.value for e in sr.iterall() if e.keyword == "ReferencedFrameNumber"]
    assert list(frames) in numbers
    sr.save_as(tmp_path / "draft.dcm", enforce_file_format=True)
    assert not sr_errors(tmp_path / "draft.dcm")


def test_evidence_lies_on_the_side_that_is_stated(drafted):
    draft, volume = drafted
    middle = (volume.affine @ [*(np.array(volume.voxels.shape) / 2), 1])[0]
    mass = next(f for f in draft.report.findings if f.code == "lung_mass")
    x = np.mean([corner[0] for corner in mass.evidence.box_mm])
    assert (x > middle) == (mass.side is Side.RIGHT)


def test_the_same_study_gives_the_same_draft(drafted, phantom_series, checkpoint):
    again, _ = draft_study(read_study(phantom_series), checkpoint)
    first = replace(drafted[0].provenance, created_utc="")
    assert replace(again, provenance=first) == replace(drafted[0], provenance=first)


def test_the_images_decide(checkpoint, phantom_study):
    """Another body under almost the same headers: other findings, and they are those planted."""
    folder = volume_series(phantom_study("pericardial_effusion"))
    draft, _ = draft_study(read_study(folder), checkpoint)
    assert draft.gate.accepted, draft.gate.reasons
    present = {f.code for f in draft.report.findings if f.presence is Presence.PRESENT}
    assert "pericardial_effusion" in present
    assert not {"lung_mass", "pleural_effusion", "cardiomegaly"} & present


def test_all_four_files_appear_and_the_sr_is_sound(phantom_series, tmp_path):
    draft, files = draft_folder(phantom_series, tmp_path / "out")
    assert (
        sorted(path.name for path in files) == FILES == sorted(p.name for p in (tmp_path / "out").iterdir())
    )
    assert sr_errors(tmp_path / "out" / "draft.dcm") == []
    sr = pydicom.dcmread(tmp_path / "out" / "draft.dcm")
    assert (sr.VerificationFlag, sr.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert sr.SpecificCharacterSet == "ISO_IR 192"
    again = draft_from_json(json.loads((tmp_path / "out" / "draft.json").read_text()))
    assert again.report == draft.report


def test_a_head_with_a_hole_is_refused_by_name(packaged_head, tmp_path):
    draft, _ = draft_folder(packaged_head, tmp_path)
    assert draft.report is None
    assert [r.code for r in draft.gate.reasons] == ["NO_SERIES", "MISSING_SLICE"]
    (verdict,) = draft.verdicts
    assert verdict.reason.code == "MISSING_SLICE"
    assert "202.50 mm after slice 1 of 4" in verdict.reason.words
    text = (tmp_path / "draft.txt").read_text()
    assert "MISSING_SLICE" in text
    assert "nodule" not in text
    assert sr_errors(tmp_path / "draft.dcm") == []


def test_a_real_head_is_refused_by_a_chest_model(real_series, tmp_path):
    draft, _ = draft_folder(real_series("ct_head_philips_study"), tmp_path)
    assert [r.code for r in draft.gate.reasons][:1] == ["WRONG_BODY_PART"]
    verdicts = {v.series.description: v for v in draft.verdicts}
    assert verdicts["STD BRAIN 5MM"].chosen
    refused = {v.reason.code for v in draft.verdicts if not v.accepted}
    assert {"LOCALIZER", "SECONDARY_CAPTURE"} <= refused
    assert sr_errors(tmp_path / "draft.dcm") == []


def test_a_slab_of_a_real_chest_is_refused_for_its_coverage(real_series, tmp_path):
    draft, _ = draft_folder(real_series("ct_chest_philips_32of275"), tmp_path)
    assert "COVERAGE_TOO_SMALL" in [r.code for r in draft.gate.reasons]
    assert sr_errors(tmp_path / "draft.dcm") == []


def test_a_body_without_lungs_is_refused_by_its_pixels(phantom_series, checkpoint, tmp_path):
    """The header says nothing; the image has no lungs."""
    for path in sorted(phantom_series.iterdir()):
        ds = pydicom.dcmread(path)
        pixels = ds.pixel_array.copy()
        pixels[(pixels > 20) & (pixels < 700)] = 1060
        ds.PixelData, ds.BodyPartExamined = pixels.tobytes(), ""
        ds.save_as(tmp_path / path.name)
    draft, _ = draft_study(read_study(tmp_path), checkpoint)
    assert draft.gate.reasons[-1].code == "HISTOGRAM_UNFAMILIAR"
    assert "density of lung" in draft.gate.reasons[-1].words


def test_a_child_is_refused_by_a_model_that_saw_none(phantom_series, checkpoint):
    study = read_study(phantom_series)
    child = replace(study, context=replace(study.context, age_years=9.0))
    draft, volume = draft_study(child, checkpoint)
    assert [r.code for r in draft.gate.reasons] == ["AGE_UNFAMILIAR"]
    assert volume is None


def test_what_cannot_be_said_is_said_so_in_every_document(phantom_series, checkpoint):
    """A model that rules nothing out: text, page and SR say so of the finding, and cite where it may lie."""
    calibration = checkpoint.calibration
    unsure = replace(calibration.answers["hiatal_hernia"], present_from=0.0, absent_to=1.0)
    answers = calibration.answers | {"hiatal_hernia": unsure}
    humble = replace(checkpoint, calibration=replace(calibration, answers=answers))
    study = read_study(phantom_series)
    draft, volume = draft_study(study, humble)
    (hernia,) = (f for f in draft.report.findings if f.code == "hiatal_hernia")
    assert hernia.presence is Presence.CANNOT_SAY
    assert hernia.evidence is not None
    assert hernia.confidence >= 0.5
    assert draft.complaints == ()
    words = "A hiatal hernia cannot be excluded."
    assert words in draft_to_text(draft)
    assert "Cannot say: " in draft_to_text(draft)
    page = draft_to_html(draft, volume)
    assert words in page
    assert '<span class="tag warn">cannot say</span>' in page
    assert words in draft_to_sr(draft, study.series[0].instances[0].path).to_json()


@pytest.mark.parametrize("name", ["terse", "template"])
def test_a_draft_in_another_style_is_checked_in_that_style(phantom_series, checkpoint, name):
    options = Options(style=load_style(name))
    draft, _ = draft_study(read_study(phantom_series), checkpoint, options=options)
    assert draft.complaints == ()


# The checkpoint


@pytest.mark.parametrize("examination", CHECKPOINTS)
def test_a_packaged_checkpoint_holds_no_pickle(examination):
    files = [p for p in CHECKPOINTS[examination].iterdir() if p.is_file()]
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md"}


def test_the_packaged_checkpoints_have_twenty_megabytes_together():
    files = [p for folder in CHECKPOINTS.values() for p in folder.iterdir()]
    assert sum(p.stat().st_size for p in files) <= 20e6


def test_a_missing_checkpoint_says_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing") as caught:
        load_checkpoint(tmp_path)
    assert caught.value.code == "CHECKPOINT_MISSING"


def test_a_damaged_checkpoint_says_so(tmp_path):
    for path in DEFAULT_CHECKPOINT.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_checkpoint(tmp_path)
    assert caught.value.code == "CHECKPOINT_DAMAGED"


# Phantoms through the house


def test_a_phantom_is_drafted_once_and_its_reference_states_what_was_planted(tmp_path):
    """In Chinese: request, report and reference."""
    seed = TEST_SEEDS[2]
    made = draft_phantoms([seed], tmp_path, language="zh")
    assert (made.drafted, made.refused) == (1, 0)
    (case,) = (tmp_path / "cases").iterdir()
    stamp = case.stat().st_mtime_ns
    assert draft_phantoms([seed], tmp_path, language="zh") == made
    assert case.stat().st_mtime_ns == stamp
    truth = {lesion.finding.code for lesion in examine(seed, "chest_ct", site_of("a")).lesions}
    assert truth
    (reference,), (drafted,) = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (made.references, made.drafts)
    )
    assert reference["id"] == drafted["id"] == f"phantom-{seed}"
    style = load_style("prose", "zh")
    stated = parse_report(reference["report"], style).findings
    assert {f.code for f in stated if f.presence is Presence.PRESENT} == truth
    assert parse_report(drafted["report"], style).findings
