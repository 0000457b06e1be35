"""Lesions and decoys of the chest: what is stated of them is what is drawn."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from mla_med.errors import ConfigError
from mla_med.phantom.chest.anatomy import Canvas, Chest, draw_chest, make_chest
from mla_med.phantom.chest.decoys import choose_decoys
from mla_med.phantom.chest.lesions import CHANGING, MAKERS, plant, regrow
from mla_med.phantom.chest.room import LOBES
from mla_med.phantom.lesion import parts_of
from mla_med.phantom.patient import make_patient
from mla_med.phantom.shapes import Grid
from mla_med.report.schema import CHEST_CT
from mla_med.types import Presence, Side

CODES = tuple(CHEST_CT)
SEEDS = (3, 4, 0, 7)
LOBAR = [code for code in CODES if CHEST_CT[code].places[0] == LOBES[0]]
SIZED = [code for code in CODES if CHEST_CT[code].has_size]


@cache
def chest_of(seed: int) -> Chest:
    return make_chest(make_patient(seed))


@cache
def planted(code: str, seed: int = 3, draw: int = 1):
    (lesion,) = plant(chest_of(seed), [code], np.random.default_rng([seed, draw]))
    return lesion


def grid_around(box_mm, spacing_mm: float, margin_mm: float) -> Grid:
    low, high = np.asarray(box_mm[0]) - margin_mm, np.asarray(box_mm[1]) + margin_mm
    i, j, k = (int(n) for n in np.ceil((high - low) / spacing_mm) + 1)
    x, y, z = (float(v) for v in low)
    return Grid((i, j, k), (spacing_mm,) * 3, (x, y, z))


def axial_diameters(inside: np.ndarray, spacing_mm: float) -> tuple[float, float]:
    """Largest diameter in an axial slice of one object, and across it, from voxels."""
    best = (0.0, 0.0)
    for k in range(inside.shape[2]):
        edge = inside[:, :, k] & ~ndimage.binary_erosion(inside[:, :, k])
        points = np.argwhere(edge) * spacing_mm
        if len(points) < 3:
            continue
        far = np.linalg.norm(points[:, None] - points, axis=2)
        a, b = np.unravel_index(far.argmax(), far.shape)
        if far[a, b] + spacing_mm > best[0]:
            way = (points[a] - points[b]) / far[a, b]
            across = points @ np.array([-way[1], way[0]])
            best = (far[a, b] + spacing_mm, across.max() - across.min() + spacing_mm)
    return best


def test_every_code_of_the_schema_can_be_planted_and_no_other():
    assert set(MAKERS) == set(CHEST_CT)
    with pytest.raises(ConfigError, match="No lesion 'gallstones' in a chest; there are: "):
        plant(chest_of(3), ["gallstones"], np.random.default_rng(0))


def test_what_is_planted_is_legal_in_the_schema():
    for seed in SEEDS[:3]:
        lesions = plant(chest_of(seed), CODES, np.random.default_rng(seed))
        assert sorted(x.finding.code for x in lesions) == sorted(CODES)
        for lesion in lesions:
            finding, kind = lesion.finding, CHEST_CT[lesion.finding.code]
            assert finding.presence is Presence.PRESENT
            assert (finding.side, finding.site) in kind.places, finding
            assert (finding.size_mm is not None) == kind.has_size, finding
            assert finding.count is None or (kind.countable and finding.count > 1), finding
            assert (lesion.regrown is not None) == kind.has_size
            low, high = np.asarray(lesion.box_mm)
            assert (low < high).all(), finding
            assert np.abs(lesion.box_mm).max() < 330, finding


def test_sizes_are_what_the_words_mean():
    for seed in SEEDS[:3]:
        for draw in range(5):
            assert 4 <= planted("lung_nodule", seed, draw).finding.size_mm <= 30
        assert 31 <= planted("lung_mass", seed).finding.size_mm <= 70
        assert 10 <= planted("lymphadenopathy", seed).finding.size_mm <= 30
        assert 45 <= planted("aortic_aneurysm", seed).finding.size_mm <= 70


@pytest.mark.parametrize("code", LOBAR)
def test_a_lesion_lies_in_the_lobe_that_its_finding_states(code):
    for seed in (3, 4):
        lesion, chest = planted(code, seed), chest_of(seed)
        grid = grid_around(lesion.box_mm, 2.0, 2.0)
        canvas = Canvas(np.full(grid.shape, -850.0, np.float32), grid, chest)
        lesion.paint(canvas)
        changed = np.abs(canvas.hu + 850) > 60
        points = np.argwhere(changed) * 2.0 + grid.origin_mm
        lobes = np.asarray(chest.lobe_of(points))
        share = (lobes == LOBES.index((lesion.finding.side, lesion.finding.site))).mean()
        assert share > 0.9, (seed, share)


BACKGROUND = {
    "lung_nodule": -850.0, "lung_mass": -850.0, "lymphadenopathy": -100.0, "thyroid_nodule": 160.0,
    "adrenal_lesion": -100.0, "liver_lesion": 57.0,
}  # fmt: skip


@pytest.mark.parametrize("code", BACKGROUND)
def test_the_stated_size_can_be_measured_on_a_drawing_without_noise(code):
    for seed in (3, 4):
        lesion = planted(code, seed)
        for seen in (lesion, regrow(lesion, 0.7)):
            size = seen.finding.size_mm
            spacing = max(0.4, size / 40)
            grid = grid_around(seen.box_mm, spacing, 2.0)
            canvas = Canvas(np.full(grid.shape, BACKGROUND[code], np.float32), grid, chest_of(seed))
            seen.paint(canvas)
            change = np.abs(canvas.hu - BACKGROUND[code])
            faint = code == "lung_nodule" and np.median(change[change > 100]) < 500  # part-solid
            inside = change > (130 if faint else 0.5 * np.median(change[change > 0.3 * change.max()]))
            parts, number = ndimage.label(inside)
            measured = [axial_diameters(parts == n + 1, spacing) for n in range(number)]
            largest = max(m[1] if code == "lymphadenopathy" else m[0] for m in measured)
            assert largest == pytest.approx(size, abs=max(1.0, 1.3 * spacing)), (seed, measured)


def test_what_has_a_size_lies_where_every_scan_of_the_chest_reaches():
    for seed in SEEDS:
        low, high = chest_of(seed).z_range_mm
        for code in ("thyroid_nodule", "adrenal_lesion", "liver_lesion", "lymphadenopathy"):
            box = planted(code, seed).box_mm
            assert box[0][2] > low - 26, (seed, code)
            assert box[1][2] < high + 14, (seed, code)


def test_the_diameter_of_an_aneurysm_can_be_measured():
    chest, lesion = chest_of(3), planted("aortic_aneurysm")
    _, radii = lesion.change(chest).ascending_aorta
    assert 2 * radii.max() == pytest.approx(lesion.finding.size_mm, abs=0.3)
    assert 2 * chest.ascending_aorta[1].max() < 45


@pytest.mark.parametrize("code", CODES)
def test_the_box_holds_what_the_lesion_changes(code):
    lesion, chest = planted(code), chest_of(3)
    size = float(np.max(np.subtract(lesion.box_mm[1], lesion.box_mm[0])))
    spacing = 3.0 if size < 120 else 6.0
    grid = grid_around(lesion.box_mm, spacing, 18.0)
    before = draw_chest(lesion.change(chest) if code not in CHANGING[1:] else chest, (), grid)
    change = np.abs(draw_chest(chest, (lesion,), grid) - before)
    assert change.max() > 60
    where = np.argwhere(change > 40) * spacing + grid.origin_mm
    low, high = np.asarray(lesion.box_mm)
    held = ((where > low - 1.5 * spacing) & (where < high + 1.5 * spacing)).all(axis=1).mean()
    # what an organ pushes aside lies beyond its box
    assert held > (0.75 if code in CHANGING[1:] else 0.995)


SCATTERED = ("coronary_calcification", "arterial_wall_calcification", "bronchiectasis")


@pytest.mark.parametrize("code", [*SCATTERED, "pulmonary_embolism", "lymphadenopathy", "liver_lesion"])
def test_what_lies_in_several_places_has_a_box_for_each(code):
    """All that it changes lies in one of them, none is empty, and together they leave room between."""
    for draw in range(1, 8):
        lesion, chest = planted(code, draw=draw), chest_of(3)
        if lesion.parts_mm:
            break
    assert len(lesion.parts_mm) > 1
    grid = grid_around(lesion.box_mm, 2.0, 8.0)
    change = np.abs(draw_chest(chest, (lesion,), grid) - draw_chest(lesion.change(chest), (), grid)) > 40
    x, y, z = np.meshgrid(*grid.axes(), indexing="ij", sparse=True)
    held = np.zeros(change.shape, bool)
    for low, high in np.asarray(lesion.parts_mm):
        inside = [(v > a - 3) & (v < b + 3) for v, a, b in zip((x, y, z), low, high, strict=True)]
        one = inside[0] & inside[1] & inside[2]
        assert (change & one).any()
        held |= one
    assert (change & held).sum() > 0.97 * change.sum()
    corners = np.asarray(lesion.parts_mm)
    np.testing.assert_allclose([corners[:, 0].min(0), corners[:, 1].max(0)], lesion.box_mm)
    assert np.prod(corners[:, 1] - corners[:, 0], axis=1).sum() < 0.7 * np.prod(np.ptp(lesion.box_mm, axis=0))


def test_boxes_with_a_gap_are_parts_and_those_that_touch_are_one():
    def cube(x: float, edge: float = 4.0):
        return (x, 0.0, 0.0), (x + edge, edge, edge)

    assert parts_of([cube(0)]) == parts_of([cube(0), cube(5), cube(10)]) == ()
    touching = ((0.0, 0.0, 0.0), (9.0, 4.0, 4.0))
    assert parts_of([cube(0), cube(20, 6.0), cube(5)]) == (cube(20, 6.0), touching)


@pytest.mark.parametrize("code", SIZED)
def test_a_lesion_grows_and_shrinks_at_its_place(code):
    lesion = planted(code)
    for factor in (0.75, 1.4):
        other = regrow(lesion, factor)
        assert other.finding.size_mm == round(other.finding.size_mm)
        assert (other.finding.size_mm - lesion.finding.size_mm) * (factor - 1) > 0
        assert (other.finding.side, other.finding.site) == (lesion.finding.side, lesion.finding.site)
        first, second = np.asarray(lesion.box_mm), np.asarray(other.box_mm)
        assert np.abs(first.mean(0) - second.mean(0)).max() < 10
        assert (np.prod(second[1] - second[0]) - np.prod(first[1] - first[0])) * (factor - 1) > 0


def test_a_lesion_without_a_size_stays_as_it_is():
    lesion = planted("consolidation")
    assert regrow(lesion, 1.5) is lesion


def test_lesions_of_the_lung_keep_apart():
    lesions = plant(chest_of(4), ["lung_nodule"] * 3 + ["lung_mass"], np.random.default_rng(1))
    centres = [np.mean(x.box_mm, axis=0) for x in lesions]
    for n, a in enumerate(lesions):
        for m, b in enumerate(lesions[:n]):
            apart = np.linalg.norm(centres[n] - centres[m])
            assert apart > 0.45 * (a.finding.size_mm + b.finding.size_mm)


def test_heart_failure_fills_both_pleural_cavities_more_often():
    failing = [s for s in range(400) if "heart_failure" in make_patient(s).history][:3]
    both = sum(
        plant(chest_of(failing[n % 3]), ["pleural_effusion"], np.random.default_rng(n))[0].finding.side
        is Side.BILATERAL
        for n in range(16)
    )
    assert both >= 6


def test_the_same_seed_gives_the_same_lesions_and_decoys():
    chest = chest_of(4)
    grid = Grid((34, 28, 25), (12.0,) * 3, (-198.0, -162.0, -144.0))
    drawn = []
    for _ in range(2):
        rng = np.random.default_rng(11)
        lesions = plant(chest, ["consolidation", "lung_nodule", "emphysema"], rng)
        drawn.append(draw_chest(chest, lesions, grid, choose_decoys(chest, rng)))
    assert np.array_equal(drawn[0], drawn[1])


def test_decoys_are_drawn_and_state_nothing():
    kinds = set()
    for draw in range(12):
        decoys = choose_decoys(chest_of(4), np.random.default_rng(draw))
        assert len(decoys) <= 4
        for decoy in decoys:
            if decoy.kind in kinds:
                continue
            kinds.add(decoy.kind)
            assert not hasattr(decoy, "finding")
            grid = grid_around(decoy.box_mm, 2.0, 4.0)
            change = np.abs(draw_chest(chest_of(4), (), grid, (decoy,)) - draw_chest(chest_of(4), (), grid))
            assert change.max() > 40, decoy.kind
    assert len(kinds) >= 8
