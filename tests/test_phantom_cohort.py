"""Examinations and cohorts of phantoms: what is planted is what is reported, the same for the same seed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mla_med.dicom.select import choose_series
from mla_med.dicom.study import read_study
from mla_med.errors import ConfigError, OutputError
from mla_med.phantom import cohort, scanning
from mla_med.phantom.cohort import CohortConfig, record_of, report_of, split_of
from mla_med.phantom.examine import SIZES_MM, Room, before, examine, stated
from mla_med.phantom.lesion import Decoy, Lesion
from mla_med.phantom.sheet import caption, chosen
from mla_med.phantom.sites import site_of
from mla_med.report.parse import parse_report
from mla_med.report.render import body_text
from mla_med.report.schema import CHEST_CT
from mla_med.report.style import load_style
from mla_med.types import Change, Finding, Presence, Side

BOX = ((0.0, 0.0, 0.0), (10.0, 10.0, 10.0))


def lesion(code: str, side=None, site=None, size_mm=None, box_mm=BOX) -> Lesion:
    finding = Finding(code, side=side, site=site, size_mm=size_mm)

    def regrown(factor: float) -> Lesion:
        return lesion(code, side, site, round(size_mm * factor, 1), box_mm)

    return Lesion(finding, box_mm, regrown=None if size_mm is None else regrown)


def plant(anatomy, codes, rng) -> tuple[Lesion, ...]:
    """Every code at a random legal place, each somewhere of its own."""
    planted = []
    for code in codes:
        kind = CHEST_CT[code]
        side, site = kind.places[int(rng.integers(len(kind.places)))]
        size = round(float(rng.uniform(*SIZES_MM[code])), 1) if kind.has_size else None
        low = float(rng.uniform(-1e4, 1e4))
        planted.append(lesion(code, side, site, size, ((low,) * 3, (low + 1,) * 3)))
    return tuple(planted)


ROOM = Room(
    lambda patient: SimpleNamespace(enhanced=patient.seed % 3 == 0),
    plant,
    lambda anatomy, rng: (Decoy("vessel end-on", BOX),),
)


def examined(seed: int, prior_share: float = 0.0, codes=None, site: str = "a"):
    return examine(seed, "chest_ct", site_of(site), prior_share, codes, ROOM)


def test_a_seed_is_one_examination():
    a, b = (examined(3, 1.0) for _ in range(2))
    assert record_of(a, {}) == record_of(b, {})
    assert record_of(a, {}) != record_of(examined(4, 1.0), {})


@pytest.mark.parametrize("site", ["a", "b"])
def test_the_report_states_what_was_planted_and_nothing_else(site):
    for seed in range(12):
        one = examined(seed, 0.5, site=site)
        planted = {p.finding.code for p in one.lesions}
        report = report_of(one)
        assert {f.code for f in report.findings if f.presence is Presence.PRESENT} == planted
        style = load_style(one.site.style, one.site.language)
        read = parse_report(body_text(report, style), style=style)
        assert set(read.findings) == set(report.findings)


def test_lesions_of_one_code_at_one_place_are_one_sentence_with_the_largest_size():
    nodules = [lesion("lung_nodule", Side.LEFT, "upper_lobe", size) for size in (5.0, 9.0, 7.0)]
    other = lesion("lung_nodule", Side.RIGHT, "upper_lobe", 4.0)
    assert stated([*nodules, other], "chest_ct") == (
        Finding("lung_nodule", side=Side.LEFT, site="upper_lobe", size_mm=9.0, count=3),
        Finding("lung_nodule", side=Side.RIGHT, site="upper_lobe", size_mm=4.0),
    )


def test_effusions_on_both_sides_are_bilateral():
    both = [lesion("pleural_effusion", side) for side in (Side.RIGHT, Side.LEFT)]
    assert stated(both, "chest_ct") == (Finding("pleural_effusion", side=Side.BILATERAL),)
    assert stated(both[:1], "chest_ct") == (Finding("pleural_effusion", side=Side.RIGHT),)


def test_every_finding_of_a_patient_with_an_earlier_study_has_changed_as_the_two_differ():
    seen = set()
    for seed in range(60):
        one = examined(seed, 1.0)
        earlier = one.earlier
        assert earlier is not None
        for finding in one.findings:
            was = [f for f in earlier.findings if f.code == finding.code]
            place = [f for f in was if (f.side, f.site) == (finding.side, finding.site)]
            seen.add(finding.change)
            if finding.change is Change.RESOLVED:
                assert finding.presence is Presence.ABSENT
                assert was
            elif finding.change is Change.NEW:
                assert not place
            elif finding.change is Change.STABLE:
                assert place[0].size_mm == finding.size_mm
            else:
                assert (place[0].size_mm < finding.size_mm) is (finding.change is Change.INCREASED)
        stated_codes = {f.code for f in one.findings}
        assert {f.code for f in earlier.findings} <= stated_codes
    assert seen == set(Change)


def test_an_earlier_lesion_keeps_a_size_that_its_name_allows():
    for seed in range(40):
        one = examined(seed, 1.0, ("lung_nodule", "lung_mass", "aortic_aneurysm"))
        assert one.earlier is not None
        for finding in one.earlier.findings:
            if finding.size_mm is not None and finding.code in SIZES_MM:
                low, high = SIZES_MM[finding.code]
                assert low <= finding.size_mm <= high


def test_an_aneurysm_neither_comes_nor_shrinks_within_months():
    changes = set()
    for seed in range(40):
        one = examined(seed, 1.0, ("aortic_aneurysm",))
        assert one.earlier is not None
        (now,) = (f for f in one.findings if f.code == "aortic_aneurysm")
        (then,) = (f for f in one.earlier.findings if f.code == "aortic_aneurysm")
        assert 0.75 < then.size_mm / now.size_mm <= 1
        changes.add(now.change)
    assert changes == {Change.STABLE, Change.INCREASED}


def test_an_embolism_is_said_to_have_gone_only_where_contrast_medium_was_given():
    gone = [
        one
        for one in (examined(seed, 1.0, ()) for seed in range(400))
        if any(f.code == "pulmonary_embolism" for f in one.findings)
    ]
    assert gone
    assert all(one.contrast for one in gone)


def test_the_earlier_study_is_months_older_and_its_report_is_the_prior():
    one = examined(11, 1.0)
    earlier = before(one)
    assert 55 < (one.taken - earlier.taken).days < 750
    assert one.earlier is not None
    assert one.context.prior == one.earlier.report
    assert (earlier.context.prior, earlier.earlier) == ("", None)
    assert earlier.patient.seed == one.patient.seed


def test_a_report_says_whether_contrast_medium_was_given():
    without, given = (report_of(examined(seed)).technique for seed in (1, 3))
    assert (without, given) == (
        "CT of the chest without contrast medium.",
        "CT of the chest with intravenous contrast medium.",
    )


def test_a_share_of_patients_has_an_earlier_study():
    share = np.mean([examined(seed, 0.25).earlier is not None for seed in range(400)])
    assert 0.19 < share < 0.31


def test_a_record_is_what_a_training_needs():
    record = json.loads(json.dumps(record_of(examined(7_000_004, 1.0, ("lung_nodule",)), {"array": "x.npy"})))
    assert record["id"] == "phantom-0007000004"
    (planted,) = record["planted"]
    assert planted["code"] == "lung_nodule"
    assert len(planted["box_mm"]) == 2
    assert record["decoys"][0]["kind"] == "vessel end-on"
    assert record["prior"]["report"]
    assert record["report"].startswith("FINDINGS:")
    assert record["array"] == "x.npy"


def test_splits_are_eight_one_one_and_do_not_depend_on_the_size_of_the_cohort():
    of = [split_of(seed) for seed in CohortConfig(n=1000).seeds]
    assert [of.count(name) for name in cohort.SPLITS] == [800, 100, 100]
    assert of[:40] == [split_of(seed) for seed in CohortConfig(n=40).seeds]
    assert of[:10] != of[10:20] or of[:10] != of[20:30]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"examination": "knee_mr"}, "No phantom of 'knee_mr'"),
        ({"site": "z"}, "No site 'z'"),
        ({"form": "nifti"}, "No form 'nifti'"),
        ({"style": "rhymed"}, "No style 'rhymed'"),
        ({"n": 0}, "1 to 900000 patients"),
        ({"workers": 0}, "0 workers"),
        ({"spacing_mm": 0.1}, "0.5 to 12 mm"),
        ({"odds": 0.0}, "0.01 to 100 times"),
    ],
)
def test_a_cohort_that_cannot_be_made_is_refused_before_it_begins(change, words):
    with pytest.raises(ConfigError, match=words):
        CohortConfig(**change)


@pytest.mark.parametrize("site", ["a", "b"])
def test_at_higher_odds_patients_have_more_and_what_is_rare_gains_most(site):
    def planted(odds: float) -> Counter[str]:
        place = CohortConfig(site=site, odds=odds).own_site
        every = (examine(seed, "chest_ct", place, room=ROOM) for seed in range(200))
        return Counter(lesion.finding.code for one in every for lesion in one.lesions)

    usual, much = planted(1.0), planted(8.0)
    assert usual == Counter(
        lesion.finding.code for seed in range(200) for lesion in examined(seed, site=site).lesions
    )
    assert much.total() > 2 * usual.total()
    rare = ("thyroid_nodule", "adrenal_lesion", "pulmonary_embolism")
    assert sum(much[code] for code in rare) > 4 * sum(usual[code] for code in rare)


def test_a_folder_with_another_cohort_is_left_alone(tmp_path):
    cohort._check_same(CohortConfig(n=20), tmp_path)
    cohort._check_same(CohortConfig(n=30, workers=1), tmp_path)  # more of the same
    changes = ({"seed": 8}, {"site": "b"}, {"n": 10}, {"spacing_mm": 6.0}, {"odds": 3.0})
    for other in (CohortConfig(**{"n": 30} | change) for change in changes):
        with pytest.raises(ConfigError, match="other settings"):
            cohort._check_same(other, tmp_path)
    assert json.loads((tmp_path / "cohort.json").read_text())["n"] == 30


@pytest.mark.parametrize("examination", ["chest_ct", "brain_mr"])
def test_the_same_body_lies_at_the_same_place_in_voxels_of_any_size(examination):
    one = examine(3, examination, site_of("a"))
    arrays = [scanning.to_array(one, spacing_mm=mm) for mm in (12.0, 6.0)]
    for (_, affine, _), mm in zip(arrays, (12.0, 6.0), strict=True):
        assert np.allclose(np.diag(affine)[:3], mm)
    (coarse, affine, scan), (fine, finer, other) = arrays
    assert scan == other or examination == "chest_ct"
    # T2, or the HU: where it is bright or dark, it is so in both
    coarse, fine = (a[1] if a.ndim == 4 else a for a in (coarse, fine))
    inside = np.argwhere(np.ones(coarse.shape, bool))
    mm = inside @ affine[:3, :3].T + affine[:3, 3]
    index = np.rint((mm - finer[:3, 3]) / np.diag(finer)[:3]).astype(int)
    there = (index >= 0).all(1) & (index < fine.shape).all(1)
    assert there.mean() > 0.9
    pairs = coarse[tuple(inside[there].T)], fine[tuple(index[there].T)]
    assert np.corrcoef(*pairs)[0, 1] > 0.9


def test_a_study_never_replaces_what_is_there(tmp_path):
    with pytest.raises(OutputError, match="there already"):
        scanning.write_dicom(examined(1), tmp_path)


def test_an_unknown_maker_is_named_beside_those_that_there_are(tmp_path):
    with pytest.raises(ConfigError, match="No CT of 'acme'; there are: siemens"):
        scanning.write_dicom(examined(1), tmp_path / "x", maker="acme")


def run(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mla_med.cli", "phantom", "cohort", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_killed_cohort_goes_on_and_has_the_same_bytes_with_any_number_of_workers(tmp_path):
    common = ("--n", "2", "--seed", "9", "--examination", "brain_mr", "--prior-share", "0.5")
    whole = run(*common, "--workers", "2", "--out", str(tmp_path / "whole"))
    assert whole.wait() == 0
    killed = run(*common, "--workers", "1", "--out", str(tmp_path / "killed"))
    patients = tmp_path / "killed" / "patients"
    while not list(patients.glob("*.json")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    first = min(patients.glob("*.json"))
    made = os.stat(first).st_mtime_ns
    assert run(*common, "--workers", "1", "--out", str(tmp_path / "killed")).wait() == 0
    assert os.stat(first).st_mtime_ns == made
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_the_language_of_the_reports_can_be_another_than_the_site_s():
    site = CohortConfig(site="a", language="zh", style="prose").own_site
    one = examine(5, "chest_ct", site, room=ROOM)
    assert replace(site, language="en", style="prose") == site_of("a")
    assert report_of(one).language == "zh"


@pytest.fixture(scope="module")
def chinese_study(tmp_path_factory):
    """A chest CT of site b in DICOM, with an earlier one; seed 29 is scanned in thick slices."""
    one = examine(29, "chest_ct", site_of("b"), 1.0, ("lung_nodule", "pulmonary_embolism"))
    folder = tmp_path_factory.mktemp("study") / one.id
    return one, folder, scanning.write_dicom(one, folder, matrix=64)


def test_a_study_in_dicom_is_read_with_its_request_and_the_report_of_the_earlier_one(chinese_study):
    one, folder, written = chinese_study
    study = read_study(folder / "study")
    assert study.study_uid == written["study"]
    assert study.study_date == f"{one.taken:%Y%m%d}"
    assert study.context.indication == one.context.indication
    assert study.context.prior == " ".join(one.context.prior.split())
    assert study.description == "胸部CT增强"  # an embolism is seen with contrast medium only
    (verdict,) = (v for v in choose_series(study, "chest_ct") if v.chosen)
    assert verdict.series.series_uid in written["series"]
    assert verdict.certificate.shape[:2] == (64, 64)
    assert verdict.certificate.contrast_header


def test_the_earlier_study_lies_beside_it_with_a_date_of_its_own(chinese_study):
    one, folder, written = chinese_study
    earlier = read_study(folder / "prior")
    assert earlier.study_uid == written["prior_study"] != written["study"]
    assert earlier.study_date == f"{before(one).taken:%Y%m%d}" < f"{one.taken:%Y%m%d}"
    assert [v.certificate is not None for v in choose_series(earlier, "chest_ct") if v.chosen] == [True]


def test_a_caption_names_what_was_found():
    one = replace(
        examined(5), findings=(Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=8.0),)
    )
    assert caption(one).endswith(": nodule, left upper lobe, 8 mm")
    assert caption(replace(one, findings=())).endswith(": no finding")


def test_a_sheet_shows_the_smallest_lesion_that_has_a_place():
    small = lesion("lung_nodule", Side.LEFT, "upper_lobe", 5.0, ((0, 0, 0), (5, 5, 5)))
    everywhere = lesion("emphysema", box_mm=((0, 0, 0), (1, 1, 1)))
    assert chosen([everywhere, lesion("pleural_effusion", Side.LEFT), small]) is small
    assert chosen([everywhere]) is everywhere
    assert chosen([]) is None
