"""Which series of a study is read, and why not the others."""

import pytest
from dicom_series import SHARED_DICOM, write_series

from mla_med.dicom.select import choose_series
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
    write_series(tmp_path, HEIGHTS_MM, series=2, Modality="MR", BodyPartExamined="BRAIN")
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
        ("mr_enhanced_philips_siemens/Siemens", "brain_mr", 1),
        ("failing_series/notavolume", "chest_ct", 0),
    ],
)
def test_at_most_one_series_is_chosen(folder, examination, chosen):
    assert sum(c for _, _, c, _ in verdicts(SHARED_DICOM / folder, examination)) == chosen
