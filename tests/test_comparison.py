"""What has changed, by measurement: pairs, repeatability, whose prior it is, and silence without one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime

import numpy as np
import pydicom
import pytest
from phantoms import patient, volume_series, write_study

from mla_med.comparison import (
    Examined,
    change_of_size,
    compare_findings,
    lung_region,
    read_prior,
    relative_place,
)
from mla_med.dicom.study import read_study
from mla_med.documents.html import draft_to_html
from mla_med.documents.json import draft_from_json, draft_to_json
from mla_med.documents.sr import draft_to_sr
from mla_med.documents.text import draft_to_text
from mla_med.documents.words import compared_term
from mla_med.documents.write import write_draft
from mla_med.drafting import Options, draft_study
from mla_med.errors import StudyError
from mla_med.model import CHECKPOINTS
from mla_med.model.checkpoint import load_checkpoint
from mla_med.phantom.examine import stated
from mla_med.report.parse import parse_report
from mla_med.report.render import body_text
from mla_med.review.editing import change_language, edited_of
from mla_med.types import Change, Comparison, Draft, Evidence, Finding, Presence, Side

CHEST = ((-130.0, -90.0, -120.0), (130.0, 90.0, 120.0))
MOVED = ((-120.0, 210.0, 880.0), (140.0, 390.0, 1120.0))
"""The same chest in another frame of reference."""


def at(x: float, y: float, z: float, box=CHEST) -> Evidence:
    """Evidence of 24 mm around a place, given as in CHEST, in the frame of `box`."""
    low, high = np.array(box)
    place = low + (np.array([x, y, z]) - CHEST[0]) / np.ptp(CHEST, axis=0) * (high - low)
    return Evidence(("1.2",), (tuple(place - 12), tuple(place + 12)))


def nodule(size: float, evidence: Evidence, side=Side.RIGHT, site="upper_lobe") -> Finding:
    return Finding("lung_nodule", Presence.PRESENT, site, side, size, evidence=evidence)


def changes(now, then, **options) -> list[Change | None]:
    found, _ = compare_findings(Examined(tuple(now), CHEST), Examined(tuple(then), MOVED), **options)
    return [f.change for f in found]


def test_the_same_place_is_found_again_in_another_frame_of_reference():
    now, then = nodule(11.0, at(60, 20, 40)), nodule(8.0, at(55, 25, 45, MOVED))
    assert changes([now], [then]) == [Change.INCREASED]


@pytest.mark.parametrize(
    ("size", "before", "change"),
    [
        (8.0, 8.0, Change.STABLE),
        (9.9, 8.0, Change.STABLE),  # 1.9 mm, less than 2
        (6.0, 4.0, None),  # 2 mm, and three times the volume: neither
        (11.0, 8.0, Change.INCREASED),
        (8.0, 11.0, Change.DECREASED),
        (53.0, 50.0, Change.STABLE),  # 3 mm and 19 % of the volume
        (60.0, 50.0, Change.INCREASED),
    ],
)
def test_a_change_is_more_than_two_millimetres_and_a_quarter_of_the_volume(size, before, change):
    assert change_of_size(size, before)[0] is change


def test_a_difference_that_the_model_cannot_repeat_is_no_statement():
    change, words = change_of_size(12.0, 8.0, repeat_mm=5.2)
    assert change is None
    assert "8 mm then, 12 mm now (+4 mm" in words
    assert "differ by up to 5.2 mm" in words
    assert change_of_size(14.0, 8.0, repeat_mm=5.2)[0] is Change.INCREASED


def test_stable_is_said_only_where_measurements_would_have_shown_a_change():
    assert change_of_size(9.0, 8.0, repeat_mm=2.0)[0] is Change.STABLE
    assert change_of_size(9.0, 8.0, repeat_mm=5.2)[0] is None
    assert change_of_size(61.0, 60.0, repeat_mm=4.0)[0] is Change.STABLE  # 4 mm of 60 are 21 % of the volume


def test_nothing_is_said_of_sizes_whose_repeatability_nobody_measured():
    now, then = nodule(31.0, at(60, 20, 40)), nodule(24.0, at(60, 20, 40, MOVED))
    found, compared = compare_findings(Examined((now,), CHEST), Examined((then,), MOVED), {"lung_mass": 9.4})
    assert found[0].change is None
    assert "24 mm then, 31 mm now" in compared[0].words
    assert "is not known" in compared[0].words
    assert changes([now], [then], repeat_mm={"lung_nodule": 3.0}) == [Change.INCREASED]


def test_a_lesion_that_was_there_is_never_passed_over():
    small, large = nodule(8.0, at(60, 20, 80)), nodule(30.0, at(-60, 20, -40), Side.LEFT, "lower_lobe")
    then = [replace(small, evidence=at(60, 20, 80, MOVED)), replace(large, evidence=at(-60, 20, -40, MOVED))]
    _, compared = compare_findings(Examined((small,), CHEST), Examined(tuple(then), MOVED))
    assert [c.change for c in compared] == [Change.STABLE, None]
    assert "left, lower lobe, 30 mm" in compared[1].words
    _, compared = compare_findings(Examined((), CHEST), Examined(tuple(then), MOVED))
    assert len(compared) == 2


def test_of_several_lesions_each_is_compared_where_it_is():
    now = [nodule(8.0, at(60, 20, 80)), nodule(15.0, at(-60, 20, 50), Side.LEFT, "lower_lobe")]
    then = [nodule(8.0, at(60, 20, 80, MOVED)), nodule(9.0, at(-60, 20, 50, MOVED), Side.LEFT, "lower_lobe")]
    found, compared = compare_findings(Examined(tuple(now), CHEST), Examined(tuple(then), MOVED))
    assert [(c.side, c.site, c.change) for c in compared] == [
        (Side.RIGHT, "upper_lobe", Change.STABLE),
        (Side.LEFT, "lower_lobe", Change.INCREASED),
    ]
    assert [[c.is_of(finding) for c in compared] for finding in found] == [[True, False], [False, True]]
    assert [compared_term("chest_ct", c, "en") for c in compared] == [
        "Nodule (right upper lobe)",
        "Nodule (left lower lobe)",
    ]
    assert compared_term("chest_ct", compared[0], "zh").endswith("）")


def test_two_lesions_of_one_lobe_and_one_that_is_gone_are_told_apart():
    now = [nodule(8.0, at(60, 20, 80)), nodule(15.0, at(60, -60, -20))]
    then = [nodule(8.0, at(60, 20, 80, MOVED)), nodule(9.0, at(60, -60, -20, MOVED))]
    gone = nodule(11.0, at(-60, 20, 50, MOVED), Side.LEFT)
    found, compared = compare_findings(Examined(tuple(now), CHEST), Examined((*then, gone), MOVED))
    assert [c.change for c in compared] == [Change.STABLE, Change.INCREASED, None]
    assert [[c.is_of(finding) for c in compared] for finding in found] == [
        [True, False, False],
        [False, True, False],
    ]
    # of a draft that does not tell which
    assert all(Comparison("lung_nodule", None, "6 mm then").is_of(finding) for finding in found)


def test_a_nodule_that_became_a_mass_is_the_same_lesion():
    mass = Finding("lung_mass", Presence.PRESENT, "upper_lobe", Side.RIGHT, 38.0, evidence=at(60, 20, 40))
    then = [nodule(28.0, at(60, 20, 40, MOVED)), Finding("lung_mass", Presence.ABSENT)]
    now = [Finding("lung_nodule", Presence.ABSENT), mass]
    assert changes(now, then) == [None, Change.INCREASED]
    assert changes(now, then, repeat_mm={"lung_mass": 9.4}) == [None, None]
    assert changes(now, then, repeat_mm={"lung_mass": 9.4, "lung_nodule": 3.0}) == [None, Change.INCREASED]


def test_new_and_resolved_need_that_the_other_examination_ruled_it_out():
    absent, unsure = (Finding("lung_nodule", p) for p in (Presence.ABSENT, Presence.CANNOT_SAY))
    one = nodule(9.0, at(60, 20, 40))
    assert changes([one], [absent]) == [Change.NEW]
    assert changes([one], [unsure]) == [None]
    assert changes([one], []) == [None]  # nobody looked
    assert changes([absent], [nodule(9.0, at(60, 20, 40, MOVED))]) == [Change.RESOLVED]
    assert changes([unsure], [nodule(9.0, at(60, 20, 40, MOVED))]) == [None]
    assert changes([absent], [absent]) == [None]


def test_another_place_is_new_only_where_every_lesion_is_named():
    now, then = nodule(9.0, at(60, 20, 80)), nodule(9.0, at(60, 20, -40, MOVED))
    assert changes([now], [then]) == [None]
    assert changes([now], [then], every_lesion=True) == [Change.NEW]
    other_side = nodule(9.0, at(-60, 20, 80, MOVED), Side.LEFT)
    assert changes([now], [other_side], every_lesion=True) == [Change.NEW]


def test_of_several_each_is_paired_with_the_nearest_once():
    now = [nodule(8.0, at(60, 20, 80)), nodule(15.0, at(60, 20, 50)), nodule(6.0, at(60, -60, -80))]
    then = [nodule(9.0, at(60, 20, 52, MOVED)), nodule(8.0, at(60, 22, 82, MOVED))]
    assert changes(now, then, every_lesion=True) == [Change.STABLE, Change.INCREASED, Change.NEW]


def test_what_there_is_one_of_is_itself_wherever_its_evidence_lies():
    now = Finding("aortic_aneurysm", size_mm=58.0, evidence=at(0, 40, 60))
    then = Finding("aortic_aneurysm", size_mm=48.0, evidence=at(0, -40, -20, MOVED))
    assert changes([now], [then]) == [Change.INCREASED]


def test_both_sides_are_one_place_whichever_shows_it_better():
    both = Finding("pleural_effusion", side=Side.BILATERAL, evidence=at(-60, -60, -80))
    then = replace(both, evidence=at(60, -60, -80, MOVED))
    _, (compared,) = compare_findings(Examined((both,), CHEST), Examined((then,), MOVED))
    assert compared.words == "present then and now; its extent is not measured"
    right = replace(then, side=Side.RIGHT)
    for now, before in ((both, right), (right, both)):
        _, (compared,) = compare_findings(Examined((now,), CHEST), Examined((before,), MOVED))
        assert (compared.change, compared.words) == (None, "present then and now, but not on the same side")


def test_what_is_not_measured_is_not_called_stable():
    effusion = Finding("pleural_effusion", side=Side.LEFT, evidence=at(-60, -60, -80))
    then = replace(effusion, evidence=at(-60, -60, -80, MOVED))
    assert changes([effusion], [then]) == [None]


def test_the_lung_region_frames_the_lungs():
    hu = np.full((60, 50, 40), -1000.0, np.float32)
    hu[5:55, 5:45, :] = 40
    hu[10:25, 10:40, 8:35] = hu[35:50, 10:40, 8:35] = -850
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    low, high = np.array(lung_region(hu, affine))
    np.testing.assert_allclose(low, [40, 40, 40], atol=5)
    np.testing.assert_allclose(high, [196, 156, 170], atol=5)
    middle = tuple((low + high) / 2)
    np.testing.assert_allclose(relative_place((middle, middle), (tuple(low), tuple(high))), 0.5)


def test_a_draft_without_a_prior_cannot_state_a_change(phantom_draft):
    draft = phantom_draft
    changed = tuple(
        replace(f, change=Change.NEW) if f.presence is Presence.PRESENT else f for f in draft.report.findings
    )
    with pytest.raises(AssertionError):
        replace(draft, report=replace(draft.report, findings=changed))


# Through the house: one patient, two examinations


@pytest.fixture(scope="module")
def now(phantom_study):
    return read_study(volume_series(phantom_study("lung_mass", "hiatal_hernia")))


@pytest.fixture(scope="module")
def then(tmp_path_factory):
    """The same body with the same mass, and an effusion that has gone since."""
    today = patient("lung_mass", "hiatal_hernia")
    mass = [lesion for lesion in today.lesions if lesion.finding.code == "lung_mass"]
    lesions = (*mass, *patient("pleural_effusion").lesions)
    earlier = replace(
        today, lesions=lesions, findings=stated(lesions, "chest_ct"), taken=datetime(2025, 3, 1, 9, 0)
    )
    return read_study(volume_series(write_study(earlier, tmp_path_factory.mktemp("then"))))


@pytest.fixture(scope="module")
def phantom_draft(now, checkpoint):
    return draft_study(now, checkpoint)[0]


@pytest.fixture(scope="module")
def compared(now, then, checkpoint):
    return draft_study(now, checkpoint, options=Options(prior=then))


def test_changes_are_measured_on_the_images_of_the_prior(compared):
    draft, _ = compared
    change = {f.code: f.change for f in draft.report.findings}
    assert change["lung_mass"] in (Change.STABLE, None), "two scans of one mass"
    assert change["hiatal_hernia"] is Change.NEW
    assert change["pleural_effusion"] is Change.RESOLVED
    assert change["cardiomegaly"] is None
    assert draft.complaints == ()
    assert parse_report(body_text(draft.report)).findings == draft.report.findings
    assert "Compared by measurement with the examination of 2025-03-01." in draft.report.technique


def smaller(today, code: str, factor: float):
    """The same body before, with nothing but what has this code, which was so much smaller."""
    lesions = tuple(lesion.regrown(factor) for lesion in today.lesions if lesion.finding.code == code)
    found = stated(lesions, today.examination)
    return replace(today, lesions=lesions, findings=found, taken=datetime(2025, 3, 1, 9, 0))


def test_a_mass_that_has_grown_is_said_to_have_grown_in_every_document(now, checkpoint, tmp_path):
    earlier = smaller(patient("lung_mass", "hiatal_hernia"), "lung_mass", 0.7)
    prior = read_study(volume_series(write_study(earlier, tmp_path)))
    draft, _ = draft_study(now, checkpoint, options=Options(prior=prior))
    mass = next(f for f in draft.report.findings if f.code == "lung_mass")
    assert mass.change is Change.INCREASED
    assert draft.complaints == ()
    sr = draft_to_sr(draft, now.series[0].instances[0].path)
    told = [item.value for item in sr.iterall() if item.keyword == "TextValue"]
    for lines in (draft_to_text(draft).splitlines(), told):
        assert any("mass" in line and "increased since the prior examination" in line for line in lines)


def test_a_mass_of_a_head_that_has_grown_is_found_at_its_place_in_the_head(tmp_path):
    """Two examinations have two frames of reference."""
    today = patient("brain_mass", examination="brain_mr")
    earlier = smaller(today, "brain_mass", 0.5)
    now, prior = (
        read_study(write_study(one, tmp_path / n)) for n, one in (("now", today), ("then", earlier))
    )
    frames = {pydicom.dcmread(s.series[0].instances[0].path).FrameOfReferenceUID for s in (now, prior)}
    assert len(frames) == 2
    draft, _ = draft_study(now, load_checkpoint(CHECKPOINTS["brain_mr"]), options=Options(prior=prior))
    mass = next(f for f in draft.report.findings if f.code == "brain_mass")
    (compared,) = (c for c in draft.prior.comparisons if c.code == "brain_mass")
    assert compared.change is mass.change is Change.INCREASED, compared.words
    assert re.match(r"\d+ mm then, \d+ mm now", compared.words)
    assert draft.complaints == ()


def test_every_document_shows_the_change_and_what_it_was_measured_on(compared, now, then):
    draft, volume = compared
    text, page = draft_to_text(draft), draft_to_html(draft, volume)
    assert "iatal hernia, new since the prior examination" in text
    assert f"Compared by measurement with the examination of 20250301, study {then.study_uid}." in text
    assert "Pleural effusion: resolved; present then, absent now." in text
    assert "Compared with the prior examination" in page
    assert "present now, absent then" in page
    sr = draft_to_sr(draft, now.series[0].instances[0].path)
    (other,) = sr.PertinentOtherEvidenceSequence
    assert other.StudyInstanceUID == then.study_uid
    assert len(other.ReferencedSeriesSequence[0].ReferencedSOPSequence) == len(then.series[0].instances)
    assert "new since the prior" in sr.to_json()
    assert draft_from_json(json.loads(json.dumps(draft_to_json(draft)))).prior.comparisons


def test_without_a_prior_no_document_compares(phantom_draft):
    assert all(f.change is None for f in phantom_draft.report.findings)
    assert phantom_draft.prior is None
    words = (draft_to_text(phantom_draft) + draft_to_html(phantom_draft, None)).lower()
    for word in ("since the prior", "unchanged", "resolved", "compared"):
        assert word not in words


def test_a_prior_draft_serves_as_well_as_its_images(now, then, checkpoint, compared, tmp_path):
    earlier, volume = draft_study(then, checkpoint)
    write_draft(earlier, volume, tmp_path)
    again, _ = draft_study(now, checkpoint, options=Options(prior=read_prior(tmp_path, now)))
    assert [f.change for f in again.report.findings] == [f.change for f in compared[0].report.findings]


def test_a_draft_of_another_model_is_not_compared_and_that_is_said(now, phantom_draft, checkpoint):
    provenance = replace(phantom_draft.provenance, weights_sha256="0" * 64, study_uid="1.2.3")
    draft, _ = draft_study(
        now, checkpoint, options=Options(prior=replace(phantom_draft, provenance=provenance))
    )
    assert draft.prior is None
    assert [c.rule for c in draft.complaints] == ["PRIOR_NOT_COMPARED"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"PatientID": "PHANTOM-1"}, "PRIOR_OF_OTHER_PATIENT"),
        ({"PatientID": ""}, "PRIOR_OF_UNKNOWN"),
        ({"StudyDate": "20270101"}, "PRIOR_IS_LATER"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused_with_its_reason(now, then, tmp_path, change, code):
    for instance in then.series[0].instances:
        ds = pydicom.dcmread(instance.path)
        for keyword, value in change.items():
            setattr(ds, keyword, value)
        ds.save_as(tmp_path / instance.path.name)
    with pytest.raises(StudyError) as caught:
        read_prior(tmp_path, now)
    assert caught.value.code == code


def test_a_study_is_not_its_own_prior(now):
    with pytest.raises(StudyError, match="the study itself"):
        read_prior(now.series[0].instances[0].path.parent, now)


def test_a_draft_that_names_nobody_is_refused(now, phantom_draft, tmp_path):
    data = draft_to_json(
        replace(phantom_draft, provenance=replace(phantom_draft.provenance, study_uid="1.2"))
    )
    (tmp_path / "draft.json").write_text(json.dumps(data))
    with pytest.raises(StudyError, match=r"draft\.dcm"):
        read_prior(tmp_path, now)


def test_a_report_of_another_study_does_not_vouch_for_a_draft(now, phantom_draft, tmp_path):
    data = draft_to_json(
        replace(phantom_draft, provenance=replace(phantom_draft.provenance, study_uid="1.2"))
    )
    (tmp_path / "draft.json").write_text(json.dumps(data))
    image = now.series[0].instances[0].path
    draft_to_sr(phantom_draft, image).save_as(tmp_path / "draft.dcm")
    with pytest.raises(StudyError, match="of two studies") as caught:
        read_prior(tmp_path, now)
    assert caught.value.code == "PRIOR_OF_UNKNOWN"


def test_an_older_draft_without_the_newer_fields_is_read(phantom_draft: Draft):
    data = draft_to_json(phantom_draft)
    for name in ("prior", "region_mm"):
        del data["draft"][name]
    del data["draft"]["provenance"]["study_date"]
    assert draft_from_json(data).region_mm is None


def test_what_was_examined_and_compared_follows_the_language_of_the_report_unless_it_was_typed(compared):
    draft, _ = compared
    edited = edited_of(draft)
    chinese = change_language(edited, "zh", draft)
    assert re.fullmatch(
        r"胸部CT扫描，共\d+层，层间距[\d.]+ mm。与[\d-]+检查的测量结果比较。(未评估：.+。)?",
        chinese.report.technique,
    )
    assert change_language(chinese, "en", draft).report.technique == draft.report.technique
    typed = replace(edited, report=replace(edited.report, technique="CT, after a fall."))
    assert change_language(typed, "zh", draft).report.technique == "CT, after a fall."
