"""Heads that do not exist: their anatomy, and what sequences and scanners show of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mla_med.errors import ConfigError
from mla_med.phantom.head.anatomy import Head, Push, draw_head, make_head, training_grid
from mla_med.phantom.head.tissues import TISSUES, Canvas, Tissue, Tissues
from mla_med.phantom.lattice import Field, Lattice
from mla_med.phantom.lesion import Decoy, Lesion
from mla_med.phantom.patient import make_patient
from mla_med.phantom.scanner import mr
from mla_med.phantom.scanner.makers import MR
from mla_med.phantom.scanner.makers.form import Times
from mla_med.phantom.scanner.mr_signal import mprage, train_of
from mla_med.phantom.shapes import Grid
from mla_med.report.schema import BRAIN_MR
from mla_med.types import Finding, Sex, Side

COARSE = Grid.centred((64, 74, 64), (3.0, 3.0, 3.0))
SLICE = Grid((96, 112, 2), (2.0, 2.0, 2.0), (-95.0, -111.0, 11.0))


@pytest.fixture(scope="module")
def head() -> Head:
    return make_head(replace(make_patient(3), age_years=52))


@pytest.fixture(scope="module")
def maps(head) -> Tissues:
    return draw_head(head, (), COARSE)


@pytest.fixture(scope="module")
def fine(head) -> Tissues:
    """Two slices through the ventricles."""
    return draw_head(head, (), SLICE)


def volume_cm3(head: Head, name: str) -> float:
    """Of what lies below zero of a field."""
    field = head.fields[name]
    return float((field.values < 0).sum() * np.prod(field.lattice.grid.spacing_mm) / 1000)


def scan_of(sequence: str, site: mr.MrSite = mr.MR_SITE_A, **changes) -> mr.MrScan:
    quiet = {"bias": 0.0, "motion_mm": 0.0, "gain": 1.0, "distortion_mm": 0.0, "thickness_mm": 2.0}
    return replace(mr.random_mr_scan(np.random.default_rng(5), site, sequence), **{**quiet, **changes})


def mean_signal(maps: Tissues, sequence: str, tissue: str, site: mr.MrSite = mr.MR_SITE_A) -> float:
    """Without noise, over voxels that are nearly all of a tissue."""
    scan = scan_of(sequence, site)
    share = {"white": maps.white, "grey": maps.grey, "csf": maps.water}[tissue]
    values = mr.signal(maps, sequence, scan.times, site.tesla)
    return float(values[(share > 0.97) & (maps.blood == 0)].mean())


# --- who it is


def test_same_patient_has_the_same_head_to_the_byte(maps):
    again = draw_head(make_head(replace(make_patient(3), age_years=52)), (), COARSE)
    assert all(np.array_equal(values, again.maps()[name]) for name, values in maps.maps().items())


def test_other_patients_have_other_heads(maps):
    other = draw_head(make_head(make_patient(4)), (), COARSE)
    assert np.abs(other.brain - maps.brain).mean() > 0.01


@pytest.mark.parametrize("seed", [1, 2, 5, 8])
def test_brains_are_as_large_as_those_of_adults(seed):
    head = make_head(make_patient(seed))
    brain = draw_head(head, (), COARSE).brain.sum() * 27 / 1000
    assert 900 < brain < 1550
    assert 1200 < (head.cranium.values < 0).sum() * 2.5**3 / 1000 < 1950


def test_men_have_larger_heads_than_women():
    sizes: dict[Sex, list[float]] = {Sex.MALE: [], Sex.FEMALE: []}
    for seed in range(60):
        patient = make_patient(seed)
        sizes[patient.sex].append(make_head(patient).size)
    assert np.mean(sizes[Sex.MALE]) > np.mean(sizes[Sex.FEMALE]) + 0.02


def test_age_widens_ventricles_and_sulci():
    patient = make_patient(6)
    young, old = (make_head(replace(patient, age_years=age)) for age in (25, 85))
    assert volume_cm3(old, "ventricle") > 1.4 * volume_cm3(young, "ventricle")
    before, after = (draw_head(h, (), SLICE) for h in (young, old))
    assert after.water.sum() > 1.3 * before.water.sum()
    assert after.brain.sum() < 0.97 * before.brain.sum()


def test_every_voxel_is_full_at_most(maps):
    total = maps.pd / 0.95 + maps.water + maps.blood
    assert total.max() < 1.02
    assert min(values.min() for values in maps.maps().values()) >= 0


def test_a_fine_grid_and_a_coarse_one_show_the_same_brain(head):
    x, y, z = COARSE.origin_mm
    thirds = Grid((192, 222, 30), (1.0, 1.0, 1.0), (x - 1, y - 1, z - 1 + 90))
    fine = draw_head(head, (), thirds).brain.reshape(64, 3, 74, 3, 10, 3).mean((1, 3, 5))
    coarse = draw_head(head, (), COARSE).brain[:, :, 30:40]
    assert np.abs(fine - coarse).mean() < 0.02
    assert coarse.sum() == pytest.approx(fine.sum(), rel=0.02)


def test_the_cortex_is_folded_in_all_three_planes(head):
    grid = Grid.centred((150, 180, 150), (1.0, 1.0, 1.0))
    inside = head.cranium.on(grid, (slice(0, 150), slice(0, 180), slice(0, 150))) < -6
    for at in ((75, None, None), (None, 100, None), (None, None, 100)):
        plane = tuple(slice(None) if i is None else slice(i, i + 1) for i in at)
        low = [o + (0 if i is None else i) for o, i in zip(grid.origin_mm, at, strict=True)]
        shape = tuple(n if i is None else 1 for n, i in zip(grid.shape, at, strict=True))
        thin = Grid(shape, grid.spacing_mm, (low[0], low[1], low[2]))
        drawn = draw_head(head, (), thin)
        water = drawn.water.squeeze() > 0.3
        # edges of fluid beyond the outline of the brain
        edges = (
            np.abs(np.diff(water.astype(int), axis=0)).sum()
            + np.abs(np.diff(water.astype(int), axis=1)).sum()
        )
        assert edges > 600, plane
        share = drawn.water.squeeze()[inside[plane].squeeze()].mean()
        assert 0.03 < share < 0.35


# --- where things are


def test_points_find_their_way_to_the_reference_and_back(head):
    bent = replace(head, shift_mm=8.0, pushes=(Push((30.0, 0.0, 30.0), 15.0, 6.0),))
    points = np.random.default_rng(0).uniform(-50, 50, (40, 3))
    assert np.abs(head.to_patient(head.to_reference(points)) - points).max() < 0.01
    assert np.abs(bent.to_patient(bent.to_reference(points)) - points).max() < 0.3


@pytest.mark.parametrize(
    ("reference", "site"),
    [
        ((30, 45, 25), "frontal_lobe"),
        ((40, -50, 50), "parietal_lobe"),
        ((50, -15, -20), "temporal_lobe"),
        ((20, -85, 5), "occipital_lobe"),
        ((26, 2, 2), "basal_ganglia"),
        ((11, -18, 8), "thalamus"),
        ((26, -62, -38), "cerebellum"),
    ],
)
def test_places_are_named_on_both_sides(head, reference, site):
    x, y, z = reference
    assert head.lobe_of(head.to_patient([(x, y, z)])[0]) == (Side.RIGHT, site)
    assert head.lobe_of(head.to_patient([(-x, y, z)])[0]) == (Side.LEFT, site)
    assert (Side.RIGHT, site) in BRAIN_MR["acute_infarct"].places


def test_the_brainstem_has_no_side(head):
    assert head.lobe_of(head.to_patient([(3, -27, -32)])[0]) == (None, "brainstem")


def test_right_of_the_patient_is_positive_x(head):
    for name in ("mca", "ica", "maxillary_sinus", "frontal_sinus", "eye"):
        assert head.landmarks[f"{name}_right"][0] > 3 > -3 > head.landmarks[f"{name}_left"][0]


def test_sinuses_hold_air_and_eyes_hold_water(head):
    for name in ("maxillary_sinus_right", "maxillary_sinus_left"):
        at = head.landmarks[name]
        point = Grid((3, 3, 3), (1.0, 1.0, 1.0), tuple(at - 1))
        drawn = draw_head(head, (), point)
        assert (drawn.pd + drawn.water).max() < 0.05
    eye = draw_head(head, (), Grid((3, 3, 3), (1.0, 1.0, 1.0), tuple(head.landmarks["eye_left"] - 1)))
    assert eye.water.min() > 0.95


def test_a_ray_meets_the_skull_where_its_distance_is_zero(head):
    for direction in ((1, 0, 0.3), (0, 1, 0.2), (-0.5, -1, 0.4)):
        assert abs(float(head.distance("cranium", head.inner_skull(direction))[0])) < 1.0


def test_pia_is_the_border_between_fluid_and_brain(head, fine):
    x, y, z = np.broadcast_arrays(*SLICE.axes())
    points = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    cerebrum = head.distance("cerebrum", points) < -1
    depth = head.pial_depth(points)
    assert fine.white.ravel()[cerebrum & (depth > 5)].mean() > 0.6
    assert fine.water.ravel()[cerebrum & (depth < -0.3)].mean() > 0.35


# --- what lesions change


def test_the_septum_moves_as_far_as_the_shift_says(head):
    for shift_mm in (6.0, -11.0):
        moved = replace(head, shift_mm=shift_mm)
        step = moved.landmarks["septum"] - head.landmarks["septum"]
        assert step == pytest.approx((shift_mm, 0, 0), abs=0.05)
        assert moved.landmarks["eye_left"] == pytest.approx(head.landmarks["eye_left"])


def test_a_push_moves_the_brain_away_and_not_the_skull(head):
    centre = head.to_patient([(30, -25, 30)])[0]
    pushed = replace(head, pushes=(Push(tuple(centre), 14.0, 7.0),))
    at = centre + np.array([[14.0, 0, 0], [-14.0, 0, 0]])
    came_from = head.to_patient(pushed.to_reference(at))
    assert np.linalg.norm(at - centre, axis=1) - np.linalg.norm(came_from - centre, axis=1) == pytest.approx(
        7.0, abs=0.2
    )
    assert np.array_equal(pushed.cranium.values, head.cranium.values)


def test_the_brain_keeps_out_of_a_dent(head):
    at = head.inner_skull((1, 0, 0.5))
    lattice = Lattice.over(at - 30, at + 30, 2.5)
    x, y, z = lattice.grid.axes()
    ball = np.sqrt((x - at[0]) ** 2 + (y - at[1]) ** 2 + (z - at[2]) ** 2) - 16
    dented = replace(head, dents=(Field(lattice, ball.astype(np.float32), (0, 0, 0)),))
    inner = at * (1 - 8 / np.linalg.norm(at))
    point = Grid((4, 4, 4), (1.0, 1.0, 1.0), tuple(inner - 2))
    assert draw_head(head, (), point).brain.mean() > 0.3
    assert draw_head(dented, (), point).brain.max() == 0


def test_hydrocephalus_widens_all_ventricles(head):
    wide = replace(head, ventricle_scale=2.0)
    for name in ("ventricle", "fourth"):
        assert volume_cm3(wide, name) > 1.4 * volume_cm3(head, name)
    assert draw_head(wide, (), SLICE).water.sum() > 1.15 * draw_head(head, (), SLICE).water.sum()


def test_wide_ventricles_push_the_caudate_nuclei_aside(head):
    places = []
    for scale in (1.0, 2.2):
        field = replace(head, ventricle_scale=scale).fields["caudate"]
        x = field.lattice.grid.axes()[0].ravel()[field.first[0] :][: field.values.shape[0]]
        inside = (field.values < 0).sum((1, 2))
        places.append(float((np.abs(x) * inside).sum() / inside.sum()))
    assert places[1] > places[0] + 3


def test_a_cavum_separates_the_leaves_of_the_septum(head):
    at = head.to_patient([(0, 14, 9)])[0]
    point = Grid((3, 3, 3), (0.5, 0.5, 0.5), tuple(at - 0.5))
    assert draw_head(head, (), point).water.mean() < 0.5
    assert draw_head(replace(head, cavum_mm=7.0), (), point).water.mean() > 0.9


def test_lesions_change_then_paint_and_decoys_come_last(head):
    box = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    seen: list[str] = []

    def lesion(name: str) -> dict:
        def change(h: Head) -> Head:
            seen.append("change " + name)
            return h

        return {"paint": lambda canvas: seen.append("paint " + name), "change": change}

    finding = Finding("atrophy")
    tiny = Grid((2, 2, 2), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    draw_head(head, [Lesion(finding, box, **lesion("lesion"))], tiny, [Decoy("cap", box, **lesion("decoy"))])
    assert seen == ["change lesion", "change decoy", "paint lesion", "paint decoy"]


def test_painting_replaces_tissue_and_fluid(head):
    grid = Grid((4, 4, 4), (2.0, 2.0, 2.0), (-4.0, -4.0, 20.0))
    maps = draw_head(head, (), grid)
    canvas = Canvas(head, grid, maps)
    box = canvas.box((0, 0, 24), 20)
    canvas.paint(box, np.ones((4, 4, 4), np.float32), Tissue(pd=0.8, t1_ms=1500, t2_ms=150, adc=0.4, chi=0.5))
    assert maps.t2_ms == pytest.approx(np.full((4, 4, 4), 150))
    assert (maps.water.max(), maps.chi.min(), maps.pd.min()) == (0, 0.5, pytest.approx(0.8))
    canvas.alter(box, np.full((4, 4, 4), 0.5, np.float32), t2_ms=50)
    assert maps.t2_ms == pytest.approx(np.full((4, 4, 4), 100))


# --- what sequences show


@pytest.mark.parametrize("site", [mr.MR_SITE_A, mr.MR_SITE_B], ids="ab")
@pytest.mark.parametrize(
    ("sequence", "order"),
    [
        ("T1", ("white", "grey", "csf")),
        ("T2", ("csf", "grey", "white")),
        ("FLAIR", ("grey", "white", "csf")),
        ("DWI", ("grey", "white", "csf")),
    ],
)
def test_tissues_are_bright_in_the_order_of_the_sequence(maps, site, sequence, order):
    bright, middle, dark = (mean_signal(maps, sequence, tissue, site) for tissue in order)
    assert bright > 1.03 * middle > 1.03 * 1.1 * dark


@pytest.mark.parametrize("maker", MR)
def test_every_makers_times_give_the_contrast_of_the_sequence(maps, maker):
    pure = {"white": maps.white > 0.97, "grey": maps.grey > 0.97, "csf": maps.water > 0.97}
    seen: dict[str, dict[str, float]] = {}
    for sequence in mr.SEQUENCES:
        values = mr.signal(maps, sequence, MR[maker].pulses[sequence].times, MR[maker].tesla)
        seen[sequence] = {name: float(values[where].mean()) for name, where in pure.items()}
    assert seen["T1"]["white"] > 1.15 * seen["T1"]["grey"] > 2 * seen["T1"]["csf"]
    assert seen["T2"]["csf"] > 1.3 * seen["T2"]["grey"] > 1.3 * seen["T2"]["white"]
    assert seen["FLAIR"]["grey"] > 1.03 * seen["FLAIR"]["white"] > 3 * seen["FLAIR"]["csf"]


def test_a_train_of_echoes_after_inversion_follows_the_bloch_equations():
    times = MR["siemens"].pulses["T1"].times
    cycle_ms, echo_ms, before, half = train_of(times)
    for t1 in (850.0, 1350.0, 4300.0):
        m, flip, middle = 1.0, np.deg2rad(times.flip_deg), 0.0
        for _ in range(8):
            m = 1 + (-m - 1) * np.exp(-before / t1)
            for echo in range(2 * half):
                middle = m * np.sin(flip) if echo == half else middle
                m = 1 + (m * np.cos(flip) - 1) * np.exp(-echo_ms / t1)
            m = 1 + (m - 1) * np.exp(-(cycle_ms - before - 2 * half * echo_ms) / t1)
        assert float(mprage(times, t1)) == pytest.approx(abs(middle), rel=0.01)


def test_fluid_is_nulled_on_flair_and_gone_on_diffusion(maps):
    assert mean_signal(maps, "FLAIR", "csf") < 0.1 * mean_signal(maps, "FLAIR", "white")
    assert mean_signal(maps, "DWI", "csf") < 0.6 * mean_signal(maps, "DWI", "white")


def test_a_voxel_half_of_fluid_is_half_as_bright_on_flair():
    grid = Grid((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    times = scan_of("FLAIR").times

    def seen(csf: float) -> float:
        maps = Tissues.empty(grid)
        canvas = Canvas(None, grid, maps)
        box = (slice(0, 1),) * 3
        canvas.paint(box, np.ones((1, 1, 1), np.float32), TISSUES["grey"])
        canvas.paint(box, np.full((1, 1, 1), csf, np.float32), TISSUES["csf"])
        return float(mr.signal(maps, "FLAIR", times)[0, 0, 0])

    assert seen(0.5) == pytest.approx((seen(0) + seen(1)) / 2)
    assert seen(0.5) < 0.6 * seen(0)


def test_adc_maps_are_in_their_unit(fine):
    adc = mr.acquire(fine, SLICE, "ADC", scan_of("ADC", snr=200.0), np.random.default_rng(0))
    assert adc[fine.white > 0.98].mean() == pytest.approx(720, rel=0.05)
    assert adc[fine.water > 0.98].mean() == pytest.approx(3000, rel=0.08)
    assert adc[:4].max() == 0


def test_only_after_gadolinium_uptake_is_bright(head):
    grid = Grid((3, 3, 3), (2.0, 2.0, 2.0), (20.0, -20.0, 34.0))
    maps = draw_head(head, (), grid)
    before = {s: mr.signal(maps, s, scan_of(s).times) for s in ("T1", "T1 contrast", "T2", "FLAIR")}
    maps.uptake[...] = 1.0
    for sequence, values in before.items():
        ratio = float((mr.signal(maps, sequence, scan_of(sequence).times) / values).mean())
        assert ratio > 1.3 if sequence == "T1 contrast" else ratio == pytest.approx(1)


def test_blood_products_bloom_on_susceptibility_images_only():
    grid = Grid.centred((21, 21, 21), (1.0, 1.0, 1.0))
    maps = Tissues.empty(grid)
    canvas = Canvas(None, grid, maps)
    whole = (slice(0, 21),) * 3
    canvas.paint(whole, np.ones(grid.shape, np.float32), TISSUES["white"])
    times = scan_of("SWI").times
    clean = mr.signal(maps, "SWI", times)
    maps.chi[9:12, 9:12, 9:12] = 1.0
    dark = mr.signal(maps, "SWI", times) < 0.5 * clean
    assert dark.sum() > 3 * 27
    assert mr.signal(maps, "T2", scan_of("T2").times) == pytest.approx(np.full(grid.shape, 0.1904), rel=0.02)


def test_flow_is_a_void_on_spin_echoes_and_bright_after_gadolinium():
    grid = Grid((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    maps = Tissues.empty(grid)
    maps.blood[...] = 1.0
    assert float(mr.signal(maps, "T2", scan_of("T2").times)[0, 0, 0]) < 0.05
    with_, without = (float(mr.signal(maps, s, scan_of(s).times)[0, 0, 0]) for s in ("T1 contrast", "T1"))
    assert with_ > 1.4 * without


def test_inversion_nulls_what_recovers_through_zero():
    times = Times(9000, 80, 90, ti_ms=2482)
    water = mr.signal(_water(), "FLAIR", times)
    assert float(water[0, 0, 0]) < 0.01


def _water() -> Tissues:
    maps = Tissues.empty(Grid((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))
    maps.water[...] = 1.0
    return maps


def test_unknown_sequences_are_refused_by_name():
    with pytest.raises(ConfigError, match="No sequence 'PD'; there are: T1, T2"):
        mr.random_mr_scan(np.random.default_rng(0), mr.MR_SITE_A, "PD")


# --- what scanners do to it


def test_noise_is_rician_and_as_strong_as_stated(fine):
    scan = scan_of("T2", snr=20.0, pixel_mm=2.0, matrix=96, distance_mm=2.0, resolution=1.0)
    image = mr.acquire(fine, SLICE, "T2", scan, np.random.default_rng(1))
    sigma = mr.WHITE / 20.0
    white = image[fine.white > 0.995]
    assert white.mean() == pytest.approx(mr.WHITE, rel=0.06)
    assert white.std() == pytest.approx(sigma, rel=0.25)
    air = image[:5, :5]
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.05)


def test_the_same_state_of_the_generator_gives_the_same_bytes(fine):
    scan = mr.random_mr_scan(np.random.default_rng(2), mr.MR_SITE_B, "DWI")
    first, second = (mr.acquire(fine, SLICE, "DWI", scan, np.random.default_rng(9)) for _ in range(2))
    assert np.array_equal(first, second)


def test_the_second_site_is_noisier_and_has_thicker_slices():
    for sequence in ("T1", "T2", "FLAIR", "DWI"):  # SWI and T1 after contrast medium are 3D at both
        a, b = (
            [mr.random_mr_scan(np.random.default_rng(n), site, sequence) for n in range(30)]
            for site in (mr.MR_SITE_A, mr.MR_SITE_B)
        )
        assert np.mean([s.snr for s in a]) > 1.8 * np.mean([s.snr for s in b])
        assert max(s.thickness_mm for s in a) < min(s.thickness_mm for s in b)
        assert np.mean([s.bias for s in b]) > 1.3 * np.mean([s.bias for s in a])


def test_coils_shade_smoothly(fine):
    even, shaded = (
        mr.acquire(fine, SLICE, "T2", scan_of("T2", snr=1e4, bias=b), np.random.default_rng(0))
        for b in (0, 0.3)
    )
    inside = fine.brain > 0.9
    ratio = (shaded / np.maximum(even, 1))[inside]
    assert 1.15 < ratio.max() / ratio.min() < 4


def test_motion_leaves_ghosts_in_the_air(fine):
    still, moved = (
        mr.acquire(fine, SLICE, "T2", scan_of("T2", snr=1e4, motion_mm=m), np.random.default_rng(0))
        for m in (0, 3)
    )
    assert moved[:6].mean() > 3 * still[:6].mean()


def test_thick_slices_are_averages_of_thin_ones(head):
    scan = scan_of(
        "T2", snr=1e4, matrix=32, pixel_mm=6.0, thickness_mm=6.0, distance_mm=6.0, slices=4, resolution=1.0
    )
    grid = mr.scan_grid(head, scan)
    drawn = mr.drawn_grid(grid, scan)
    assert (drawn.shape[2], drawn.spacing_mm[2]) == (12, 2.0)
    assert drawn.axes()[2].ravel()[:3].mean() == pytest.approx(grid.origin_mm[2])
    maps = draw_head(head, (), drawn)
    image = mr.acquire(maps, grid, "T2", scan, np.random.default_rng(0))
    parts = mr.signal(maps, "T2", scan.times).reshape(32, 32, 4, 3).mean(3)
    parts *= mr.WHITE / mr.white_signal("T2", scan.times)
    assert image == pytest.approx(parts, abs=2)


@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_slices_are_stacked_along_the_axis_of_their_plane(head, plane, axis):
    scan = scan_of("T2", plane=plane, matrix=64, pixel_mm=3.5, thickness_mm=4.0, distance_mm=5.0, slices=20)
    grid = mr.scan_grid(head, scan)
    assert grid.shape[axis] == 20
    assert grid.spacing_mm[axis] == 5.0
    assert mr.drawn_grid(grid, scan).shape[axis] == 60
    middle = np.asarray(grid.origin_mm) + (np.asarray(grid.shape) - 1) / 2 * np.asarray(grid.spacing_mm)
    assert np.abs(middle - scan.centre_mm).max() < 12


def test_echo_planar_images_are_shifted_along_y_near_air(head):
    grid = Grid((60, 80, 3), (3.0, 3.0, 3.0), (-90.0, -120.0, -38.0))
    maps = draw_head(head, (), grid)
    plain, shifted = (
        mr.acquire(maps, grid, "DWI", scan_of("DWI", snr=1e4, distortion_mm=d), np.random.default_rng(0))
        for d in (0, 4)
    )
    assert 0.005 < np.abs(plain - shifted).mean() / plain.mean() < 0.6


def test_a_training_array_is_drawn_where_training_wants_it():
    grid = training_grid()
    assert (grid.shape, grid.spacing_mm) == ((96, 112, 96), (2.0, 2.0, 2.0))
    assert grid.origin_mm == (-95.0, -111.0, -95.0)
