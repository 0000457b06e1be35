"""Which series of a study is read, and why not the others."""

import pytest
from dicom_series import SHARED_DICOM, write_series

from mla_med.dicom.select import EXAMINATIONS, choose_series, load_examinations
from mla_med.dicom.study import read_study
from mla_med.errors import ConfigError

HEIGHTS_MM = [0, 2, 4, 6, 8]
needs_shared = pytest.mark.skipif(not SHARED_DICOM.is_dir(), reason="shared/data/dicom is not here")


def verdicts(folder, examination="chest_ct"):
    """(series description, accepted, chosen, reason code) in the order of the study."""
    found = choose_series(read_study(folder), examination)
    return [(v.series.description, v.accepted, v.chosen, v.reason and v.reason.code) for v in found]


CORONAL = [1, 0, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("code", "heights_mm", "attributes"),
    [
        ("WRONG_MODALITY", HEIGHTS_MM, {"Modality": "MR"}),
        ("WRONG_BODY_PART", HEIGHTS_MM, {"BodyPartExamined": "HEAD"}),
        ("WRONG_BODY_PART", HEIGHTS_MM, {"BodyPartExamined": None}),
        ("SHORT_COVERAGE", [0, 1, 2], {"SliceThickness": 1}),
        ("DERIVED", HEIGHTS_MM, {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}),
        ("UNUSUAL_THICKNESS", HEIGHTS_MM, {"SliceThickness": 10}),
        ("SHARPER_KERNEL", HEIGHTS_MM, {"ConvolutionKernel": "B70f"}),
        ("SHARPER_KERNEL", HEIGHTS_MM, {"ConvolutionKernel": "LUNG"}),
        ("THICKER_THAN_CHOSEN", HEIGHTS_MM, {"SliceThickness": 3}),
        ("FEWER_SLICES", HEIGHTS_MM[:4], {}),
        ("EQUAL_TO_CHOSEN", HEIGHTS_MM, {}),
    ],
)
def test_a_worse_series_is_accepted_but_not_chosen(tmp_path, code, heights_mm, attributes):
    write_series(tmp_path, HEIGHTS_MM, series=1, ConvolutionKernel="B31f")
    write_series(tmp_path, heights_mm, series=2, **{"ConvolutionKernel": "B31f"} | attributes)
    assert verdicts(tmp_path) == [("series 1", True, True, None), ("series 2", True, False, code)]


def test_the_order_of_series_does_not_decide(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1, ConvolutionKernel="BONEPLUS")
    write_series(tmp_path, HEIGHTS_MM, series=2, ConvolutionKernel="STANDARD")
    assert verdicts(tmp_path) == [("series 1", True, False, "SHARPER_KERNEL"), ("series 2", True, True, None)]


def test_coronal_reformats_are_not_axial(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1)
    positions = [[-10, y, 0] for y in HEIGHTS_MM]
    write_series(tmp_path, positions, series=2, ImageOrientationPatient=CORONAL)
    assert verdicts(tmp_path) == [("series 1", True, True, None), ("series 2", True, False, "NOT_AXIAL")]


def test_refused_series_carry_the_reason_of_the_certificate(tmp_path):
    write_series(tmp_path, [0, 2, 4, 8, 10], series=1)
    write_series(tmp_path, HEIGHTS_MM, series=2)
    found = choose_series(read_study(tmp_path))
    assert found[0].certificate is None
    assert found[0].reason.code == "MISSING_SLICE"
    assert "after slice 3 of 5" in found[0].reason.words
    assert found[1].chosen


def test_a_study_without_suitable_series_has_none_chosen(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1, Modality="MR")
    write_series(tmp_path, [0, 2], series=2)
    assert verdicts(tmp_path) == [
        ("series 1", True, False, "WRONG_MODALITY"),
        ("series 2", False, False, "TOO_FEW_SLICES"),
    ]


def test_another_examination_wants_another_series(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1)
    write_series(
        tmp_path, HEIGHTS_MM, series=2, Modality="MR", BodyPartExamined="BRAIN", **T1, ScanningSequence="SE"
    )
    assert [chosen for _, _, chosen, _ in verdicts(tmp_path, "chest_ct")] == [True, False]
    assert [chosen for _, _, chosen, _ in verdicts(tmp_path, "brain_mr")] == [False, True]


def test_an_unknown_examination_names_the_known_ones(tmp_path):
    write_series(tmp_path, HEIGHTS_MM)
    with pytest.raises(ConfigError, match="chest_ct"):
        choose_series(read_study(tmp_path), "knee_xr")


def test_a_verdict_is_enough_for_inspect(tmp_path):
    write_series(tmp_path, HEIGHTS_MM)
    (verdict,) = choose_series(read_study(tmp_path))
    assert verdict.series.series_uid == "2.25.1"
    assert verdict.certificate.shape == (6, 8, 5)
    assert verdict.certificate.spacing_mm == (0.7, 0.8, 2.0)
    assert verdict.certificate.affine[0] == (-0.7, 0.0, 0.0, 10.0)


@needs_shared
def test_head_study_chooses_the_axial_series():
    assert verdicts(SHARED_DICOM / "ct_head_philips_study") == [
        ("", False, False, "LOCALIZER"),
        ("STD BRAIN 5MM", True, True, None),
        ("Exam Summary", False, False, "SECONDARY_CAPTURE"),
        ("Exam Summary", False, False, "COLOUR"),
    ]


@needs_shared
@pytest.mark.parametrize(
    ("folder", "examination", "chosen"),
    [
        ("ct_chest_philips_32of275", "chest_ct", 1),
        ("ct_head_philips_tilt+16.5_28of58", "chest_ct", 1),
        ("mr_t1_siemens_jpegls14", "chest_ct", 0),
        ("mr_t1_siemens_jpegls14", "brain_mr", 1),
        ("mr_t1_siemens_enhanced", "brain_mr", 1),
        ("mr_enhanced_philips_siemens/Siemens", "brain_mr", 0),  # echo planar, of no weighting that is told
        ("failing_series/notavolume", "chest_ct", 0),
    ],
)
def test_at_most_one_series_is_chosen(folder, examination, chosen):
    assert sum(c for _, _, c, _ in verdicts(SHARED_DICOM / folder, examination)) == chosen


def roles(folder, rules=None):
    """What is chosen as what: {role: series description}, for the brain."""
    found = choose_series(read_study(folder), "brain_mr", rules)
    return {v.role: v.series.description for v in found if v.chosen}


def codes(folder, examination="brain_mr"):
    """[(series description, what it was chosen as, or why not)]"""
    found = choose_series(read_study(folder), examination)
    return [(v.series.description, v.role if v.chosen else v.reason.code) for v in found]


SAGITTAL = [0, 1, 0, 0, 0, -1]
T1, T2 = {"RepetitionTime": 500, "EchoTime": 10}, {"RepetitionTime": 5000, "EchoTime": 100}
FLAIR = {"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500}
SWI = {"ScanningSequence": "GR", "RepetitionTime": 28, "EchoTime": 20, "FlipAngle": 15}
DIFFUSION = {"ScanningSequence": ["EP", "SE"], "RepetitionTime": 5000, "EchoTime": 80}


def write_mr(folder, series, description, positions=HEIGHTS_MM, **attributes):
    """A series of the brain; positions along the normal of its orientation."""
    orientation = attributes.get("ImageOrientationPatient")
    axis = {None: 2, tuple(CORONAL): 1, tuple(SAGITTAL): 0}[orientation and tuple(orientation)]
    places = [[position if n == axis else -10 for n in range(3)] for position in positions]
    given = {"Modality": "MR", "BodyPartExamined": "BRAIN", "ScanningSequence": "SE"}
    given |= {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "SeriesDescription": description}
    write_series(folder, places, series=series, **given | attributes)


def write_diffusion(folder, series, description, b_values):
    """One SeriesInstanceUID with a volume for each b-value."""
    positions = [height for _ in b_values for height in HEIGHTS_MM]
    weights = [b for b in b_values for _ in HEIGHTS_MM]
    write_mr(folder, series, description, positions, DiffusionBValue=lambda k: weights[k], **DIFFUSION)


def test_a_brain_study_has_one_series_for_each_role(tmp_path):
    write_mr(tmp_path, 1, "localizer", ImageOrientationPatient=SAGITTAL, **T1)
    write_mr(tmp_path, 2, "T1 sag", ImageOrientationPatient=SAGITTAL, **T1)
    write_mr(tmp_path, 3, "T1 ax post", ContrastBolusAgent="Gadovist", **T1)
    write_mr(tmp_path, 4, "T2 ax", **T2)
    write_mr(tmp_path, 5, "FLAIR ax", **FLAIR)
    write_mr(tmp_path, 6, "FLAIR cor", ImageOrientationPatient=CORONAL, **FLAIR)
    write_diffusion(tmp_path, 7, "DWI", (0, 1000))
    write_mr(
        tmp_path,
        8,
        "ADC",
        ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"],
        DiffusionBValue=0,
        **DIFFUSION,
    )
    write_mr(tmp_path, 9, "SWI", **SWI)
    assert codes(tmp_path) == [
        ("localizer", "OTHER_SEQUENCE"),
        ("T1 sag", "T1"),
        ("T1 ax post", "T1 contrast"),
        ("T2 ax", "T2"),
        ("FLAIR ax", "FLAIR"),
        ("FLAIR cor", "OTHER_ORIENTATION"),
        ("DWI", "OTHER_SEQUENCE"),
        ("DWI", "DWI"),
        ("ADC", "ADC"),
        ("SWI", "SWI"),
    ]
    found = choose_series(read_study(tmp_path), "brain_mr")
    assert [v.why or v.reason.words for v in found] == [
        "Localizer by its description (LOCALIZ); not read for this examination.",
        "T1 by TR 500, TE 10 ms (spin echo), no contrast agent stated; sagittal, 2 mm, 5 slices: "
        "the only T1 series.",
        "T1 contrast by TR 500, TE 10 ms (spin echo), with a contrast agent stated; axial, 2 mm, 5 slices: "
        "the only T1 contrast series.",
        "T2 by TR 5000, TE 100 ms (spin echo); axial, 2 mm, 5 slices: the only T2 series.",
        "FLAIR by TR 9000, TE 120, TI 2500 ms (spin echo); axial, 2 mm, 5 slices: "
        "the preferred orientation of 2 FLAIR series.",
        "FLAIR as well, but it is coronal; the order of preference is axial, sagittal, coronal.",
        "B0 by b-value 0; not read for this examination.",
        "DWI by b-value 1000; axial, 2 mm, 5 slices: the only DWI series.",
        "ADC by image type ADC; axial, 2 mm, 5 slices: the only ADC series.",
        "SWI by TR 28, TE 20 ms, flip 15 deg (gradient echo); axial, 2 mm, 5 slices: the only SWI series.",
    ]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1)])
def test_only_what_lies_in_one_frame_of_reference_is_read_together(tmp_path, order):
    """The patient got up between the first series and the others."""
    write_mr(
        tmp_path, order[0], "T1 sag", ImageOrientationPatient=SAGITTAL, FrameOfReferenceUID="1.2.1", **T1
    )
    write_mr(tmp_path, order[1], "T2 ax", FrameOfReferenceUID="1.2.2", **T2)
    write_mr(tmp_path, order[2], "FLAIR ax", FrameOfReferenceUID="1.2.2", **FLAIR)
    assert sorted(codes(tmp_path)) == [("FLAIR ax", "FLAIR"), ("T1 sag", "OTHER_FRAME"), ("T2 ax", "T2")]


def test_the_second_best_in_the_right_frame_is_read(tmp_path):
    write_mr(tmp_path, 1, "T2 ax", FrameOfReferenceUID="1.2.2", **T2)
    write_mr(tmp_path, 2, "FLAIR ax", FrameOfReferenceUID="1.2.1", **FLAIR)
    write_mr(tmp_path, 3, "FLAIR cor", FrameOfReferenceUID="1.2.2", ImageOrientationPatient=CORONAL, **FLAIR)
    assert codes(tmp_path) == [("T2 ax", "T2"), ("FLAIR ax", "OTHER_FRAME"), ("FLAIR cor", "FLAIR")]


def test_the_unweighted_volume_of_a_diffusion_series_is_not_taken_for_t2(tmp_path):
    # Philips: spin echo without EP, and a name that tells nothing.
    weights = [0] * 5 + [1000] * 5
    write_mr(tmp_path, 1, "head", HEIGHTS_MM * 2, DiffusionBValue=lambda k: weights[k], **T2)
    assert codes(tmp_path) == [("head", "OTHER_SEQUENCE"), ("head", "DWI")]


@pytest.mark.parametrize(
    ("code", "attributes", "better", "worse"),
    [
        ("TWO_DIMENSIONAL", T1, {"SliceThickness": 1}, {"SliceThickness": 3}),
        ("OTHER_ORIENTATION", T1, {}, {"ImageOrientationPatient": SAGITTAL}),
        ("DERIVED", T1, {}, {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}),
        ("WRONG_BODY_PART", T1, {}, {"BodyPartExamined": None}),
        ("THREE_DIMENSIONAL", T2, {"SliceThickness": 4}, {"SliceThickness": 1}),
        ("OTHER_ORIENTATION", T2, {"SliceThickness": 5}, {"ImageOrientationPatient": CORONAL}),
        ("UNUSUAL_THICKNESS", T2, {"SliceThickness": 5}, {"SliceThickness": 10}),
        ("TWO_DIMENSIONAL", FLAIR, {"SliceThickness": 1}, {"SliceThickness": 5}),
        ("AFTER_CONTRAST", FLAIR, {}, {"ContrastBolusAgent": "Dotarem"}),
        ("OTHER_B_VALUE", DIFFUSION, {"DiffusionBValue": 1000}, {"DiffusionBValue": 2000}),
        ("OTHER_B_VALUE", DIFFUSION, {"DiffusionBValue": 1000}, {"DiffusionBValue": 500}),
        ("OTHER_B_VALUE", DIFFUSION, {"DiffusionBValue": 1200}, {"DiffusionBValue": 800}),
        ("OTHER_B_VALUE", DIFFUSION, {"DiffusionBValue": 1500}, {"DiffusionBValue": 3000}),
        (
            "ONE_DIRECTION",
            DIFFUSION | {"DiffusionBValue": 1000},
            {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]},
            {"DiffusionGradientOrientation": [1.0, 0.0, 0.0]},
        ),
        (
            "PLAIN_GRADIENT_ECHO",
            SWI,
            {"ImageType": ["ORIGINAL", "PRIMARY", "M", "SWI"]},
            {"RepetitionTime": 700},
        ),
    ],
)
@pytest.mark.parametrize("better_first", [True, False])
def test_each_sequence_has_its_own_preferences(tmp_path, code, attributes, better, worse, better_first):
    first, second = (better, worse) if better_first else (worse, better)
    write_mr(tmp_path, 1, "one", **attributes | first)
    write_mr(tmp_path, 2, "two", **attributes | second)
    found = choose_series(read_study(tmp_path), "brain_mr")
    lost = [v.reason.code for v in found if not v.chosen]
    assert lost == [code]
    assert [v.chosen for v in found] == [better_first, not better_first]


def test_equal_candidates_are_chosen_by_their_order(tmp_path):
    for number in (3, 1, 2):
        write_mr(tmp_path, number, f"T2 {number}", **T2)
    assert codes(tmp_path) == [("T2 1", "T2"), ("T2 2", "EQUAL_TO_CHOSEN"), ("T2 3", "EQUAL_TO_CHOSEN")]
    chosen = choose_series(read_study(tmp_path), "brain_mr")[0]
    assert chosen.why.endswith(": the first of 3 equal T2 series.")


@pytest.mark.parametrize(
    ("description", "attributes"),
    [
        ("TOF 3D", {"ScanningSequence": "GR", "RepetitionTime": 22, "EchoTime": 3.4, "FlipAngle": 18}),
        ("T1 DCE perfusion", T1),
        ("STIR cor", FLAIR | {"InversionTime": 160}),
        ("PD", T2 | {"EchoTime": 20}),
        ("phase", SWI | {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}),
        ("FA map", DIFFUSION | {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "FA"]}),
    ],
)
def test_other_sequences_are_never_chosen(tmp_path, description, attributes):
    write_mr(tmp_path, 1, description, **attributes)
    assert codes(tmp_path) == [(description, "OTHER_SEQUENCE")]


def test_an_unknown_sequence_stays_out_of_every_role(tmp_path):
    write_mr(tmp_path, 1, "brain")
    write_mr(tmp_path, 2, "T2", **T2)
    assert codes(tmp_path) == [("brain", "UNKNOWN_SEQUENCE"), ("T2", "T2")]
    words = choose_series(read_study(tmp_path), "brain_mr")[0].reason.words
    assert words == "Its sequence cannot be told: repetition and echo time are not both stated."


def test_where_no_sequence_is_told_none_is_chosen(tmp_path):
    """A functional series must not be read as anatomy because it is the best of a poor lot."""
    write_mr(tmp_path, 1, "thick", SliceThickness=5)
    write_mr(tmp_path, 2, "thin", SliceThickness=1)
    write_mr(tmp_path, 3, "localizer")
    assert codes(tmp_path) == [
        ("thick", "UNKNOWN_SEQUENCE"),
        ("thin", "UNKNOWN_SEQUENCE"),
        ("localizer", "OTHER_SEQUENCE"),
    ]


def test_series_of_the_spine_are_not_read_as_brain(tmp_path):
    write_mr(tmp_path, 1, "T2 sag C-SPINE", **T2)
    write_mr(tmp_path, 2, "T2 sag", BodyPartExamined="LSPINE", **T2)
    write_mr(tmp_path, 3, "T2 head and neck", BodyPartExamined="CSPINE", **T2)
    assert codes(tmp_path) == [
        ("T2 sag C-SPINE", "WRONG_BODY_PART"),
        ("T2 sag", "WRONG_BODY_PART"),
        ("T2 head and neck", "T2"),
    ]


def test_one_volume_of_a_dynamic_series_gives_way_to_a_plain_one(tmp_path):
    positions = HEIGHTS_MM * 3
    attributes = T1 | {"ContrastBolusAgent": "Gadovist"}
    write_mr(tmp_path, 1, "T1 run", positions, TemporalPositionIdentifier=lambda k: k // 5 + 1, **attributes)
    write_mr(tmp_path, 2, "T1 late", SliceThickness=6, **attributes)
    assert codes(tmp_path) == [("T1 run", "DYNAMIC")] * 3 + [("T1 late", "T1 contrast")]


def test_a_chest_study_as_a_scanner_sends_it(tmp_path):
    long = list(range(0, 40, 2))
    write_series(tmp_path, [0], series=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    kernels = {"Manufacturer": "SIEMENS", "SeriesDescription": None}
    write_series(tmp_path, long, series=2, ConvolutionKernel="B70f", SliceThickness=1, **kernels)
    write_series(tmp_path, long, series=3, ConvolutionKernel="B30f", SliceThickness=5, **kernels)
    write_series(tmp_path, long, series=4, ConvolutionKernel="B30f", SliceThickness=1, **kernels)
    write_series(tmp_path, long, series=5, ConvolutionKernel="Br40d", SliceThickness=2, **kernels)
    write_series(
        tmp_path,
        [[-10, y, 0] for y in long],
        series=6,
        ImageOrientationPatient=CORONAL,
        ImageType=["DERIVED", "SECONDARY", "MPR"],
    )
    write_series(tmp_path, long, series=7, ImageType=["DERIVED", "SECONDARY", "MIP"])
    write_series(tmp_path, [0], series=8, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="CT")
    found = choose_series(read_study(tmp_path))
    assert [v.reason and v.reason.code for v in found] == [
        "LOCALIZER",
        "SHARPER_KERNEL",
        "THICKER_THAN_CHOSEN",
        None,
        "THICKER_THAN_CHOSEN",
        "NOT_AXIAL",
        "DERIVED_PROJECTION",
        "SECONDARY_CAPTURE",
    ]
    assert [v.why for v in found if v.chosen] == [
        "axial, kernel B30f (soft), 1 mm, 20 slices: the thinnest of 3 soft axial CT series."
    ]
    assert {v.role for v in found} == {""}


PHASES = {1: "CHEST ABD ARTERIAL", 2: "CHEST ABD PORTAL VENOUS", 3: "CHEST ABD DELAYED"}


def test_the_abdomen_is_read_in_the_venous_phase(tmp_path):
    for number, description in PHASES.items():
        write_series(tmp_path, HEIGHTS_MM, series=number, SeriesDescription=description)
    assert codes(tmp_path, "abdomen_ct") == [
        ("CHEST ABD ARTERIAL", "OTHER_PHASE"),
        ("CHEST ABD PORTAL VENOUS", ""),
        ("CHEST ABD DELAYED", "OTHER_PHASE"),
    ]
    arterial, venous, _ = choose_series(read_study(tmp_path), "abdomen_ct")
    assert arterial.reason.words == (
        "Its contrast phase is arterial; the order of preference is venous, arterial, late, native."
    )
    assert venous.why.endswith(": the preferred contrast phase of 3 axial CT series.")


def test_the_chest_has_no_preferred_phase(tmp_path):
    for number, description in PHASES.items():
        write_series(tmp_path, HEIGHTS_MM, series=number, SeriesDescription=description)
    assert [code for _, code in codes(tmp_path, "chest_ct")] == ["", "EQUAL_TO_CHOSEN", "EQUAL_TO_CHOSEN"]


@pytest.mark.parametrize(
    ("maker", "soft", "sharp"),
    [
        ("SIEMENS", "B31f", "B70f"),
        ("Siemens Healthineers", "Br40d", "Bl57d"),
        ("SIEMENS", "I30f", "I70f"),
        ("SIEMENS", ["Qr40f", "3"], ["Br59f", "3"]),
        ("GE MEDICAL SYSTEMS", "STANDARD", "LUNG"),
        ("GE MEDICAL SYSTEMS", "SOFT", "BONEPLUS"),
        ("Philips", "B", "L"),
        ("Philips", "YB", "YC"),
        ("TOSHIBA", "FC08", "FC51"),
        ("Canon Medical Systems", "FC18", "FC81"),
        ("UIH", "B_SOFT_B", "B_SHARP_C"),
        ("", "B31f", "FC51"),
    ],
)
def test_kernels_of_each_manufacturer(tmp_path, maker, soft, sharp):
    write_series(tmp_path, HEIGHTS_MM, series=1, Manufacturer=maker, ConvolutionKernel=sharp)
    write_series(tmp_path, HEIGHTS_MM, series=2, Manufacturer=maker, ConvolutionKernel=soft)
    found = choose_series(read_study(tmp_path))
    assert found[0].reason.code == "SHARPER_KERNEL"
    assert "(soft)" in found[1].why


def test_a_kernel_means_what_its_own_manufacturer_means(tmp_path):
    # D is a sharp kernel of Philips; of another maker it is unknown.
    write_series(tmp_path, HEIGHTS_MM, Manufacturer="SIEMENS", ConvolutionKernel="D")
    assert "(unknown sharpness)" in choose_series(read_study(tmp_path))[0].why


def write_rules(folder, text):
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_site_changes_one_key_and_keeps_the_rest(tmp_path):
    rules = load_examinations(
        write_rules(tmp_path, '[examination.chest_ct]\ncriteria = ["sharpest_kernel", "thinnest"]')
    )
    write_series(tmp_path / "study", HEIGHTS_MM, series=1, ConvolutionKernel="B30f")
    write_series(tmp_path / "study", HEIGHTS_MM, series=2, ConvolutionKernel="B70f")
    soft, sharp = choose_series(read_study(tmp_path / "study"), rules=rules)
    assert soft.reason.code == "SOFTER_KERNEL"
    assert (
        sharp.why == "axial, kernel B70f (sharp), 2 mm, 5 slices: the sharpest kernel of 2 axial CT series."
    )
    assert rules["chest_ct"].body_words == load_examinations()["chest_ct"].body_words
    assert rules["brain_mr"] == load_examinations()["brain_mr"]


def test_a_site_adds_an_examination(tmp_path):
    text = """
        [examination.spine_ct]
        modality = "CT"
        orientations = ["sagittal", "axial"]
        body_words = ["spine"]
        min_coverage_mm = 20
        criteria = ["preferred_orientation", "thinnest"]
    """
    rules = load_examinations(write_rules(tmp_path, text))
    study = tmp_path / "study"
    write_series(study, list(range(0, 30, 2)), series=1)
    write_series(study, [[x, 0, 0] for x in range(0, 30, 2)], series=2, ImageOrientationPatient=SAGITTAL)
    write_series(study, HEIGHTS_MM, series=3)
    found = choose_series(read_study(study), "spine_ct", rules)
    assert [v.reason and v.reason.code for v in found] == ["OTHER_ORIENTATION", None, "SHORT_COVERAGE"]
    assert found[2].reason.words == "It covers 10 mm; at least 20 mm are wanted."


def test_a_site_wants_other_sequences(tmp_path):
    text = """
        [[examination.brain_mr.sequences]]
        role = "fluid"
        sequence = "T2"
    """
    rules = load_examinations(write_rules(tmp_path, text))
    write_mr(tmp_path / "study", 1, "T1", **T1)
    write_mr(tmp_path / "study", 2, "T2", **T2)
    assert roles(tmp_path / "study", rules) == {"fluid": "T2"}


def test_a_site_teaches_a_kernel(tmp_path):
    rules = load_examinations(
        write_rules(tmp_path, "[kernel.Acme]\nmanufacturer = 'Acme'\nsoft = ['^K1$']\nsharp = ['^K9$']")
    )
    write_series(tmp_path / "study", HEIGHTS_MM, Manufacturer="ACME CT", ConvolutionKernel="k9")
    assert "(sharp)" in choose_series(read_study(tmp_path / "study"), rules=rules)[0].why


CHEST = "[examination.chest_ct]\n"


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        (
            "UNKNOWN_CRITERION",
            CHEST + 'criteria = ["thinest"]',
            "site.toml: examination.chest_ct has no criterion 'thinest'. Did you mean 'thinnest'?",
        ),
        (
            "UNKNOWN_KEY",
            CHEST + "body_word = []",
            "site.toml: examination.chest_ct has no key 'body_word'. Did you mean 'body_words'?",
        ),
        (
            "UNKNOWN_KEY",
            "[examinations.chest_ct]",
            "site.toml has no table 'examinations'. Did you mean 'examination'?",
        ),
        (
            "UNKNOWN_KEY",
            "[[examination.brain_mr.sequences]]\nrole = 'T1'\nsequence = 'T1'\nbvalue = [1, 2]",
            "site.toml: examination.brain_mr.sequences[0] has no key 'bvalue'. Did you mean 'b_value'?",
        ),
        (
            "RULES_INVALID",
            "[[examination.brain_mr.sequences]]\nrole = 'T1'\nsequence = 'FLARE'",
            "site.toml: examination.brain_mr.sequences[0].sequence has no sequence 'FLARE'. "
            "Did you mean 'FLAIR'?",
        ),
        (
            "RULES_INVALID",
            "[[examination.brain_mr.sequences]]\nrole = 'T1'",
            "site.toml: examination.brain_mr.sequences needs a sequence in each table, each another one.",
        ),
        (
            "RULES_INVALID",
            "[[examination.brain_mr.sequences]]\nrole = 'T1'\nsequence = 'T1'\n" * 2,
            "site.toml: examination.brain_mr.sequences needs a role in each table, each another one.",
        ),
        (
            "RULES_INVALID",
            CHEST + 'orientations = ["axil"]',
            "site.toml: examination.chest_ct.orientations has no orientation 'axil'. Did you mean 'axial'?",
        ),
        (
            "RULES_INVALID",
            CHEST + 'modality = "MRI"',
            "site.toml: examination.chest_ct.modality is CT or MR, not 'MRI'. Did you mean 'MR'?",
        ),
        (
            "RULES_INVALID",
            CHEST + "thickness_mm = [5, 1]",
            "site.toml: examination.chest_ct.thickness_mm is two numbers, the lower first, not [5, 1].",
        ),
        (
            "RULES_INVALID",
            CHEST + "thickness_mm = 5",
            "site.toml: examination.chest_ct.thickness_mm is two numbers, the lower first, not 5.",
        ),
        (
            "RULES_INVALID",
            CHEST + "min_coverage_share = 50",
            "site.toml: examination.chest_ct.min_coverage_share is a share from 0 to 1, not 50.",
        ),
        (
            "RULES_INVALID",
            CHEST + "min_coverage_mm = true",
            "site.toml: examination.chest_ct.min_coverage_mm is a number from 0 up, not True.",
        ),
        (
            "RULES_INVALID",
            CHEST + "body_words = 'CHEST'",
            "site.toml: examination.chest_ct.body_words is a list of texts, not 'CHEST'.",
        ),
        (
            "RULES_INVALID",
            CHEST + "phases = ['portal']",
            "site.toml: examination.chest_ct has no phase 'portal'. Did you mean 'arterial'?",
        ),
        (
            "RULES_INVALID",
            "[kernel.Acme]\nmanufacturer = 'A'\nsoft = ['(']",
            "site.toml: kernel.Acme.soft holds '(', which is no regular expression",
        ),
        (
            "RULES_INVALID",
            "[kernel.Acme]\nsoft = ['K1']",
            "site.toml: kernel.Acme needs manufacturer.",
        ),
        (
            "RULES_INVALID",
            "[examination.knee_mr]\nmodality = 'MR'",
            "site.toml: examination.knee_mr needs criteria.",
        ),
        ("RULES_INVALID", "examination = 3", "site.toml: examination needs a name behind it"),
        ("RULES_UNREADABLE", "[examination", "site.toml is not TOML in UTF-8"),
    ],
)
def test_a_mistake_in_the_rules_is_named_with_its_place(tmp_path, code, text, words):
    with pytest.raises(ConfigError) as caught:
        load_examinations(write_rules(tmp_path, text))
    assert caught.value.code == code
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_rules_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^none\.toml cannot be read: No such file"):
        load_examinations(tmp_path / "none.toml")


def test_every_verdict_has_words(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1)
    write_series(tmp_path, HEIGHTS_MM, series=2, ConvolutionKernel="B70f")
    write_series(tmp_path, HEIGHTS_MM, series=3, Modality="MR")
    write_series(tmp_path, [0, 2], series=4)
    for examination in EXAMINATIONS:
        for verdict in choose_series(read_study(tmp_path), examination):
            assert bool(verdict.why) == verdict.chosen
            assert bool(verdict.reason) != verdict.chosen
