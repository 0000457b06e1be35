"""What the voxels of a CT show beside what its header says: phantoms, drawn bodies, real series, and
the words that scanners and people write into headers."""

from dataclasses import replace
from functools import cache
from itertools import permutations

import nibabel
import numpy as np
import pytest

from mla_med.dicom.content import Content, look
from mla_med.dicom.study import read_study
from mla_med.dicom.terms import BODY_PARTS, body_part_of, contrast_of, disagreements
from mla_med.dicom.volume import read_volume
from mla_med.phantom.chest.anatomy import draw_chest
from mla_med.phantom.examine import Examined, examine
from mla_med.phantom.scanner.ct import Scan, scan_grid
from mla_med.phantom.scanning import scanned
from mla_med.phantom.shapes import Grid
from mla_med.phantom.sites import site_of

SPACING_MM = (4.0, 4.0, 5.0)
SEEDS = {
    0: (),
    1: ("pleural_effusion", "lung_mass"),
    2: ("consolidation", "ground_glass_opacity"),
    3: ("cardiomegaly", "pericardial_effusion"),
    4: ("coronary_calcification", "aortic_aneurysm", "emphysema"),
    5: ("hiatal_hernia", "pneumothorax"),
}
COARSE = Scan(spacing_mm=SPACING_MM, matrix=104, thickness_mm=SPACING_MM[2])


@cache
def patient(seed: int) -> Examined:
    """A person who is given no contrast medium."""
    examined = examine(seed, "chest_ct", site_of("a"), codes=SEEDS[seed])
    if not examined.anatomy.enhanced:
        return examined  # another anatomy would have to be laid out anew, which takes a second
    return replace(examined, anatomy=replace(examined.anatomy, enhanced=False))


def grid_of(seed: int, scan: Scan) -> Grid:
    low, high = patient(seed).anatomy.z_range_mm
    return scan_grid(scan, low - 30, high + 15)


def scan_of(seed: int, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    image = scanned(patient(seed), grid_of(seed, scan), scan, np.random.default_rng(seed))
    return image.hu.astype(np.float32), image.affine


@cache
def chest(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A phantom's chest without contrast medium, and its affine."""
    voxels, affine = scan_of(seed, COARSE)
    voxels.setflags(write=False)
    return voxels, affine


@cache
def brightened(seed: int) -> np.ndarray:
    """By how many HU contrast medium in its early phases brightens each voxel."""
    one = patient(seed)
    bright = draw_chest(replace(one.anatomy, enhanced=True), one.lesions, grid_of(seed, COARSE))
    return np.maximum(bright - chest(seed)[0], 0)


def enhanced(seed: int, blood_hu: float) -> tuple[np.ndarray, np.ndarray]:
    """The same chest with the blood of the heart and the large vessels at that HU."""
    voxels, affine = chest(seed)
    return np.where(brightened(seed) > 100, voxels + blood_hu - 42, voxels).astype(np.float32), affine


def drawn(shape, *shapes, noise_hu: float = 12.0, spacing_mm=SPACING_MM) -> tuple[np.ndarray, np.ndarray]:
    """Air with elliptic cylinders (x, y, half width, half depth in mm, HU) in it, the later over the
    earlier; those with two more numbers reach from the one height to the other."""
    x, y, z = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)),
        indexing="ij",
        sparse=True,
    )
    voxels = np.full(shape, -1000.0, np.float32)
    for cx, cy, rx, ry, hu, *heights in shapes:
        low, high = heights or (-np.inf, np.inf)
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        voxels = np.where(inside & (z >= low) & (z <= high), hu, voxels)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    noise = np.random.default_rng(0).normal(0, noise_hu, shape)
    return (voxels + noise).astype(np.float32), affine


def abdomen(*more, aorta_hu=42, kidney_hu=32, liver_hu=55, slices=40) -> tuple[np.ndarray, np.ndarray]:
    """A trunk of 34 x 25 cm: fat, muscle, liver, kidneys, bowel, a vertebral column with discs, aorta."""
    discs = [(0, -55, 20, 16, 80, z, z + 5) for z in range(-200, 200, 30)]
    return drawn(
        (100, 80, slices),
        *((0, 0, 170, 125, -100), (0, 0, 145, 100, 50), (0, 10, 130, 80, -100)),
        *((70, 15, 55, 60, liver_hu), (-90, 0, 30, 35, liver_hu - 10), (-20, 50, 25, 20, 25)),
        *((65, -45, 22, 25, kidney_hu), (-65, -45, 22, 25, kidney_hu)),
        *((0, -55, 23, 19, 600), (0, -55, 20, 16, 170), *discs, (0, -85, 10, 10, 400)),
        (-8, -18, 12, 12, aorta_hu),
        *more,
    )


def head(hole_hu: float = 35.0) -> tuple[np.ndarray, np.ndarray]:
    """Scalp, skull and brain, in a head holder."""
    shapes = (0, -10, 130, 130, -300), (0, -10, 126, 126, -1000), (0, 0, 78, 98, 30), (0, 0, 72, 92, 900)
    return drawn((70, 70, 30), *shapes, (0, 0, 65, 85, hole_hu))


# Body part


@pytest.mark.parametrize("seed", SEEDS)
def test_phantom_is_an_unenhanced_chest(seed):
    content = look(*chest(seed))

    assert (content.body_part, content.contrast) == ("chest", False)
    assert 30 < content.measured["mediastinum_hu"] < 60


def test_head_is_a_head_and_its_vessels_are_not_judged():
    content = look(*head())

    assert (content.body_part, content.contrast) == ("head", None)


def test_trunk_without_lungs_is_an_abdomen():
    assert look(*abdomen()).body_part == "abdomen"


def test_scan_of_chest_and_abdomen_is_both():
    voxels, affine = chest()
    below = np.repeat(voxels[:, :, :1], 40, axis=2)

    content = look(np.concatenate([below, voxels], axis=2), affine)

    assert content.body_parts == ("chest", "abdomen")
    assert content.body_part == "chest and abdomen"


def test_liver_at_the_end_of_a_chest_scan_is_not_an_abdomen():
    voxels, affine = chest()
    below = np.repeat(voxels[:, :, :1], 3, axis=2)

    assert look(np.concatenate([below, voxels], axis=2), affine).body_part == "chest"


def test_lung_bases_at_the_end_of_an_abdominal_scan_are_not_a_chest():
    lungs = (60, 0, 45, 70, -850, 60, 100), (-60, 0, 45, 70, -850, 60, 100)

    assert look(*abdomen(*lungs)).body_part == "abdomen"


@pytest.mark.parametrize(
    "shapes",
    [
        [(-80, 0, 60, 60, 50), (-80, 0, 14, 14, 1000), (80, 0, 60, 60, 50), (80, 0, 14, 14, 1000)],
        [(0, 0, 110, 110, 0)],
        [(0, 0, 150, 110, -850)],
        [(0, 0, 200, 90, 50), (110, 0, 30, 30, 600), (-110, 0, 30, 30, 600), (0, -30, 20, 20, 500)],
        [],
    ],
    ids=["thighs", "water", "foam", "shoulders", "air"],
)
def test_what_is_neither_head_nor_chest_nor_abdomen_is_not_named(shapes):
    assert look(*drawn((100, 80, 20), *shapes)).body_parts == ()


@pytest.mark.parametrize("hu", [-1024.0, -850.0, 0.0, 40.0, 3000.0, np.nan])
def test_constant_volume_shows_nothing(hu):
    content = look(np.full((60, 60, 20), hu, np.float32), np.diag([4.0, 4.0, 5.0, 1.0]))

    assert (content.body_parts, content.contrast) == ((), None)


def test_noise_alone_shows_nothing():
    noise = np.random.default_rng(1).normal(-897, 60, (120, 120, 4)).astype(np.float32)

    assert look(noise, np.diag([2.0, 2.0, 5.0, 1.0])).body_parts == ()


def test_field_of_view_of_a_few_centimetres_shows_nothing():
    voxels, affine = chest()

    assert look(voxels[40:60, 40:60], affine) == Content()


@pytest.mark.parametrize("damage", [0.0, np.nan])
def test_affine_without_a_volume_shows_nothing(damage):
    voxels, affine = chest()
    affine = affine.copy()
    affine[:, 2] *= damage

    assert look(voxels, affine) == Content()


# However it is stored


def stored_as(voxels, affine, order, signs):
    """The same patient with the index axes in that order, and turned round where a sign is -1."""
    turned = affine[:, [*order, 3]].copy()
    stored = voxels.transpose(order)
    for axis, sign in enumerate(signs):
        if sign < 0:
            turned[:, 3] += turned[:, axis] * (stored.shape[axis] - 1)
            turned[:, axis] *= -1
            stored = np.flip(stored, axis)
    return stored, turned


@pytest.mark.parametrize("order", permutations(range(3)))
def test_order_and_direction_of_the_axes_do_not_matter(order):
    for signs in ((1, 1, 1), (-1, 1, -1), (1, -1, 1), (-1, -1, -1)):
        content = look(*stored_as(*chest(1), order, signs))
        assert (content.body_part, content.contrast) == ("chest", False), signs


def test_upside_down_chest_has_its_abdomen_below_it():
    voxels, affine = chest()
    scan = np.concatenate([np.repeat(voxels[:, :, :1], 40, axis=2), voxels], axis=2)

    assert look(*stored_as(scan, affine, (2, 0, 1), (-1, 1, -1))).body_parts == ("chest", "abdomen")


def test_gantry_tilt_does_not_matter():
    for voxels, affine, name in ((*chest(), "chest"), (*head(), "head"), (*abdomen(), "abdomen")):
        tilted = affine.copy()
        tilted[1, 2] = np.tan(np.radians(20)) * tilted[2, 2]
        assert look(voxels, tilted).body_part == name


def test_narrow_round_field_of_view_still_shows_a_chest():
    narrow, affine = scan_of(0, Scan(spacing_mm=(2.0, 2.0, 6.0), matrix=112, thickness_mm=6.0))
    i, j = np.ogrid[:112, :112]
    for padding_hu in (-1024, -2000, -3024):
        cut = narrow.copy()
        cut[np.hypot(i - 55.5, j - 55.5) > 56] = padding_hu

        content = look(cut, affine)

        assert (content.body_part, content.contrast) == ("chest", False), padding_hu


@pytest.mark.parametrize("noise_hu", [40, 120])
def test_noise_that_the_scanner_cut_off_does_not_matter(noise_hu):
    noise = np.random.default_rng(2).normal(0, noise_hu, (104, 104, 80))
    for voxels, affine, name in ((*chest(), "chest"), (*head(), "head")):
        noisy = np.maximum(voxels + noise[tuple(slice(n) for n in voxels.shape)], -1024)
        assert look(noisy.astype(np.float32), affine).body_part == name


def test_three_slices_are_enough_for_a_body_part():
    for (voxels, affine), name in ((chest(), "chest"), (head(), "head"), (abdomen(), "abdomen")):
        middle = voxels.shape[2] // 2
        assert look(voxels[:, :, middle : middle + 3], affine).body_part == name


def test_voxels_are_left_as_they_are():
    voxels, affine = abdomen()
    before = voxels.copy()

    look(voxels, affine)

    np.testing.assert_array_equal(voxels, before)


# Contrast medium


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize("blood_hu", [150, 250, 400])
def test_bright_heart_and_vessels_are_contrast_medium(seed, blood_hu):
    content = look(*enhanced(seed, blood_hu))

    assert (content.body_part, content.contrast) == ("chest", True)


def test_faintly_bright_heart_is_not_judged():
    voxels, affine = chest(0)

    content = look((voxels + 0.22 * brightened(0)).astype(np.float32), affine)

    assert 65 < content.measured["mediastinum_hu"] < 80
    assert content.contrast is None


def test_chest_above_the_heart_is_not_judged_where_little_lies_between_the_lungs():
    voxels, affine = chest()

    content = look(voxels[:, :, 49:51], affine)

    assert (content.body_part, content.contrast) == ("chest", None)


@pytest.mark.parametrize(
    ("phase", "aorta_hu", "kidney_hu", "liver_hu"),
    [("arterial", 320, 150, 65), ("portal venous", 150, 180, 110), ("late", 112, 150, 85)],
)
def test_bright_aorta_and_kidneys_are_contrast_medium(phase, aorta_hu, kidney_hu, liver_hu):
    content = look(*abdomen(aorta_hu=aorta_hu, kidney_hu=kidney_hu, liver_hu=liver_hu))

    assert content.contrast is True
    assert content.measured["vessel_hu"] == pytest.approx(aorta_hu, abs=15)


def test_grey_abdomen_has_no_contrast_medium_though_its_vertebrae_are_bright():
    assert look(*abdomen()).contrast is False


def test_contrast_medium_in_the_bowel_is_not_taken_for_vessels():
    gut = (-60, 55, 30, 20, 300), (30, 70, 50, 12, 250, -60, 20), (85, 40, 15, 15, 350)

    assert look(*abdomen(*gut)).contrast is not True


def test_liver_full_of_iron_is_not_taken_for_contrast_medium():
    assert look(*abdomen(liver_hu=115)).contrast is not True


def test_part_of_an_abdomen_is_not_said_to_be_without_contrast_medium():
    assert look(*abdomen(slices=12)).contrast is None


# Real patients and the phantoms of manufacturers


def test_real_chest_is_an_unenhanced_chest(real_series):
    content = seen(real_series("ct_chest_philips_32of275"))

    assert (content.body_part, content.contrast) == ("chest", False)


@pytest.mark.parametrize("name", ["ct_head_philips_study/S2010", "ct_head_philips_tilt+16.5_28of58"])
def test_hollow_phantom_of_a_head_is_a_head(real_series, name):
    content = seen(real_series(name))

    assert (content.body_part, content.contrast) == ("head", None)


def seen(folder):
    (series,) = read_study(folder).series
    volume = read_volume(series)
    return look(volume.voxels, volume.affine)


def real_abdomen(real_series, name="example_ct.nii.gz"):
    image = nibabel.load(real_series("../nifti/totalsegmentator_ct") / name)
    return np.asarray(image.dataobj, np.float32), image.affine


def test_real_abdomen_is_unenhanced(real_series):
    content = look(*real_abdomen(real_series))

    assert (content.body_part, content.contrast) == ("abdomen", False)


def test_real_pelvis_is_not_named(real_series):
    voxels, affine = real_abdomen(real_series)

    assert look(voxels[:, :, :35], affine).body_parts == ()


# Labels of TotalSegmentator: spleen, kidneys, liver, stomach, bowel, aorta and caval vein.
@pytest.mark.parametrize(
    ("hu_by_label", "contrast"),
    [
        ({52: 300, 63: 60, 2: 170, 3: 170, 1: 110, 5: 70}, True),
        ({52: 150, 63: 140, 2: 180, 3: 180, 1: 120, 5: 110}, True),
        ({6: 300, 18: 300, 19: 300, 20: 300}, None),
        ({5: 110}, None),
        ({}, None),
    ],
    ids=["arterial", "portal venous", "swallowed", "iron", "short"],
)
def test_organs_of_a_real_abdomen_made_bright(real_series, hu_by_label, contrast):
    voxels, affine = real_abdomen(real_series, "example_ct_sm.nii.gz")
    labels, _ = real_abdomen(real_series, "example_seg.nii.gz")
    for label, hu in hu_by_label.items():
        organ = (labels == label) & (voxels > -20)
        voxels[organ] += hu - np.median(voxels[organ])

    content = look(voxels, affine)

    assert (content.body_part, content.contrast) == ("abdomen", contrast)


# Header words


@pytest.mark.parametrize(
    ("words", "body_part"),
    [
        *(("CHEST", "chest"), ("THORAX", "chest"), ("Thorax^1_ThoraxRoutine (Adult)", "chest")),
        *(("TDM thoracique sans injection", "chest"), ("TC tórax", "chest"), ("胸部平扫", "chest")),
        *(("Lungenembolie", "chest"), ("HRCT", "chest"), ("冠脉CTA", "chest"), ("PET_CT SCAN CHE", "chest")),
        *(("HEAD", "head"), ("1A TRAUMA/PLAIN HEAD DM", "head"), ("STD BRAIN 5MM", "head")),
        *(("Schädel nativ", "head"), ("CCT", "head"), ("Crâne sans IV", "head"), ("TC cráneo", "head")),
        *(("头颅CT平扫", "head"), ("CT SINUS/MANDIBLE/MAXILLOFACIAL", "head"), ("SELLA", "head")),
        *(("NECK", "neck"), ("Hals KM", "neck"), ("CAROTID", "neck"), ("颈部增强", "neck")),
        *(
            ("HEADNECK", "head and neck"),
            ("Head-and-Neck", "head and neck"),
            ("HEADANDNECK", "head and neck"),
        ),
        *(("ABDOMEN", "abdomen"), ("Leber Triphase", "abdomen"), ("foie", "abdomen"), ("上腹部", "abdomen")),
        *(("CT ABD&PELVIS", "abdomen and pelvis"), ("ABDOMENPELVIS", "abdomen and pelvis")),
        *(("Scanner abdomino-pelvien", "abdomen and pelvis"), ("PET_ABDOMEN_PEL", "abdomen and pelvis")),
        *(("PELVIS", "pelvis"), ("Becken", "pelvis"), ("HIP LEFT", "pelvis"), ("骨盆", "pelvis")),
        *(("CHEST_ABDOMEN_PELVIS", "chest, abdomen and pelvis"), ("TAP", "chest, abdomen and pelvis")),
        *(("CHESTABDPELVIS", "chest, abdomen and pelvis"), ("CAP", "chest, abdomen and pelvis")),
        *(("CHEST_TO_PELVIS", "chest, abdomen and pelvis"), ("THORAXABD", "chest and abdomen")),
        *(("WHOLEBODY", "head, neck, chest, abdomen and pelvis"), ("NECKCHEST", "neck and chest")),
        *(("C-SPINE", "spine"), ("CT T-SPINE W/O CONTRAST", "spine"), ("LSSPINE", "spine"), ("HWS", "spine")),
        *(("Halswirbelsäule", "spine"), ("Rachis cervical", "spine"), ("Columna lumbar", "spine")),
        *(
            ("CT SPINE CERVICAL", "spine"),
            ("LUMBO-SACRAL SP", "spine"),
            ("胸腰椎", "spine"),
            ("颈椎", "spine"),
        ),
        *(("KNEE", "limb"), ("Knie rechts", "limb"), ("双膝关节", "limb"), ("FEMORAL HEAD", "limb")),
        *(
            ("", ""),
            ("HEAD FIRST SUPINE", ""),
            ("STAPEDIAL", ""),
            ("SURFACE", ""),
            ("TAPE", ""),
            ("手术", ""),
        ),
        *(("CAPSULE", ""), ("UNDEFINED", ""), ("Phantom", ""), ("ALTERNATIVE", "")),
        *(("HEAD FIRST CHEST", "chest"), ("HEAD OF PANCREAS", "abdomen"), ("ABDOMINAL AORTA", "abdomen")),
    ],
)
def test_words_name_a_body_part(words, body_part):
    assert body_part_of(words) == body_part


def test_body_parts_are_the_words_of_the_certificate():
    assert {part for part in BODY_PARTS if body_part_of(part) == part} == set(BODY_PARTS)


GIVEN, NOT_GIVEN, NOT_STATED = True, False, None


@pytest.mark.parametrize(
    ("words", "contrast"),
    [
        *(
            ("CT CHEST W/O CONTRAST", NOT_GIVEN),
            ("CT CHEST WO CE", NOT_GIVEN),
            ("CT CHEST NONCON", NOT_GIVEN),
        ),
        *(("5/5mm Plain", NOT_GIVEN), ("Thorax nativ", NOT_GIVEN), ("CT Thorax ohne KM", NOT_GIVEN)),
        *(("TDM thoracique sans injection", NOT_GIVEN), ("TC tórax sin contraste", NOT_GIVEN)),
        *(
            ("胸部平扫", NOT_GIVEN),
            ("AX C-", NOT_GIVEN),
            ("unenhanced", NOT_GIVEN),
            ("pre contrast", NOT_GIVEN),
        ),
        *(("C-SPINE C-", NOT_GIVEN), ("CT CHEST W/O CONTRAST W/ONC TABLES", NOT_GIVEN)),
        *(("CT HEAD W/ ANESTHESIA W/O CONTRAST", NOT_GIVEN), ("Calcium Score", NOT_GIVEN)),
        *(("CT ABD WITHOUT ORAL OR IV CONTRAST", NOT_GIVEN), ("CT CHEST WITHOUT IV CONTRAST", NOT_GIVEN)),
        *(
            ("CT CHEST W/CONTRAST", GIVEN),
            ("CT CHEST W_ENHA", GIVEN),
            ("CHEST C+", GIVEN),
            ("Thorax mit KM", GIVEN),
        ),
        *(("Abdomen KM portalvenös 3.0", GIVEN), ("TDM TAP avec injection", GIVEN), ("CTPA", GIVEN)),
        *(
            ("TC abdomen con contraste", GIVEN),
            ("胸部增强", GIVEN),
            ("动脉期", GIVEN),
            ("late arterial", GIVEN),
        ),
        *(("CT NECK W/CONT +RECONSTRUCTION", GIVEN), ("CT ABD&PELVIS W/C COLON TECHNIQUE", GIVEN)),
        *(("CT ABD W/O ORAL W IV CONTRAST", GIVEN), ("CT ABD W ORAL AND IV CONTRAST", GIVEN)),
        *(("CT CHEST W&W/O C", NOT_STATED), ("BRAIN W/WO_AH32", NOT_STATED), ("BD CT ABD WO_W", NOT_STATED)),
        *(("CT HEAD W/ & W/O CONTRAST", NOT_STATED), ("上腹部平扫+增强", NOT_STATED)),
        *(("TDM Cérébral sans puis avec injection", NOT_STATED), ("CT ABD W ORAL CONTRAST", NOT_STATED)),
        *(
            ("", NOT_STATED),
            ("C-SPINE", NOT_STATED),
            ("Thorax Routine", NOT_STATED),
            ("ALTERNATIVE", NOT_STATED),
        ),
        *(("CT SINUS AXIAL W/VTI", NOT_STATED), ("LOW DOSE LUNG SCREENING", NOT_STATED)),
    ],
)
def test_words_state_contrast_medium(words, contrast):
    assert contrast_of(None, words) is contrast


@pytest.mark.parametrize(
    ("agent", "words", "contrast"),
    [
        *(
            ("ISOVUE300/100", "", GIVEN),
            ("Omnipaque 350", "Thorax", GIVEN),
            ("IV", "", GIVEN),
            ("CE", "", GIVEN),
        ),
        *(("ORAL & IV", "", GIVEN), ("碘海醇", "", GIVEN), ("APPLIED", "portal venous", GIVEN)),
        *(
            ("NONE", "", NOT_GIVEN),
            ("no contrast", "", NOT_GIVEN),
            ("无", "", NOT_GIVEN),
            ("", "Plain", NOT_GIVEN),
        ),
        *(("ORAL", "", NOT_GIVEN), ("Gastrografin", "", NOT_GIVEN), ("OMNIPAQUE ORAL", "", NOT_GIVEN)),
        *((None, "", NOT_STATED), ("", "", NOT_STATED), ("UNKNOWN", "", NOT_STATED), ("N/A", "", NOT_STATED)),
        *(("Omnipaque 350", "CT CHEST W/O CONTRAST", NOT_STATED), ("NONE", "CT CHEST C+", NOT_STATED)),
    ],
)
def test_agent_and_words_state_contrast_medium_unless_they_contradict(agent, words, contrast):
    assert contrast_of(agent, words) is contrast


@pytest.mark.parametrize("words", ["CT" * 500, "C T " * 300, "W & " * 300, "THORACO-" * 200, "ANGI" * 300])
def test_damaged_header_words_are_read_in_time(words):
    assert set(body_part_of(words).split()) <= {*BODY_PARTS, "and"}
    assert contrast_of(words, words) in (True, False, None)


# Header beside voxels


def test_disagreement_says_both_sides():
    assert disagreements("abdomen", "chest", None, None) == (
        "The header says abdomen; the voxels show a chest.",
    )
    assert disagreements("limb", "chest and abdomen", None, None) == (
        "The header says limb; the voxels show a chest and an abdomen.",
    )
    assert disagreements("chest", "chest", True, False) == (
        "The header says contrast medium; the vessels are no brighter than blood without it.",
    )
    assert disagreements("chest", "head", False, True) == (
        "The header says chest; the voxels show a head.",
        "The header says no contrast medium; the vessels are brighter than blood without it can be.",
    )


@pytest.mark.parametrize(
    ("header", "pixels"),
    [
        *(("chest", "chest"), ("", "chest"), ("chest", ""), ("", ""), ("pelvis", "abdomen")),
        *(("neck", "head"), ("neck", "chest"), ("spine", "abdomen"), ("chest", "chest and abdomen")),
        *(("chest, abdomen and pelvis", "chest"), ("head, neck, chest, abdomen and pelvis", "abdomen")),
    ],
)
def test_what_is_not_said_or_lies_beside_it_is_no_disagreement(header, pixels):
    assert disagreements(header, pixels, None, None) == ()


@pytest.mark.parametrize(("header", "pixels"), [(None, True), (True, None), (False, None), (True, True)])
def test_contrast_that_one_side_does_not_state_is_no_disagreement(header, pixels):
    assert disagreements("chest", "chest", header, pixels) == ()
