"""The phantom: what is planted is there, at its place, the same for the same seed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess

import numpy as np
import pytest

from mla_med.dicom.select import choose_series
from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.phantom.plain.anatomy import Grid, make_person, render_anatomy
from mla_med.phantom.plain.cohort import make_phantom, scan_phantom, truth_of, write_phantom
from mla_med.phantom.plain.lesions import PREVALENCE, plant, render_person
from mla_med.phantom.plain.scanner import uid
from mla_med.report.parse import parse_report
from mla_med.report.render import report_text
from mla_med.types import Presence, Side

GRID = Grid.centred((112, 84, 100), (3.4, 3.4, 3.4))


def _box(grid: Grid, box_mm):
    index = [
        slice(max(0, round((lo - o) / s)), round((hi - o) / s) + 1)
        for lo, hi, o, s in zip(*box_mm, grid.origin_mm, grid.spacing_mm, strict=True)
    ]
    return tuple(index)


@pytest.mark.parametrize("code", list(PREVALENCE))
def test_a_planted_finding_changes_the_voxels_in_its_box_most(code):
    person = make_person(5)
    (lesion,) = plant(person, (code,), np.random.default_rng(3))
    change = np.abs(render_person(person, (lesion,), GRID) - render_person(person, (), GRID))
    inside = change[_box(GRID, lesion.box_mm)].sum()
    assert inside > 0.6 * change.sum() > 0
    assert lesion.finding.presence is Presence.PRESENT


def test_the_side_of_a_lesion_is_where_its_voxels_are():
    for seed in range(12):
        person = make_person(seed)
        (lesion,) = plant(person, ("lung_mass",), np.random.default_rng(seed))
        middle = (lesion.box_mm[0][0] + lesion.box_mm[1][0]) / 2
        assert (middle > 0) == (lesion.finding.side is Side.RIGHT)


def test_a_mass_has_the_diameter_that_its_report_states():
    person = make_person(8)
    (lesion,) = plant(person, ("lung_mass",), np.random.default_rng(8))
    grid = Grid.centred((180, 140, 160), (2.0, 2.0, 2.0))
    change = render_person(person, (lesion,), grid) - render_person(person, (), grid)
    volume_mm3 = (change > 400).sum() * 8.0
    diameter = 2 * (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)
    assert diameter == pytest.approx(lesion.finding.size_mm, rel=0.12)


def test_tissues_have_the_hu_of_tissues():
    hu, lung = render_anatomy(make_person(2), GRID)
    assert -900 < np.median(hu[lung > 0.99]) < -780
    assert hu.min() >= -1001
    assert hu.max() > 300
    heart = make_person(2).heart_centre
    i, j, k = (round((v - o) / s) for v, o, s in zip(heart, GRID.origin_mm, GRID.spacing_mm, strict=True))
    assert hu[i, j, k] == pytest.approx(42, abs=5)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    digests = []
    for name in ("a", "b"):
        folder = write_phantom(make_phantom(4), tmp_path / name, (6.0, 6.0, 12.0), 64)
        files = sorted(folder.iterdir())
        digests.append([hashlib.sha256(f.read_bytes()).hexdigest() for f in files])
    assert digests[0] == digests[1]
    assert len(digests[0]) > 15


def test_two_seeds_are_two_people():
    assert make_person(1) != make_person(2)
    assert uid("study", 1) != uid("study", 2)


def test_the_report_states_exactly_what_was_planted():
    for seed in range(50):
        phantom = make_phantom(seed)
        parsed = parse_report(report_text(phantom.report))
        present = [f for f in parsed.findings if f.presence is Presence.PRESENT]
        assert present == [lesion.finding for lesion in phantom.lesions]
        assert len(truth_of(phantom)["findings"]) == len(present)


def test_the_series_is_read_back_voxel_for_voxel(tmp_path):
    phantom = make_phantom(11, ("lung_mass",))
    spacing = (4.0, 4.0, 6.0)
    hu, grid, _ = scan_phantom(phantom, spacing, 96)
    study = read_study(write_phantom(phantom, tmp_path, spacing, 96))
    (verdict,) = choose_series(study)
    volume = read_volume(verdict.series)
    # the reader keeps columns to the left and rows to the back; the phantom's grid is RAS
    assert np.array_equal(volume.voxels[::-1, ::-1], hu)
    corner = volume.affine @ [*(n - 1 for n in hu.shape[:2]), 0, 1]
    assert corner[:3] == pytest.approx(grid.origin_mm, abs=1e-3)
    assert study.context.indication == phantom.context.indication
    assert study.context.age_years == phantom.context.age_years


def test_the_headers_pass_dciodvfy(tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    folder = write_phantom(make_phantom(3), tmp_path, (8.0, 8.0, 20.0), 48)
    first = sorted(folder.iterdir())[0]
    printed = subprocess.run(["dciodvfy", first], capture_output=True, text=True).stderr
    assert "CTImage" in printed
    assert "Error" not in printed
