"""A brain MR study through the house: several series, one draft. The model has random weights: what it finds
means nothing, and is prepared, cited and worded as if it did."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from conftest import sr_errors

from evaluation.adversarial import train_tokenizer
from evaluation.linter import random_findings
from mla_med.acceptance import count_citations
from mla_med.dicom.select import choose_series
from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.documents.write import write_draft
from mla_med.drafting import Options, draft_study
from mla_med.imaging import transforms
from mla_med.looking import prepare
from mla_med.model import CHECKPOINTS
from mla_med.model.calibrate import Calibration
from mla_med.model.checkpoint import load_checkpoint, save_checkpoint
from mla_med.model.config import findings_of, tiny
from mla_med.model.evidence import box_voxels, slices_in_box
from mla_med.model.gate import SCOPES
from mla_med.model.mla import MLAModel
from mla_med.report.parse import parse_report
from mla_med.report.render import body_text, render_report
from mla_med.report.schema import BRAIN_MR
from mla_med.report.style import load_style
from mla_med.types import (
    Certificate,
    Evidence,
    Finding,
    Instance,
    Presence,
    Series,
    SeriesVerdict,
)

SETTINGS = replace(transforms.BRAIN_MR, shape=(40, 52, 44), spacing_mm=4.0)
SEEN_ON = {
    "acute_infarct": "DWI",
    "microbleeds": "SWI",
    "white_matter_hyperintensity": "FLAIR",
    "brain_mass": "T1 contrast",
    "hydrocephalus": "T2",
    "atrophy": "T1",
}
"""What this model calls present whatever it sees, each with the sequence that shows it best."""


@pytest.fixture(scope="module")
def brain_model(tmp_path_factory):
    """A checkpoint on disk, read back."""
    torch.manual_seed(1)
    config = tiny(
        findings=findings_of(BRAIN_MR),
        channels=SETTINGS.channels,
        image_dim=SETTINGS.shape,
        preprocessing=SETTINGS.to_dict(),
        vocab_size=1024,
        decoder={"n_layer": 1, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 768},
    )
    model = MLAModel(config).eval()
    texts = []
    for seed in range(20):
        findings = random_findings("brain_mr", random.Random(seed))
        for style in (load_style("prose", language) for language in ("en", "zh")):
            texts.append(body_text(render_report(findings, style, "brain_mr"), style))
    model.tokenizer = train_tokenizer(texts, vocab_size=1024)
    width = config.width
    calibration = Calibration(
        thresholds={code: 0.0 if code in SEEN_ON else 1.0 for code in BRAIN_MR},
        feature_mean=(0.0,) * width,
        feature_precision=((0.0,) * width,) * width,
        feature_limit=1.0,
    )
    folder = tmp_path_factory.mktemp("model") / "brain_mr"
    save_checkpoint(folder, model, calibration, SCOPES["brain_mr"], "random brain MR", "0.0.0", "# Nothing\n")
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def study(brain_study):
    return read_study(brain_study)


@pytest.fixture(scope="module")
def volumes(study):
    return {v.role: read_volume(v.series) for v in choose_series(study, "brain_mr") if v.chosen}


@pytest.fixture(scope="module")
def drafted(study, brain_model):
    style = load_style("prose", "zh")
    return draft_study(study, brain_model, options=Options(style=style))[0]


def without(study, *roles):
    """The study as if these sequences had not been taken."""
    gone = {v.series.series_uid for v in choose_series(study, "brain_mr") if v.role in roles}
    assert len(gone) == len(roles)
    return replace(study, series=tuple(s for s in study.series if s.series_uid not in gone))


def present(draft):
    return [f for f in draft.report.findings if f.presence is Presence.PRESENT]


def test_each_sequence_is_chosen_by_its_role(drafted):
    assert drafted.gate.accepted, drafted.gate.reasons
    roles = [v.role for v in drafted.verdicts if v.chosen]
    assert sorted(roles) == sorted(("T1", "T2", "FLAIR", "DWI", "SWI", "T1 contrast"))
    assert len(drafted.provenance.series_uids) == len(set(drafted.provenance.series_uids)) == 6


def test_a_sequence_without_a_channel_is_not_read_and_no_report_claims_it(drafted):
    (adc,) = (v for v in drafted.verdicts if v.role == "ADC")
    assert (adc.chosen, adc.reason.code) == (False, "NOT_READ")
    assert "ADC" not in drafted.report.technique


def test_the_channels_show_one_head_and_the_infarct_at_its_planted_place(volumes, brain_patient):
    prepared = prepare(volumes, SETTINGS)
    assert tuple(prepared.image_CIJK.shape) == (6, *SETTINGS.shape)
    assert prepared.present_C.all()
    assert all(channel.std() > 0.1 for channel in prepared.image_CIJK)
    infarct = next(p for p in brain_patient.lesions if p.finding.code == "acute_infarct")
    diffusion = prepared.image_CIJK[SETTINGS.sequences.index("DWI")]
    inside = diffusion[box_voxels(infarct.box_mm, prepared.affine, SETTINGS.shape)]
    head = diffusion[diffusion > -0.9]
    assert inside.max() > head.mean() + 2 * head.std()


def test_each_finding_cites_slices_of_the_series_that_shows_it_best(drafted):
    series = {v.role: v.series for v in drafted.verdicts if v.chosen}
    assert {f.code for f in present(drafted)} == set(SEEN_ON)
    for finding in present(drafted):
        instances = {i.sop_instance_uid for i in series[SEEN_ON[finding.code]].instances}
        assert finding.evidence is not None
        assert set(finding.evidence.sop_instance_uids) <= instances, finding.code


def test_the_draft_is_read_back_in_both_languages(drafted, study, brain_model):
    english = draft_study(study, brain_model)[0]
    assert (english.report.language, drafted.report.language) == ("en", "zh")
    for draft in (english, drafted):
        style = load_style("prose", draft.report.language)
        text = body_text(draft.report, style)
        assert parse_report(text, style, "brain_mr").findings == draft.report.findings
    assert [replace(f, evidence=None) for f in english.report.findings] == [
        replace(f, evidence=None) for f in drafted.report.findings
    ]
    assert "急性" in body_text(drafted.report, load_style("prose", "zh"))


def test_the_sr_is_sound_and_refers_to_every_series_that_is_cited(drafted, volumes, tmp_path):
    write_draft(drafted, volumes["FLAIR"], tmp_path / "out")
    assert sr_errors(tmp_path / "out" / "draft.dcm") == []
    sr = pydicom.dcmread(tmp_path / "out" / "draft.dcm")
    assert sr.StudyInstanceUID == drafted.provenance.study_uid
    assert "急性" in sr.to_json_dict().__str__()
    (evidence,) = sr.CurrentRequestedProcedureEvidenceSequence
    referenced = {item.SeriesInstanceUID for item in evidence.ReferencedSeriesSequence}
    cited = {volumes[role].series.series_uid for role in SEEN_ON.values()}
    assert cited <= referenced


def test_citations_are_judged_by_the_slices_of_their_own_series(drafted, volumes, brain_patient):
    infarct = next(p for p in brain_patient.lesions if p.finding.code == "acute_infarct")
    low, high = np.array(infarct.box_mm)
    far = tuple(tuple(corner + np.array([0, 0, 90])) for corner in (low, high))
    for role in ("DWI", "SWI", "T1"):
        volume = volumes[role]
        columns, rows, slices = volume.voxels.shape
        for box, hits in ((infarct.box_mm, 1), (far, 0)):
            k = slices_in_box(box, volume.affine, slices, ((columns - 1) / 2, (rows - 1) / 2))[0]
            uid = volume.series.instances[k].sop_instance_uid
            finding = replace(infarct.finding, evidence=Evidence((uid,), box))
            draft = replace(drafted, report=replace(drafted.report, findings=(finding,)))
            assert count_citations(brain_patient, draft) == (hits, 1)


def test_a_citation_of_a_sagittal_slice_is_judged_by_where_it_lies_from_left_to_right(drafted, brain_patient):
    infarct = next(p for p in brain_patient.lesions if p.finding.code == "acute_infarct")
    (left, *_), (right, *_) = infarct.box_mm
    affine = ((0.0, 0.0, 4.0, -100.0), (-1.0, 0.0, 0.0, 110.0), (0.0, -1.0, 0.0, 90.0), (0.0, 0.0, 0.0, 1.0))
    certificate = Certificate((220, 200, 50), (1.0, 1.0, 4.0), affine, "sagittal", 0.0, 0.0, 0, "", "", False)
    instances = tuple(Instance(f"2.25.{k}", "", Path()) for k in range(50))
    series = Series("2.25.1", "MR", "", "", (), instances)
    verdicts = (SeriesVerdict(series, certificate, None, chosen=True, role="T1"),)
    for k in range(50):
        finding = replace(infarct.finding, evidence=Evidence((f"2.25.{k}",), infarct.box_mm))
        report = replace(drafted.report, findings=(finding,))
        hits, _ = count_citations(brain_patient, replace(drafted, report=report, verdicts=verdicts))
        assert hits == (left <= -100 + 4 * k <= right), k


def test_without_diffusion_nobody_can_say_whether_an_infarct_is_fresh(study, brain_model):
    draft, _ = draft_study(without(study, "DWI", "ADC"), brain_model)
    (infarct,) = (f for f in draft.report.findings if f.code == "acute_infarct")
    assert infarct == Finding("acute_infarct", Presence.CANNOT_SAY)
    assert {f.code for f in present(draft)} == set(SEEN_ON) - {"acute_infarct"}
    assert "DWI" not in draft.report.technique


def test_where_the_best_sequence_is_missing_the_next_is_cited(study, brain_model):
    draft, _ = draft_study(without(study, "FLAIR"), brain_model)
    series = {v.role: v.series for v in draft.verdicts if v.chosen}
    (spots,) = (f for f in present(draft) if f.code == "white_matter_hyperintensity")
    instances = {i.sop_instance_uid for i in series["T2"].instances}
    assert set(spots.evidence.sop_instance_uids) <= instances


def test_a_study_without_flair_and_t2_is_refused(study, brain_model):
    draft, volume = draft_study(without(study, "FLAIR", "T2"), brain_model)
    assert draft.report is None
    assert volume is None
    assert [reason.code for reason in draft.gate.reasons] == ["NO_SEQUENCE"]


def blank(study, role):
    """Reads this sequence as if every pixel had one value."""
    (uid,) = (v.series.series_uid for v in choose_series(study, "brain_mr") if v.role == role and v.chosen)

    def read(reader, *args):
        answer = reader(*args)
        if reader is not read_volume or args[0].series_uid != uid:
            return answer
        return replace(answer, voxels=np.full_like(answer.voxels, 100.0))

    return read


def test_a_blank_sequence_rules_nothing_out(study, brain_model):
    draft, _ = draft_study(study, brain_model, call=blank(study, "DWI"))
    (verdict,) = (v for v in draft.verdicts if v.role == "DWI")
    assert (verdict.chosen, verdict.reason.code) == (False, "NOTHING_SHOWN")
    (infarct,) = (f for f in draft.report.findings if f.code == "acute_infarct")
    assert infarct == Finding("acute_infarct", Presence.CANNOT_SAY)
    assert "DWI" not in draft.report.technique


def test_where_what_is_blank_was_needed_the_study_is_refused(study, brain_model):
    draft, _ = draft_study(without(study, "T2"), brain_model, call=blank(study, "FLAIR"))
    assert draft.report is None
    assert [reason.code for reason in draft.gate.reasons] == ["NO_SEQUENCE"]


def test_a_head_that_looks_like_no_other_is_refused(study, brain_model):
    precision = tuple(map(tuple, np.eye(brain_model.model.config.width).tolist()))
    strict = replace(brain_model.calibration, feature_precision=precision, feature_limit=0.0)
    draft, _ = draft_study(study, replace(brain_model, calibration=strict))
    assert [reason.code for reason in draft.gate.reasons] == ["FEATURES_UNFAMILIAR"]


def noise(voxels: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).normal(500, 20, voxels.shape).astype(voxels.dtype)


def dark_noise(voxels: np.ndarray) -> np.ndarray:
    return np.abs(np.random.default_rng(0).normal(0, 200, voxels.shape)).astype(voxels.dtype)


def shuffled(voxels: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(voxels.ravel()).reshape(voxels.shape)


def inverted(voxels: np.ndarray) -> np.ndarray:
    return voxels.max() - voxels


@pytest.fixture(scope="module")
def packaged():
    return load_checkpoint(CHECKPOINTS["brain_mr"])


def instead(change):
    """Reads every sequence so changed; its headers stay."""

    def read(reader, *args):
        answer = reader(*args)
        return replace(answer, voxels=change(answer.voxels)) if reader is read_volume else answer

    return read


@pytest.mark.parametrize("change", [noise, dark_noise, shuffled, inverted])
def test_the_packaged_model_refuses_values_that_no_head_has(study, packaged, change):
    draft, _ = draft_study(study, packaged, call=instead(change))
    assert draft.report is None
    assert {reason.code for reason in draft.gate.reasons} == {"HISTOGRAM_UNFAMILIAR"}
    low, high = packaged.calibration.usual.share
    limits = packaged.calibration.usual.limits
    scores = draft.gate.scores
    assert set(scores) == {"head_share", *(f"brightness_distance {name}" for name in limits)}
    strange = [name for name in limits if scores[f"brightness_distance {name}"] > limits[name]]
    assert strange or not low <= scores["head_share"] <= high


def test_the_packaged_model_passes_the_head_as_it_is(study, packaged):
    draft, _ = draft_study(study, packaged)
    assert draft.gate.accepted
    limits = packaged.calibration.usual.limits
    assert all(draft.gate.scores[f"brightness_distance {name}"] < limit for name, limit in limits.items())


def test_neither_model_drafts_what_the_other_reads(study, brain_model, checkpoint, phantom_series):
    for other, model in ((read_study(phantom_series), brain_model), (study, checkpoint)):
        draft, _ = draft_study(other, model)
        assert draft.report is None
        assert draft.gate.reasons[0].code in ("NO_SERIES", "WRONG_MODALITY")


def test_a_real_head_ct_is_refused(real_series, brain_model, tmp_path):
    draft, _ = draft_study(read_study(real_series("ct_head_philips_study")), brain_model)
    assert draft.report is None
