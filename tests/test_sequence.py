"""Which MR sequence a header belongs to. The values are those of real protocols of each vendor."""

import pytest
from dicom_series import MR_CLASS, write_series

from mla_med.dicom.header import read_headers
from mla_med.dicom.sequence import contrast_stated, sequence_of

SIEMENS, GE, PHILIPS = "SIEMENS", "GE MEDICAL SYSTEMS", "Philips Medical Systems"
CANON, TOSHIBA, UIH, HITACHI = "CANON_MEC", "TOSHIBA_MEC", "UIH", "Hitachi Medical Corporation"


def header(folder, maker="", **attributes):
    """The header of one image as the scanner of this maker writes it."""
    image_type = attributes.pop("ImageType", ["ORIGINAL", "PRIMARY", "M", "ND"])
    private = attributes.pop("b_value", None)
    if private is not None:
        attributes["DiffusionBValue"] = private
    (path,) = write_series(
        folder,
        [0],
        SOPClassUID=MR_CLASS,
        Modality="MR",
        Manufacturer=maker,
        ImageType=image_type,
        **attributes,
    )
    return read_headers(path)[0]


def told(folder, maker, description, family=(), variant=(), tr=None, te=None, ti=None, flip=None, **more):
    """The sequence of a header with these times in ms."""
    more |= {"ScanningSequence": list(family), "SequenceVariant": list(variant)}
    more |= {"RepetitionTime": tr, "EchoTime": te, "InversionTime": ti, "FlipAngle": flip}
    return sequence_of(header(folder, maker, **more), description)


IR, SE_IR, GR_IR, EP_SE = ["IR"], ["SE", "IR"], ["GR", "IR"], ["EP", "SE"]
SK_SP_MP, SK_SP = ["SK", "SP", "MP"], ["SK", "SP"]

BY_TIMES = [
    # T1
    ("T1", SIEMENS, "t1_mprage_sag_p2_iso", GR_IR, SK_SP_MP, 2300, 2.98, 900, 9),
    ("T1", SIEMENS, "anat-T1w_acq-tfl", ["GR"], ["SK"], 1800, 2.41, 900, 9),
    ("T1", SIEMENS, "t1_space_sag", ["SE"], SK_SP, 700, 11, None, 120),
    ("T1", SIEMENS, "t1_se_tra", ["SE"], ["SP"], 550, 8.7, None, 90),
    ("T1", SIEMENS, "t1_fl2d_tra", ["GR"], ["SP"], 250, 2.5, None, 70),
    ("T1", GE, "Ax T1 BRAVO", GR_IR, ["SS", "SP", "SK"], 8.2, 3.2, 450, 12),
    ("T1", GE, "3D Ax T1 MP-RAGE", ["RM", "IR"], ["NONE"], 2217.66, 3.17, 1000, 8),
    ("T1", GE, "Sag T1 FLAIR", SE_IR, ["SK"], 2500, 24, 860, 111),
    ("T1", PHILIPS, "sT1W_3D_TFE", ["GR"], ["MP"], 8.1, 3.7, None, 8),
    ("T1", PHILIPS, "T1W_SE", ["SE"], ["OTHER"], 600, 15, None, 70),
    ("T1", UIH, "t1_gre_fsp_3d_sag", GR_IR, ["NONE"], 7.25, 3.1, 750, 10),
    ("T1", CANON, "3D FFE", ["GR"], ["SP"], 5.8, 2.7, None, 12),
    ("T1", HITACHI, "GEIR", GR_IR, ["NONE"], 2000, 4.4, 900, 8),
    # T2 and PD
    ("T2", SIEMENS, "t2_tse_tra", ["SE"], ["SK", "SP", "OSP"], 6000, 99, None, 150),
    ("T2", SIEMENS, "T2w_SPC", ["SE"], SK_SP, 3200, 563, None, 120),
    ("T2", GE, "Ax T2 FRFSE", ["SE"], ["SK"], 4500, 102, 0, 142),
    ("T2", GE, "Sag T2 CUBE", ["SE"], ["SK"], 2500, 90, None, 90),
    ("T2", PHILIPS, "T2W_TSE", ["SE"], ["SK"], 3000, 80, None, 90),
    ("T2", PHILIPS, "3D VISTA", ["SE"], ["SK"], 2500, 250, None, 90),
    ("T2", UIH, "t2_fse_tra", ["SE"], ["NONE"], 4400, 95, None, 90),
    ("T2", TOSHIBA, "FSE2D_T2", ["SE"], ["SK"], 4000, 105, None, 90),
    ("T2", SIEMENS, "pd+t2_tse_tra", ["SE"], ["SK"], 3200, 95, None, 150),
    ("PD", SIEMENS, "pd+t2_tse_tra", ["SE"], ["SK"], 3200, 16, None, 150),
    ("PD", GE, "FSE PD AXIAL OBL", ["SE"], ["SK"], 2300, 22, None, 90),
    # Inversion
    ("FLAIR", SIEMENS, "t2_tirm_tra_dark-fluid", SE_IR, SK_SP_MP, 9000, 89, 2500, 150),
    ("FLAIR", SIEMENS, "t2_spc_da-fl_sag", SE_IR, SK_SP_MP, 5000, 397, 1800, 120),
    ("FLAIR", GE, "Ax T2 FLAIR", SE_IR, ["SK"], 9500, 120, 2250, 160),
    ("FLAIR", PHILIPS, "FLAIR_longTR", IR, ["SK"], 11000, 125, 2800, 90),
    ("FLAIR", UIH, "t2_fse_mx_3d_flair", SE_IR, ["NONE"], 6000, 400, 1900, 60),
    ("FLAIR", CANON, "FLAIR", SE_IR, ["SK"], 10000, 105, 2700, 90),
    ("FLAIR", HITACHI, "", IR, ["NONE"], 9000, 110, 2300, 90),
    ("STIR", SIEMENS, "t2_tirm_cor", SE_IR, SK_SP_MP, 4500, 60, 160, 150),
    # Susceptibility
    ("SWI", SIEMENS, "t2_fl2d_tra_hemo", ["GR"], ["SP"], 620, 19.9, None, 20),
    ("SWI", SIEMENS, "SWI_Images", ["GR"], ["SP"], 28, 20, None, 15),
    ("SWI", GE, "3D Ax SWAN", ["GR"], ["SK"], 39, 24.6, None, 15),
    ("SWI", PHILIPS, "T2_FFE", ["GR"], ["SP"], 700, 16.1, None, 18),
    ("SWI", UIH, "gre_swi_tra", ["GR"], ["NONE"], 28, 20, None, 15),
    ("SWI", CANON, "FSBB", ["GR"], ["SP"], 29, 20, None, 15),
]


@pytest.mark.parametrize(
    ("kind", "maker", "description", "family", "variant", "tr", "te", "ti", "flip"), BY_TIMES
)
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_times_tell_the_weighting(
    tmp_path, kind, maker, description, family, variant, tr, te, ti, flip, named
):
    found = told(tmp_path, maker, description if named else "", family, variant, tr, te, ti, flip)
    assert found.kind == kind


@pytest.mark.parametrize(
    ("kind", "description"),
    [
        ("T1", "AXT1"),
        ("T1", "sT1W_3D_TFE"),
        ("T1", "MP2RAGE_UNI"),
        ("T1", "3D BRAVO"),
        ("T1", "AX T1 FLAIR"),
        ("T1", "T1WI"),
        ("T2", "AX T2 PROPELLER"),
        ("T2", "t2w"),
        ("T2", "矢状 T2"),
        ("FLAIR", "AX FLAIR FS"),
        ("FLAIR", "T2_FLAIR"),
        ("FLAIR", "t2_tirm_dark-fluid"),
        ("FLAIR", "3DFLAIR"),
        ("STIR", "COR STIR"),
        ("PD", "AX PD"),
        ("PD", "Densité de protons"),
        ("SWI", "SWI3D_tra"),
        ("SWI", "SWIp"),
        ("SWI", "VEN_BOLD"),
        ("SWI", "AX T2* GRE"),
        ("SWI", "T2_star"),
        ("SWI", "AX T2 GRE"),
        ("SWI", "T2W_FFE"),
        ("SWI", "磁敏感"),
        ("", "AX BRAIN"),
        ("", "PD + T2"),
        ("", "T1 T2"),
        ("", "T12 level"),
        ("", "test 10"),
        ("", ""),
    ],
)
def test_names_tell_the_weighting_where_no_times_are_stated(tmp_path, kind, description):
    assert told(tmp_path, "", description).kind == kind


@pytest.mark.parametrize(
    ("kind", "description"),
    [
        ("localizer", "localizer"),
        ("localizer", "3-PL LOC"),
        ("localizer", "AAHead_Scout_64ch-head-coil"),
        ("localizer", "SURVEY"),
        ("localizer", "3 Plane Localiser"),
        ("localizer", "定位像"),
        ("calibration scan", "ASSET Cal"),
        ("calibration scan", "Ref_Scan"),
        ("angiogram", "TOF_3D_multi-slab"),
        ("angiogram", "s3DI_MC_TOF"),
        ("angiogram", "MRA COW"),
        ("angiogram", "MRV"),
        ("angiogram", "tof3d_tra_uCS"),
        ("angiogram", "CE-MRA TRICKS"),
        ("perfusion", "ep2d_perf_p2"),
        ("perfusion", "DSC 50 phases"),
        ("perfusion", "3D pCASL"),
        ("perfusion", "rCBV"),
        ("perfusion", "T1 DCE dynamic"),
        ("functional MR", "ep2d_bold_rest"),
        ("functional MR", "Ax fMRI"),
        ("spectroscopy", "MRS SVS 35"),
        ("field map", "gre_field_mapping"),
        ("field map", "B0 map"),
        ("quantitative map", "T1 map"),
        ("quantitative map", "QSM"),
        ("subtraction", "T1 SUB"),
        ("projection", "mIP_Images(SW)"),
        ("projection", "AX MIP"),
        ("projection", "AX SWI MIN IP"),
        ("phase image", "FILT_PHA: Ax SWAN"),
        ("localizer", "Locator 3axis"),
        ("DIR", "DIR SPACE"),
        ("MP2RAGE inversion image", "mp2rage_INV2"),
        ("balanced gradient echo", "CISS_tra"),
        ("balanced gradient echo", "3D FIESTA-C"),
    ],
)
def test_a_purpose_that_is_named_outweighs_the_times(tmp_path, kind, description):
    # By its times, a T1-weighted gradient echo.
    found = told(tmp_path, "", description, ["GR"], ["SP"], 8, 3, None, 12)
    assert found.kind == kind


@pytest.mark.parametrize(
    "description",
    ["t1_mprage_sub-01", "T1 post fossa", "t1 fat suppressed", "AX T1 COMPRESSED SENSE", "T1 LOCAL SHIFT"],
)
def test_words_that_only_look_like_a_purpose_do_not_count(tmp_path, description):
    assert told(tmp_path, "", description, ["GR"], ["SP"], 8, 3, None, 12).kind == "T1"


@pytest.mark.parametrize(
    ("kind", "image_type"),
    [
        ("ADC", ["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "ND"]),
        ("ADC", ["DERIVED", "PRIMARY", "ADC", "ADC", "UNSPECIFIED"]),
        ("diffusion map", ["DERIVED", "PRIMARY", "DIFFUSION", "FA", "ND"]),
        ("phase image", ["ORIGINAL", "PRIMARY", "P", "ND"]),
        ("phase image", ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]),
        ("phase image", ["DERIVED", "PRIMARY", "I", "SE"]),
        ("projection", ["ORIGINAL", "PRIMARY", "MNIP", "ND"]),
        ("perfusion", ["DERIVED", "PRIMARY", "PERFUSION", "TTP"]),
        ("field map", ["ORIGINAL", "PRIMARY", "T1", "FIELD_MAP"]),
        ("fat image", ["DERIVED", "PRIMARY", "DIXON", "F"]),
        ("localizer", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        ("SWI", ["ORIGINAL", "PRIMARY", "M", "SWI", "NORM"]),
        ("T2", ["ORIGINAL", "PRIMARY", "M_SE", "M", "SE"]),
        ("T2", ["ORIGINAL", "PRIMARY", "OTHER"]),
        ("T2", ["ORIGINAL", "PRIMARY", "M", "IR"]),
    ],
)
def test_the_image_type_outweighs_names_and_times(tmp_path, kind, image_type):
    found = told(tmp_path, "", "t2_tse_tra", ["SE"], ["SK"], 6000, 99, ImageType=image_type)
    assert found.kind == kind


@pytest.mark.parametrize(
    ("kind", "b_value", "maker", "description", "more"),
    [
        ("DWI", 1000, SIEMENS, "ep2d_diff_3scan_trace_p2", {"b_value": 1000}),
        ("DWI", 1000, SIEMENS, "ep2d_diff", {"SequenceName": "*ep_b1000t"}),
        ("b0", 0, SIEMENS, "ep2d_diff", {"SequenceName": "*ep_b0"}),
        ("DWI", 1000, SIEMENS, "resolve_3scan_TRACEW", {"SequenceName": "*re_b1000t"}),
        ("b0", 50, SIEMENS, "ep2d_diff", {"b_value": 50}),
        ("DWI", 400, SIEMENS, "ep2d_diff", {"b_value": 400}),
        ("DWI", 1000, GE, "Ax DWI b=1000", {}),
        ("b0", 0, GE, "Ax DWI", {"b_value": 0}),
        ("DWI", 1000, PHILIPS, "sDWI", {"b_value": 1000}),
        ("b0", 0, PHILIPS, "dti_ax", {"b_value": 0}),
        ("DWI", 1000, CANON, "DWI", {"b_value": 1000, "SequenceName": "SEEPI2D+0.7"}),
        ("DWI", 990, UIH, "epi_hardi64_2b", {"b_value": 990, "SequenceName": "epi_dti"}),
        ("DWI", 1000, "", "b1000", {"b_value": 1000}),
        ("ADC", None, GE, "Apparent Diffusion Coefficient (mm2/s)", {"ImageType": ["DERIVED", "SECONDARY"]}),
        (
            "ADC",
            None,
            GE,
            "ADC (10^-6 mm/s)",
            {"ImageType": ["DERIVED", "PRIMARY", "OTHER"], "b_value": 1000},
        ),
        ("ADC", None, PHILIPS, "dADC", {}),
        ("ADC", None, GE, "Average DC", {}),
        ("diffusion map", None, GE, "Fractional Aniso.", {}),
        ("diffusion map", None, PHILIPS, "eADC", {"ImageType": ["DERIVED", "PRIMARY", "OTHER"]}),
        ("diffusion map", None, GE, "Exponential ADC", {"ImageType": ["DERIVED", "PRIMARY", "OTHER"]}),
        ("DWI", 1000, GE, "Ax DWI ADC", {"b_value": 1000}),
        ("DWI", 1000, GE, "Ax DWI eADC", {"b_value": 1000}),
    ],
)
def test_diffusion_is_told_by_its_b_value(tmp_path, kind, b_value, maker, description, more):
    found = told(tmp_path, maker, description, EP_SE, ["NONE"], 5000, 80, None, 90, **more)
    assert (found.kind, found.b_value) == (kind, b_value)


@pytest.mark.parametrize("description", ["DWI", "ep2d_diff_b0_b1000", "Ax DWI TENSOR"])
def test_diffusion_without_a_b_value_stays_unknown(tmp_path, description):
    found = told(tmp_path, "", description, EP_SE, [], 5000, 80)
    assert found.kind == ""
    assert found.words == "it is diffusion imaging, but its b-value is not stated"


def test_a_b_value_of_zero_alone_makes_no_diffusion_series(tmp_path):
    # GE and Philips write one into every image.
    found = told(tmp_path, GE, "Ax T2 FSE", ["SE"], ["SK"], 4500, 102, None, 142, b_value=0)
    assert found.kind == "T2"


def test_a_b_value_of_zero_beside_weighted_volumes_is_b0(tmp_path):
    unweighted = header(tmp_path, PHILIPS, ScanningSequence="SE", RepetitionTime=4500, EchoTime=80, b_value=0)
    assert sequence_of(unweighted, "head").kind == "T2"
    assert sequence_of(unweighted, "head", in_diffusion_series=True).kind == "b0"


def test_echo_planar_without_diffusion_stays_unknown(tmp_path):
    # Functional, perfusion and T2* series have the same times.
    assert told(tmp_path, SIEMENS, "ep2d", ["EP", "GR"], ["SK"], 2000, 30, None, 90).kind == ""


def test_a_gradient_echo_between_t1_and_time_of_flight_stays_unknown(tmp_path):
    assert told(tmp_path, "", "", ["GR"], ["SP"], 24, 3.4, None, 20).kind == ""


def test_a_bolus_angiogram_is_not_taken_for_t1(tmp_path):
    assert told(tmp_path, "", "", ["GR"], ["SP"], 3.2, 1.1, None, 25).kind == ""


def test_balanced_gradient_echoes_are_not_taken_for_t1(tmp_path):
    assert told(tmp_path, "", "", ["GR"], ["SS", "SK"], 5.9, 2.6, None, 35).kind == ""


def test_the_times_outweigh_a_wrong_name_and_say_so(tmp_path):
    found = told(tmp_path, "", "T2 TSE", ["SE"], ["SK"], 500, 10, None, 90)
    assert found.kind == "T1"
    assert found.words == (
        "TR 500, TE 10 ms (spin echo), although its name says T2, no contrast agent stated"
    )


@pytest.mark.parametrize("family", [["SE"], SE_IR])
def test_a_name_fills_in_an_inversion_time_that_is_not_stated(tmp_path, family):
    assert told(tmp_path, "", "AX FLAIR", family, ["SK"], 9000, 120, None, 90).kind == "FLAIR"
    assert told(tmp_path, "", "COR STIR", family, ["SK"], 4000, 35, 0, 90).kind == "STIR"


def test_inversion_recovery_without_time_and_name_stays_unknown(tmp_path):
    assert told(tmp_path, "", "", SE_IR, ["SK"], 9000, 120, None, 90).kind == ""


def test_a_stated_inversion_time_outweighs_the_name(tmp_path):
    assert told(tmp_path, "", "FLAIR", SE_IR, ["SK"], 4500, 60, 160, 90).kind == "STIR"


@pytest.mark.parametrize(
    ("kind", "name", "tr", "te", "ti", "flip"),
    [
        ("T1", "*tfl3d1_16ns", 2300, 2.98, 900, 9),
        ("FLAIR", "*spcir_278ns", 5000, 388, 1800, 120),
        ("T2", "*tse2d1_11", 6000, 99, None, 150),
        ("T1", "T1TFE", 8.1, 3.7, None, 8),
        ("SWI", "*swi3d1r", 28, 20, None, 15),
        ("field map", "*fm2d2r", 500, 4.92, None, 60),
        ("angiogram", "*fl3d1r_t70", 22, 3.7, None, 18),
        ("", "*epfid2d1_64", 2000, 30, None, 90),
        ("T2", "FSE2D", 4000, 105, None, 90),
        ("", "unheard-of", 4000, 105, None, None),
    ],
)
def test_the_sequence_name_stands_in_for_scanning_sequence(tmp_path, kind, name, tr, te, ti, flip):
    found = told(tmp_path, "", "", [], [], tr, te, ti, flip, SequenceName=name)
    assert found.kind == kind


def test_the_protocol_is_asked_where_the_description_is_silent(tmp_path):
    assert told(tmp_path, PHILIPS, "head", ProtocolName="WIP T2W_TSE").kind == "T2"


def test_the_protocol_of_ge_names_the_examination_and_is_not_asked(tmp_path):
    assert told(tmp_path, GE, "head", ProtocolName="BRAIN T2").kind == ""


@pytest.mark.parametrize(
    ("contrast", "agent", "description"),
    [
        (True, "Gadovist", "t1_mprage"),
        (True, "Gadovist", "t1_mprage pre"),
        (True, "", "t1_mprage_POST"),
        (True, None, "AX T1 +C"),
        (True, None, "T1 GD"),
        (True, None, "t1_se_tra_KM"),
        (True, None, "T1 3D GAD"),
        (True, None, "t1_gre_fsp_3d_sag_ACS+C"),
        (True, None, "T1 增强"),
        (True, None, "T1 造影"),
        (True, None, "T1 ax con contrasto"),
        (None, None, "t1_mprage"),
        (None, "", "t1_mprage"),
        (None, "NONE", "t1_mprage"),
        (None, "No contrast", "t1_mprage"),
        (None, None, "T1 post fossa"),
        (None, None, "T1 POSTERIOR"),
        (False, None, "T1 PRE CONTRAST"),
        (False, None, "T1 W/O"),
        (False, None, "T1 without contrast"),
        (False, None, "T1 non-contrast"),
        (False, None, "t1_se_nativ"),
        (None, None, "T1 pre and post"),
    ],
)
def test_a_contrast_agent_is_told_by_header_then_name(tmp_path, contrast, agent, description):
    found = header(tmp_path, ContrastBolusAgent=agent, ScanningSequence="SE", RepetitionTime=500, EchoTime=10)
    assert contrast_stated(found, description) is contrast
    assert sequence_of(found, description).kind == ("T1 contrast" if contrast else "T1")


def test_an_agent_beside_a_name_that_says_before_is_told(tmp_path):
    found = told(tmp_path, "", "T1 PRE", ["SE"], [], 500, 10, ContrastBolusAgent="Dotarem")
    assert found.words.endswith("with a contrast agent stated, although its name says before")


def test_what_it_was_told_by_never_quotes_free_text(tmp_path):
    free = {"ProtocolName": "Doe T2", "ContrastBolusAgent": "for Doe", "SequenceName": "Doe"}
    found = told(tmp_path, "", "Doe^Jane T1", ["SE"], [], 500, 10, **free)
    assert found.words == "TR 500, TE 10 ms (spin echo), with a contrast agent stated"


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("mr_t1_siemens_jpegls14", "T1"),
        ("mr_t1_siemens_enhanced", "T1"),
        ("mr_head_ge_oblique", "PD"),
        ("generic_series/anatomical/001", "FLAIR"),
        ("generic_series/anatomical/002_non_isotropic", ""),
        ("failing_series/sliceorientation/001", "T2"),
        ("mr_enhanced_philips_siemens/Philips", "field map"),
        ("mr_enhanced_philips_siemens/Siemens", ""),
        ("mr_transfer_syntaxes/In", ""),
    ],
)
def test_real_series(real_series, folder, kind):
    first = min(path for path in real_series(folder).rglob("*") if _is_dicom(path))
    for found in read_headers(first):
        assert sequence_of(found, found.description).kind == kind


def _is_dicom(path):
    return path.is_file() and path.read_bytes()[128:132] == b"DICM"
