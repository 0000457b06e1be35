"""The anatomy of the chest: what is where, in which HU, and what lesions can change."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from mla_med.phantom.chest.anatomy import Canvas, Chest, draw_chest, make_chest
from mla_med.phantom.chest.lungs import LOBES
from mla_med.phantom.chest.measure import tissue_statistics
from mla_med.phantom.lesion import Decoy
from mla_med.phantom.patient import Patient, make_patient
from mla_med.phantom.shapes import Grid
from mla_med.types import Sex, Side

RIGHT, LEFT = Side.RIGHT, Side.LEFT


@cache
def chest_of(seed: int) -> Chest:
    return replace(make_chest(make_patient(seed)), enhanced=False)


def whole(chest: Chest, mm: float = 4.0) -> Grid:
    low, high = chest.z_range_mm
    n = (int(400 / mm), int(330 / mm), int((high - low + 30) / mm))
    return Grid(n, (mm,) * 3, (-(n[0] - 1) * mm / 2, -(n[1] - 1) * mm / 2 - 5, low - 15))


@cache
def drawn(seed: int) -> np.ndarray:
    return draw_chest(chest_of(seed), (), whole(chest_of(seed)))


def cube(middle, mm: float = 1.5, n: int = 32) -> Grid:
    x, y, z = (float(v) - (n - 1) * mm / 2 for v in middle)
    return Grid((n,) * 3, (mm,) * 3, (x, y, z))


def nearest(hu: np.ndarray, grid: Grid, point) -> float:
    i, j, k = np.rint((np.asarray(point) - grid.origin_mm) / grid.spacing_mm).astype(int)
    return float(hu[i, j, k])


def test_same_seed_gives_the_same_voxels_and_another_seed_others():
    grid = cube((50, -20, 0))
    first = draw_chest(make_chest(make_patient(4)), (), grid)
    assert np.array_equal(first, draw_chest(make_chest(make_patient(4)), (), grid))
    assert not np.array_equal(first, draw_chest(make_chest(make_patient(5)), (), grid))


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_tissues_have_the_hu_of_life_without_contrast_medium(seed: int):
    chest = chest_of(seed)
    hu = tissue_statistics(chest, drawn(seed), whole(chest))
    for tissue, low, high in (
        ("lung", -900, -760), ("blood", 35, 50), ("fat", -115, -90), ("muscle", 45, 65), ("heart", 35, 55),
        ("liver", 25, 70), ("spleen", 40, 55), ("marrow", 60, 270), ("trachea", -1000, -960),
    ):  # fmt: skip
        assert low < hu[tissue][0] < high, tissue


def test_marrow_falls_with_age_and_lung_is_denser_at_the_back():
    marrow = []
    for age in (25, 85):
        chest = make_chest(Patient(3, Sex.MALE, age, 176, 25.0))
        grid = cube(chest.vertebrae["T8"], 2.0, 24)
        marrow.append(nearest(draw_chest(chest, (), grid), grid, chest.vertebrae["T8"]))
    assert marrow[0] > marrow[1] + 80
    chest, hu, grid = chest_of(1), drawn(1), whole(chest_of(1))
    y = np.broadcast_to(grid.axes()[1], hu.shape)
    z = np.broadcast_to(grid.axes()[2], hu.shape)
    inside = (_lung(chest, grid) > 0.99) & (np.abs(z) < 60)
    assert np.median(hu[inside & (y < -70)]) > np.median(hu[inside & (y > 30)]) + 25


def _lung(chest: Chest, grid: Grid) -> np.ndarray:
    return Canvas(np.zeros(grid.shape, np.float32), grid, chest).lung_fraction(grid.everywhere)


@pytest.mark.parametrize("seed", range(6))
def test_organs_lie_where_they_belong(seed: int):
    chest = chest_of(seed)
    mark = chest.landmarks
    assert mark["hilum_right"][0] > 20 > -20 > mark["hilum_left"][0]
    assert chest.lungs[RIGHT].at(mark["apex_right"][None] - (0, 0, 12)) < 0
    assert chest.lungs[LEFT].at(mark["apex_left"][None] - (0, 0, 12)) < 0
    assert chest.heart.at(mark["heart_centre"][None]) < -6
    assert chest.organs["liver"].at(mark["liver_centre"][None]) < -10
    assert chest.organs["spleen"].at(mark["spleen_centre"][None]) < -4
    # the heart lies more to the left, the liver to the right, the right dome is the higher one
    grid = whole(chest)
    box = grid.everywhere
    canvas = Canvas(np.zeros(grid.shape, np.float32), grid, chest)
    x = grid.axes()[0]
    heart = canvas.fraction(chest.heart, box)
    assert (heart * (x < 0)).sum() > 1.3 * (heart * (x > 0)).sum()
    assert mark["dome_right"][2] > mark["dome_left"][2]
    low, high = chest.z_range_mm
    assert 190 < high - low < 330
    # adults in inspiration: 3 to 8 litres
    litres = canvas.lung_fraction(box).sum() * 4**3 / 1e6
    assert 2.2 < litres < 8.0


def test_heart_is_less_than_half_as_wide_as_the_chest_unless_it_is_enlarged():
    for seed in range(6):
        chest = chest_of(seed)
        assert 0.36 < chest.cardiothoracic_ratio < 0.5
        assert replace(chest, heart_scale=1.35).cardiothoracic_ratio > 0.5


@pytest.mark.parametrize("seed", [1, 3])
def test_blood_and_nothing_else_runs_through_the_aorta(seed: int):
    chest, mm = chest_of(seed), 2.0
    grid = Grid((50, 75, 150), (mm,) * 3, (-55, -95, chest.z_range_mm[0] - 15))
    points = chest.aorta_line[0][3:]
    index = np.rint((points - grid.origin_mm) / mm).astype(int)
    index = index[np.all((index >= 0) & (index < grid.shape), axis=1)]
    assert len(index) > 40
    assert np.allclose(draw_chest(chest, (), grid)[tuple(index.T)], chest.blood_hu["arteries"], atol=1)


def test_every_voxel_of_the_body_is_filled_and_air_is_around_it():
    hu = drawn(2)
    assert np.isfinite(hu).all()
    assert hu.dtype == np.float32
    assert hu.min() >= -1000
    assert hu.max() < 1500
    assert np.median(hu[:2, :2]) == -1000
    # no air between the organs: beside lungs, airways, stomach and colon the body is denser than fat
    chest, grid = chest_of(2), whole(chest_of(2))
    box = grid.everywhere
    canvas = Canvas(hu, grid, chest)
    inside = canvas.fraction(chest.surface, box, -4.0) == 1
    for gas in (*chest.pleura.values(), chest.organs["stomach"], chest.organs["colon"]):
        inside &= canvas.fraction(gas, box, 4.0) == 0
    inside &= canvas.tubes([b for b in chest.airways if b.generation == 0], box, 4.0) == 0
    inside &= canvas.line(chest.oesophagus, box, 2.0) == 0
    assert (hu[inside] < -130).mean() < 0.001


def test_lobes_are_told_and_each_is_large():
    chest, grid = chest_of(1), whole(chest_of(1))
    lung = _lung(chest, grid) > 0.5
    box = grid.everywhere
    index = np.broadcast_to(Canvas(drawn(1), grid, chest).lobe_index(box), lung.shape)
    shares = np.bincount(index[lung], minlength=5) / lung.sum()
    # Yamada et al., 2020, upright: upper 20, middle 9, lower 25, left upper 22, left lower 22 %
    assert shares == pytest.approx([0.22, 0.10, 0.24, 0.22, 0.22], abs=0.09)
    points = np.argwhere(lung)[::200] * 4.0 + grid.origin_mm
    told = chest.lobe_of(points)
    assert [LOBES[i][0] for i in told] == [RIGHT if p[0] > 0 else LEFT for p in points]
    far = chest.fissure_distance_mm(points)
    assert far.min() >= 0
    assert far.max() > 30


def test_branches_lie_in_their_lobe_and_taper():
    chest = chest_of(3)
    for branches in (chest.arteries, chest.veins, chest.airways):
        small = [b for b in branches if b.generation >= 4]
        assert len(small) > 50
        ends = np.array([b.points[-1] for b in small])
        index = chest.lobe_of(ends)
        right = np.mean([LOBES[i] == (b.side, b.site) for i, b in zip(index, small, strict=True)])
        assert right > 0.95
        by_generation = [np.mean([b.radii[-1] for b in branches if b.generation == g]) for g in (1, 3, 5)]
        assert by_generation == sorted(by_generation, reverse=True)
        # nearly all reach into the lung
        lung = np.minimum(chest.pleura[RIGHT].at(ends), chest.pleura[LEFT].at(ends))
        assert (lung < 2).mean() > 0.97


def test_arteries_run_beside_their_bronchi():
    chest = chest_of(3)
    bronchi = [b for b in chest.airways if 2 <= b.generation <= 5]
    arteries = np.concatenate([b.points for b in chest.arteries])
    middles = np.array([b.points[1] for b in bronchi])
    near = np.linalg.norm(middles[:, None] - arteries, axis=2).min(axis=1)
    assert np.median(near) < 9


def test_effusion_lies_behind_and_pneumothorax_before_the_lung():
    chest = chest_of(1)
    grid = whole(chest)
    full = _lung(chest, grid).sum()
    fluid = replace(chest, effusion_mm=(40.0, 0.0))
    hu = draw_chest(fluid, (), grid)
    back = chest.frame.on_wall(140.0, -60.0, -8.0, 1.0)[0]
    assert nearest(hu, grid, back) == pytest.approx(6, abs=12)
    assert 0.6 * full < _lung(fluid, grid).sum() < 0.98 * full
    assert fluid.lungs[LEFT].values.shape == chest.lungs[LEFT].values.shape
    air = replace(chest, pneumothorax_mm=(0.0, 30.0))
    hu = draw_chest(air, (), grid)
    front = chest.frame.on_wall(35.0, 20.0, -8.0, -1.0)[0]
    assert nearest(hu, grid, front) < -980
    assert _lung(air, grid).sum() < 0.95 * full
    assert np.array_equal(air.cavities[1], chest.cavities[1])


def test_contrast_medium_brightens_blood():
    chest = chest_of(1)
    grid = cube(chest.aorta_line[0][2], 2.0, 24)
    plain = draw_chest(chest, (), grid)
    bright = draw_chest(replace(chest, enhanced=True), (), grid)
    point = chest.aorta_line[0][2]
    assert nearest(plain, grid, point) < 55
    assert nearest(bright, grid, point) > 150


def test_aneurysm_and_effusion_of_the_sac_and_hernia_are_drawn():
    chest = chest_of(1)
    _, radii = chest.ascending_aorta
    wide = replace(chest, aorta_scale=1.5).ascending_aorta[1].max() / radii.max()
    assert wide == pytest.approx(1.5, abs=0.03)
    sac = replace(chest, pericardial_mm=15.0)
    beside = chest.landmarks["heart_centre"]
    assert sac.pericardium.at(beside[None]) < chest.pericardium.at(beside[None]) - 5
    hernia = replace(chest, hernia_mm=50.0)
    assert chest.hernia is None
    assert hernia.hernia is not None
    points, widths = hernia.hernia
    assert 2 * widths.max() == pytest.approx(50, abs=1)
    grid = cube(points[-1] + (0, 0.3 * widths[-1], 0))
    assert draw_chest(hernia, (), grid).min() < -900 < -200 < draw_chest(chest, (), grid)[16, 16, 16]


def test_ribs_are_bone_along_their_middle_lines():
    chest, grid = chest_of(1), whole(chest_of(1))
    hu = drawn(1)
    for (side, rib), line in chest.ribs.items():
        assert (line[:, 0] > 0).mean() in ((1.0,) if side is RIGHT else (0.0,))
        if 3 <= rib <= 8:
            assert np.mean([nearest(hu, grid, p) for p in line[6:-4]]) > 120
    assert len(chest.ribs) == 24
    assert np.mean([nearest(hu, grid, p) for p in chest.sternum]) > 60


def test_women_have_breasts_and_heavy_people_more_fat():
    woman = make_chest(Patient(7, Sex.FEMALE, 45, 165, 24.0))
    man = make_chest(Patient(7, Sex.MALE, 45, 165, 24.0))
    heavy = make_chest(Patient(7, Sex.MALE, 45, 165, 40.0))
    assert set(woman.wall.breasts) == {RIGHT, LEFT}
    assert man.wall.breasts == {}
    nipple = woman.landmarks["nipple_right"]
    assert woman.surface.at(nipple[None]) == pytest.approx(0, abs=1.5)
    assert woman.depth.at(nipple[None]) > man.depth.at(man.landmarks["nipple_right"][None]) + 8
    assert heavy.habitus.fat_mm > man.habitus.fat_mm + 8


def test_a_cube_shows_what_the_whole_chest_shows():
    chest = chest_of(1)
    middle = chest.landmarks["hilum_right"]
    fine = draw_chest(chest, (), cube(middle, 1.0, 32))
    coarse = draw_chest(chest, (), cube(middle, 4.0, 8))
    averaged = fine.reshape(8, 4, 8, 4, 8, 4).mean(axis=(1, 3, 5))
    # soft edges and thin vessels leave a little
    assert np.corrcoef(averaged.ravel(), coarse.ravel())[0, 1] > 0.93
    assert abs(averaged.mean() - coarse.mean()) < 45


def test_changes_come_first_and_paint_comes_last():
    chest, seen = chest_of(1), []

    def paint(canvas: Canvas) -> None:
        seen.append(canvas.chest.heart_scale)
        box = canvas.box(((-5, -5, -5), (5, 5, 5)))
        canvas.hu[box] = 2000

    decoy = Decoy("test", ((-5, -5, -5), (5, 5, 5)), paint, lambda c: replace(c, heart_scale=1.2))
    hu = draw_chest(chest, (), cube((0, 0, 0)), (decoy,))
    assert seen == [1.2]
    assert hu[16, 16, 16] == 2000
    assert chest.heart_scale == 1.0


def test_drawing_is_fast_enough_for_a_thousand_patients():
    chest = chest_of(2)
    started = time.process_time()
    draw_chest(make_chest(make_patient(2)), (), whole(chest, 3.0))
    # 0.7 s on one core of the machine it was measured on
    assert time.process_time() - started < 4.0
