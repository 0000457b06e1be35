from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist

from mla_med.phantom.head import anatomy as heads
from mla_med.phantom.head.anatomy import Canvas, draw_head, make_head
from mla_med.phantom.head.blobs import crossings
from mla_med.phantom.head.decoys import KINDS, make_decoy
from mla_med.phantom.head.draw import draw_anatomy
from mla_med.phantom.head.lesions import FOLLOWING, choose_decoys, plant, regrow
from mla_med.phantom.lesion import Lesion
from mla_med.phantom.patient import PREVALENCE, make_patient
from mla_med.phantom.scanner import mr
from mla_med.phantom.scanner.makers import MR
from mla_med.phantom.shapes import Grid, point
from mla_med.report.schema import BRAIN_MR
from mla_med.types import Side

FOCAL = ("acute_infarct", "chronic_infarct", "haemorrhage", "brain_mass")
FULL = (*FOCAL, "extra_axial_collection", "aneurysm")
"""One patient with all of these serves several tests."""
TIMES = {kind: pulse.times for kind, pulse in MR["siemens"].pulses.items()}


@cache
def head(seed: int, *known: str):
    """A head; `known`: the history of its patient, instead of his own."""
    patient = make_patient(seed)
    return make_head(replace(patient, history=frozenset(known)) if known else patient)


@cache
def planted(seed: int, *codes: str, known: tuple[str, ...] = ()):
    return plant(head(seed, *known), codes, np.random.default_rng([seed, 5]))


def one(lesions, code: str) -> Lesion:
    return next(lesion for lesion in lesions if lesion.finding.code == code)


def changed(anatomy, lesions):
    for lesion in lesions:
        anatomy = lesion.change(anatomy)
    return anatomy


def around(lesion: Lesion, spacing: float = 1.5, margin: float = 10.0) -> Grid:
    """A grid over the box of a lesion."""
    low, high = (np.asarray(corner) for corner in lesion.box_mm)
    i, j, k = (int(n) for n in np.ceil((high - low + 2 * margin) / spacing) + 1)
    return Grid((i, j, k), (spacing,) * 3, point(low - margin))


def signal(tissues, kind: str) -> np.ndarray:
    return mr.signal(tissues, kind, TIMES[kind])


def drawn(anatomy, lesions, lesion, spacing: float = 1.5):
    """-> maps before and after this lesion is painted, and how much it changed of each voxel."""
    grid = around(lesion, spacing)
    anatomy = changed(anatomy, lesions)
    before, after = draw_anatomy(anatomy, grid), draw_anatomy(anatomy, grid)
    lesion.paint(Canvas(anatomy, grid, after))
    moved = np.zeros(grid.shape, bool)
    for name in ("pd", "t1_ms", "t2_ms", "adc", "water", "blood", "uptake"):
        a, b = getattr(before, name), getattr(after, name)
        moved |= np.abs(a - b) > 0.08 * np.maximum(np.abs(a), 0.5)
    return grid, before, after, moved & (after.pd + after.water + after.blood > 0.1)


def core(grid: Grid, lesion: Lesion, share: float = 0.3) -> np.ndarray:
    """The voxels near the middle of its box."""
    low, high = (np.asarray(corner) for corner in lesion.box_mm)
    x, y, z = grid.axes()
    radii = share * (high - low) / 2
    near = [(v - m) / r for v, m, r in zip((x, y, z), (low + high) / 2, radii, strict=True)]
    return near[0] ** 2 + near[1] ** 2 + near[2] ** 2 <= 1


@pytest.mark.parametrize(("seed", "codes"), [(0, tuple(BRAIN_MR)), (3, FULL)])
def test_every_finding_is_legal_and_those_asked_for_are_planted(seed, codes):
    lesions = planted(seed, *codes)
    assert {lesion.finding.code for lesion in lesions} >= set(codes)
    for lesion in lesions:
        kind, finding = BRAIN_MR[lesion.finding.code], lesion.finding
        assert (finding.side, finding.site) in kind.places
        assert (finding.size_mm is not None) == kind.has_size
        assert finding.count is None or (kind.countable and finding.count > 1)
        low, high = np.asarray(lesion.box_mm)
        assert (low < high).all()
        assert np.abs((low, high)).max() < 110


@pytest.mark.parametrize("code", ["atrophy", "aneurysm", "microbleeds", "hydrocephalus"])
def test_a_finding_can_be_planted_in_many_patients(code):
    for seed in range(10):
        lesions = plant(head(seed), (code,), np.random.default_rng(seed))
        assert {lesion.finding.code for lesion in lesions} == {code}


def test_the_same_seed_plants_the_same_and_another_seed_does_not():
    def said(codes: tuple[str, ...], seed: int):
        lesions = plant(head(1), codes, np.random.default_rng([1, seed]))
        return [(lesion.finding, lesion.box_mm) for lesion in lesions]

    codes = ("haemorrhage", "white_matter_hyperintensity", "microbleeds")
    assert said(codes, 5) == said(codes, 5)
    assert said(("microbleeds",), 5) != said(("microbleeds",), 6)


def test_what_follows_from_another_finding_is_never_planted_without_a_cause():
    for code in FOLLOWING:
        assert code not in PREVALENCE["brain_mr"]
    assert one(planted(2, "midline_shift"), "brain_mass").finding.size_mm > 24


def test_a_shift_is_away_from_the_mass_and_as_large_as_stated():
    lesions = planted(2, "midline_shift")
    mass, shift = one(lesions, "brain_mass"), one(lesions, "midline_shift")
    assert shift.finding.side is not mass.finding.side
    anatomy = changed(head(2), lesions)
    there, middle = anatomy.landmarks["septum"], head(2).landmarks["septum"]
    moved = (there - middle)[0]
    assert (moved > 0) == (shift.finding.side is Side.RIGHT)
    assert abs(moved) == pytest.approx(shift.finding.size_mm, abs=1.0)


def test_an_acute_infarct_is_bright_on_diffusion_and_dark_on_the_adc_map():
    lesions = planted(0, "acute_infarct")
    lesion = one(lesions, "acute_infarct")
    _, before, after, moved = drawn(head(0), lesions, lesion)
    core = moved & (after.brain > 0.95)
    assert signal(after, "DWI")[core].mean() > 1.5 * signal(before, "DWI")[core].mean()
    assert after.adc[core].mean() < 0.65 * before.adc[core].mean()
    for kind in ("T2", "FLAIR"):
        assert 1.1 < (signal(after, kind)[core] / signal(before, kind)[core]).mean() < 2.5


def test_a_chronic_infarct_is_fluid_with_a_bright_rim_on_flair():
    lesions = planted(4, "chronic_infarct")
    lesion = one(lesions, "chronic_infarct")
    _, before, after, moved = drawn(head(4), lesions, lesion)
    flair, was = signal(after, "FLAIR"), signal(before, "FLAIR")
    core = moved & (after.water > 0.9) & (before.brain > 0.9)
    rim = moved & (after.water < 0.1) & (after.brain > 0.9)
    assert flair[core].mean() < 0.5 * was[core].mean()
    assert flair[rim].mean() > 1.15 * was[rim].mean()


@pytest.mark.parametrize("code", [*FOCAL, "aneurysm"])
def test_size_and_box_are_those_of_what_is_painted(code):
    lesions = planted(3, *FULL)
    lesion = one(lesions, code)
    grid, _, _, moved = drawn(head(3), lesions, lesion, 1.25)
    where = np.argwhere(moved) * np.asarray(grid.spacing_mm) + grid.origin_mm
    low, high = np.asarray(lesion.box_mm)
    # half a voxel, and the soft edge
    assert (where.min(0) - low > -1.9).all()
    assert (high - where.max(0) > -1.9).all()
    assert (where.min(0) - low < 3.5).all()
    assert (high - where.max(0) < 3.5).all()
    assert pdist(where[:: max(1, len(where) // 2000)]).max() == pytest.approx(lesion.finding.size_mm, abs=3.5)


def test_blood_is_void_on_susceptibility_images_and_oedema_surrounds_it():
    lesions = planted(1, "haemorrhage")
    lesion = one(lesions, "haemorrhage")
    _, before, after, moved = drawn(head(1), lesions, lesion)
    assert signal(after, "SWI")[moved].mean() < 0.3 * signal(before, "SWI")[moved].mean()
    oedema = one(lesions, "oedema")
    _, before, after, moved = drawn(head(1), lesions, oedema)
    wet = moved & (before.white > 0.95)
    assert signal(after, "FLAIR")[wet].mean() > 1.25 * signal(before, "FLAIR")[wet].mean()
    assert after.adc[wet].mean() > 1.3 * before.adc[wet].mean()
    assert after.t2_ms[before.grey > 0.99] == pytest.approx(before.t2_ms[before.grey > 0.99], rel=0.05)


def test_microbleeds_are_seen_on_susceptibility_images_alone_and_as_many_as_stated():
    lesions = planted(0, "microbleeds")
    grid = around(lesions[0], 2.0, 4.0)
    with_, without = draw_head(head(0), lesions, grid), draw_anatomy(head(0), grid)
    dark = signal(with_, "SWI") < 0.6 * signal(without, "SWI")
    assert ndimage.label(dark, np.ones((3, 3, 3)))[1] == (lesions[0].finding.count or 1)
    brain = without.brain > 0.9
    assert (signal(with_, "T2")[brain] / signal(without, "T2")[brain]).min() > 0.3


def test_every_microbleed_and_every_patch_of_white_matter_has_its_box():
    lesions = planted(0, "microbleeds", "white_matter_hyperintensity")
    for code in ("microbleeds", "white_matter_hyperintensity"):
        lesion = one(lesions, code)
        assert len(lesion.parts_mm) > 1
        grid, _, _, moved = drawn(head(0), lesions, lesion)
        x, y, z = np.meshgrid(*grid.axes(), indexing="ij", sparse=True)
        held = np.zeros(moved.shape, bool)
        for low, high in np.asarray(lesion.parts_mm):
            inside = [(v > a - 2) & (v < b + 2) for v, a, b in zip((x, y, z), low, high, strict=True)]
            held |= inside[0] & inside[1] & inside[2]
        assert moved.any()
        assert (moved & held).sum() > 0.97 * moved.sum()


def test_a_mass_enhances_where_enhancement_is_stated_and_only_there():
    lesions = planted(2, "midline_shift")
    mass, ring = one(lesions, "brain_mass"), one(lesions, "abnormal_enhancement")
    assert (ring.finding.side, ring.finding.site) == (mass.finding.side, mass.finding.site)
    grid = around(mass)
    plain = draw_head(head(2), [lesion for lesion in lesions if lesion is not ring], grid)
    enhanced = draw_head(head(2), lesions, grid)
    brighter = signal(enhanced, "T1 contrast") > 1.3 * signal(plain, "T1 contrast")
    assert brighter.any()
    np.testing.assert_array_equal(signal(enhanced, "T1"), signal(plain, "T1"))
    assert plain.uptake[brighter].max() < 0.1


def test_an_abscess_holds_pus_that_restricts_diffusion():
    infected = head(2, "infection")
    lesion = one(plant(infected, ("brain_mass",), np.random.default_rng(6)), "brain_mass")
    grid, before, after, _ = drawn(infected, (), lesion, 2.0)
    middle = core(grid, lesion)
    assert after.adc[middle].max() < 0.5
    assert signal(after, "DWI")[middle].min() > 1.5 * np.median(signal(before, "DWI")[middle])


def test_a_collection_is_as_thick_as_stated_and_stays_on_its_side():
    lesions = planted(3, *FULL)
    lesion = one(lesions, "extra_axial_collection")
    grid, before, _, moved = drawn(head(3), lesions, lesion)
    sign = 1 if lesion.finding.side is Side.RIGHT else -1
    where = np.argwhere(moved) * np.asarray(grid.spacing_mm) + grid.origin_mm
    assert (sign * where[:, 0]).min() > 0
    cranium = head(3).cranium
    depth, _ = KDTree(crossings(cranium.lattice.grid, cranium.values)).query(where)
    assert np.percentile(depth, 99.9) == pytest.approx(lesion.finding.size_mm, abs=1.2)
    # the brain gives way
    assert before.brain[moved].mean() < 0.15


def test_ventricles_grow_in_hydrocephalus_and_sulci_in_atrophy():
    grid = heads.training_grid()
    coarse = Grid((48, 56, 48), (4.0,) * 3, grid.origin_mm)
    plain = draw_anatomy(head(6), coarse)
    inner = np.linalg.norm(np.stack(np.broadcast_arrays(*coarse.axes())), axis=0) < 36
    wide = draw_head(head(6), planted(6, "hydrocephalus"), coarse)
    thin = draw_head(head(6), planted(6, "atrophy"), coarse)
    assert wide.water[inner].sum() > 1.5 * plain.water[inner].sum()
    assert thin.water[~inner].sum() > 1.3 * plain.water[~inner].sum()
    assert thin.brain.sum() < 0.93 * plain.brain.sum()


def test_hyperintensities_are_bright_on_flair_in_white_matter_alone():
    lesions = planted(1, "white_matter_hyperintensity")
    grid = around(lesions[0], 2.0, 4.0)
    with_, without = draw_head(head(1), lesions, grid), draw_anatomy(head(1), grid)
    ratio = signal(with_, "FLAIR") / np.maximum(signal(without, "FLAIR"), 0.02)
    assert (ratio[without.white > 0.9] > 1.3).sum() > 200
    assert ratio[without.grey > 0.98].max() < 1.2


def test_demyelination_makes_plaques_at_the_ventricles():
    young = replace(make_patient(1), age_years=30, history=frozenset({"demyelination"}))
    anatomy = make_head(young)
    (lesion,) = plant(anatomy, ("white_matter_hyperintensity",), np.random.default_rng(3))
    grid = around(lesion, 2.0, 4.0)
    maps = draw_head(anatomy, (lesion,), grid)
    bright = np.argwhere((maps.t2_ms > 120) & (maps.white > 0.8)) * 2.0 + grid.origin_mm
    assert np.median(anatomy.distance("ventricle", bright)) < 12


def test_a_diseased_sinus_is_filled_and_the_other_is_not():
    for seed in range(3):
        lesions = plant(head(seed), ("sinus_disease",), np.random.default_rng(seed))
        places = {(lesion.finding.side, lesion.finding.site) for lesion in lesions}
        for lesion in lesions:
            low, high = np.asarray(lesion.box_mm)
            centre = head(seed).landmarks[f"{lesion.finding.site}_{lesion.finding.side}"]
            assert (low - 8 < centre).all()
            assert (centre < high + 8).all()
        if len(places) == 1:
            grid = around(lesions[0], 2.0)
            maps = draw_head(head(seed), lesions, grid)
            assert (maps.t2_ms[maps.pd > 0.5] > 150).sum() > 20
            return
    pytest.fail("every sinus was diseased on both sides")


def test_an_aneurysm_is_a_void_beside_its_artery():
    lesions = planted(3, *FULL)
    lesion = one(lesions, "aneurysm")
    artery = {"middle_cerebral_artery": "mca", "internal_carotid_artery": "ica"}[lesion.finding.site]
    start = changed(head(3), lesions).landmarks[f"{artery}_{lesion.finding.side}"]
    centre = np.mean(np.asarray(lesion.box_mm), axis=0)
    assert np.linalg.norm(centre - start) < lesion.finding.size_mm
    grid, _, after, _ = drawn(head(3), lesions, lesion, 1.0)
    assert signal(after, "T2")[core(grid, lesion, 0.5)].max() < 0.1


def test_regrowing_scales_the_size_at_the_same_place():
    for code in FULL:
        lesion = one(planted(3, *FULL), code)
        small = regrow(lesion, 0.6)
        assert small.finding.size_mm == pytest.approx(0.6 * lesion.finding.size_mm, rel=0.15, abs=1.0)
        assert (small.finding.side, small.finding.site) == (lesion.finding.side, lesion.finding.site)
        assert (np.asarray(small.box_mm[0]) >= np.asarray(lesion.box_mm[0]) - 3).all()
        assert (np.asarray(small.box_mm[1]) <= np.asarray(lesion.box_mm[1]) + 3).all()
    shift = one(planted(2, "midline_shift"), "midline_shift")
    assert regrow(shift, 0.5).finding.size_mm == pytest.approx(0.5 * shift.finding.size_mm, abs=0.5)
    hydrocephalus = planted(6, "hydrocephalus")[0]
    assert regrow(hydrocephalus, 0.5) is hydrocephalus


def test_focal_lesions_keep_apart():
    focal = [one(planted(3, *FULL), code) for code in FULL]
    for first in focal:
        for second in focal:
            if first is not second:
                a, b = (np.mean(np.asarray(lesion.box_mm), axis=0) for lesion in (first, second))
                assert np.linalg.norm(a - b) > 0.35 * (first.finding.size_mm + second.finding.size_mm)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoy_changes_the_picture_within_its_box_and_states_nothing(kind):
    decoy = make_decoy(head(1), kind, np.random.default_rng(2))
    assert decoy.kind == kind
    low, high = np.asarray(decoy.box_mm)
    grid = Grid((48, 56, 48), (4.0,) * 3, heads.training_grid().origin_mm)
    plain, with_ = draw_anatomy(head(1), grid), draw_head(head(1), (), grid, (decoy,))
    moved = np.abs(with_.t2_ms - plain.t2_ms) + 200 * np.abs(with_.adc - plain.adc) > 6
    moved |= np.abs(with_.water - plain.water) > 0.1
    where = np.argwhere(moved) * 4.0 + grid.origin_mm
    assert len(where)
    within = ((where >= low - 6) & (where <= high + 6)).all(axis=1)
    assert within.mean() > 0.9


def test_decoys_are_few_different_and_the_same_for_the_same_seed():
    drawn_ = [choose_decoys(head(seed % 3), np.random.default_rng(seed)) for seed in range(60)]
    assert max(len(decoys) for decoys in drawn_) == 3
    assert {decoy.kind for decoys in drawn_ for decoy in decoys} == set(KINDS)
    for decoys in drawn_:
        assert len({decoy.kind for decoy in decoys}) == len(decoys)
    again = choose_decoys(head(2), np.random.default_rng(5))
    assert [(d.kind, d.box_mm) for d in drawn_[5]] == [(d.kind, d.box_mm) for d in again]
