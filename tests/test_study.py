"""What read_study makes of folders as hospitals have them, and of folders that hold something else."""

import os
import shutil
import socket
import zlib

import pydicom
import pytest
from dicom_series import PACKAGED, SHARED_DICOM, write_enhanced, write_series

from mla_med.dicom.study import read_study
from mla_med.errors import StudyError
from mla_med.types import ClinicalContext, Sex

HEIGHTS_MM = [0, 2, 4, 6, 8]


def codes(study):
    return [problem.code for problem in study.problems]


def test_two_series_in_one_folder_stay_two(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1)
    write_series(tmp_path, [1, 3, 5, 7, 9], series=2)
    study = read_study(tmp_path)
    assert [s.series_uid for s in study.series] == ["2.25.1", "2.25.2"]
    assert [len(s.instances) for s in study.series] == [5, 5]


def test_folders_of_any_depth_and_any_file_names_are_one_study(tmp_path):
    write_series(tmp_path / "a" / "b", HEIGHTS_MM, prefix="IM.")
    write_series(tmp_path / "c", HEIGHTS_MM, series=2, prefix="äß 肺 ")
    study = read_study(tmp_path)
    assert study.study_uid == "2.25.1000"
    assert len(study.series) == 2
    assert study.problems == ()


def test_one_file_is_a_study_too(tmp_path):
    write_enhanced(tmp_path / "enhanced", HEIGHTS_MM)
    study = read_study(tmp_path / "enhanced")
    assert [i.frame for i in study.series[0].instances] == [0, 1, 2, 3, 4]


def test_b_values_under_one_uid_are_two_series(tmp_path):
    mr = {"Modality": "MR", "BodyPartExamined": "BRAIN"}
    write_series(tmp_path, HEIGHTS_MM, prefix="b0-", DiffusionBValue=0.0, **mr)
    write_series(
        tmp_path,
        HEIGHTS_MM,
        prefix="b1000-",
        DiffusionBValue=1000.0,
        SOPInstanceUID=lambda k: f"2.25.5{k}",
        **mr,
    )
    assert [len(s.instances) for s in read_study(tmp_path).series] == [5, 5]


def test_echoes_of_an_enhanced_file_are_two_series(tmp_path):
    write_enhanced(tmp_path / "enhanced", HEIGHTS_MM, echo_times=(10.0, 80.0))
    first, second = read_study(tmp_path).series
    assert [i.frame for i in first.instances] == [0, 2, 4, 6, 8]
    assert [i.frame for i in second.instances] == [1, 3, 5, 7, 9]


def test_acquisition_numbers_split_only_where_positions_repeat(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1, AcquisitionNumber=lambda k: k)
    write_series(tmp_path, HEIGHTS_MM, series=2, AcquisitionNumber=1)
    second = {"SOPInstanceUID": lambda k: f"2.25.9{k}", "AcquisitionNumber": 2}
    write_series(tmp_path, HEIGHTS_MM, series=2, prefix="again-", **second)
    assert [len(s.instances) for s in read_study(tmp_path).series] == [5, 5, 5]


def test_a_localizer_inside_a_series_is_parted_from_it(tmp_path):
    write_series(tmp_path, HEIGHTS_MM)
    localizer = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "SOPInstanceUID": "2.25.99"}
    write_series(tmp_path, [0], prefix="loc-", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **localizer)
    stack, single = read_study(tmp_path).series
    assert len(stack.instances) == 5
    assert single.image_type[2] == "LOCALIZER"


def test_what_is_not_dicom_is_named_with_its_place(tmp_path):
    write_series(tmp_path, HEIGHTS_MM)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("x" * 3000)
    (tmp_path / "empty").touch()
    study = read_study(tmp_path)
    assert codes(study) == ["NOT_DICOM", "NOT_DICOM"]
    assert [p.words for p in study.problems] == ["empty is empty.", "sub/notes.txt is not a DICOM file."]


def test_a_file_cut_in_its_header_is_truncated(tmp_path):
    paths = write_series(tmp_path, HEIGHTS_MM)
    content = paths[4].read_bytes()
    # In the middle of the value that follows the tag of SeriesDescription.
    cut = content.index(b"series 1")
    paths[4].write_bytes(content[: cut + 2])
    study = read_study(tmp_path)
    assert codes(study) == ["TRUNCATED"]
    assert len(study.series[0].instances) == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_pipes_sockets_and_links_are_never_opened(tmp_path):
    folder = tmp_path / "study"
    paths = write_series(folder, HEIGHTS_MM)
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(paths[0])
    outside = tmp_path / "elsewhere"
    write_series(outside, HEIGHTS_MM, series=2)
    (folder / "linked-folder").symlink_to(outside)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        study = read_study(folder)
    assert codes(study) == ["NOT_A_REGULAR_FILE"] * 4
    assert len(study.series) == 1
    assert len(study.series[0].instances) == 5


def test_dicomdir_of_other_studies_is_said_and_harms_none(tmp_path):
    write_series(tmp_path, HEIGHTS_MM)
    shutil.copy(PACKAGED / "DICOMDIR", tmp_path / "DICOMDIR")
    assert set(codes(read_study(tmp_path))) == {"MISSING_STUDY"}
    assert len(read_study(tmp_path / "DICOMDIR").series) == 1


def test_a_data_set_without_preamble_is_read(tmp_path):
    for path in write_series(tmp_path, HEIGHTS_MM):
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True)
    study = read_study(tmp_path)
    assert len(study.series[0].instances) == 5


def test_a_missing_folder_says_what_to_give(tmp_path):
    with pytest.raises(StudyError, match="Give the folder") as error:
        read_study(tmp_path / "nowhere")
    assert error.value.code == "PATH_MISSING"


@pytest.mark.parametrize("name", ["", "report.txt"])
def test_no_dicom_is_one_line_with_advice(tmp_path, name):
    (tmp_path / "report.txt").write_text("No acute findings.")
    with pytest.raises(StudyError, match="Give the folder") as error:
        read_study(tmp_path / name)
    assert error.value.code == "NO_DICOM"
    assert "\n" not in str(error.value)


def test_a_pipe_as_path_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StudyError) as error:
        read_study(tmp_path / "pipe")
    assert error.value.code == "NOT_A_REGULAR_FILE"


def test_several_studies_are_counted_and_named_by_uid(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1)
    write_series(tmp_path, HEIGHTS_MM, series=2, StudyInstanceUID="2.25.2000")
    with pytest.raises(StudyError, match=r"2 studies \(2\.25\.1000, 2\.25\.2000\)") as error:
        read_study(tmp_path)
    assert error.value.code == "SEVERAL_STUDIES"


def test_mixed_patients_are_refused_without_naming_them(tmp_path):
    write_series(tmp_path, HEIGHTS_MM, series=1)
    write_series(tmp_path, HEIGHTS_MM, series=2, PatientID="MRN-0815")
    with pytest.raises(StudyError) as error:
        read_study(tmp_path)
    assert error.value.code == "MIXED_PATIENTS"
    assert "MRN" not in str(error.value)
    assert "Doe" not in str(error.value)


ANNA = {"PatientBirthDate": "19500101", "PatientSex": "F"}
BRUNO = {"PatientBirthDate": "19990101", "PatientSex": "M"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(ANNA, BRUNO, id="one ID, two people"),
        pytest.param({}, {"PatientID": None}, id="no ID beside one"),
        pytest.param(ANNA, {"PatientID": None} | BRUNO, id="no ID, another person"),
        pytest.param({}, {"PatientID": None} | BRUNO, id="no ID, nobody to compare with"),
    ],
)
def test_people_are_told_apart_by_more_than_the_id(tmp_path, one, other):
    write_series(tmp_path, HEIGHTS_MM, series=1, **one)
    write_series(tmp_path, HEIGHTS_MM, series=2, **other)
    with pytest.raises(StudyError, match="another patient's series") as error:
        read_study(tmp_path)
    assert error.value.code == "MIXED_PATIENTS"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(ANNA, ANNA, id="the same"),
        pytest.param(ANNA, {}, id="said once"),
        pytest.param(ANNA, {"PatientID": None} | ANNA, id="no ID, the same person"),
        pytest.param({"PatientID": None}, {"PatientID": None}, id="nobody named"),
        pytest.param(ANNA, {"PatientSex": "F"}, id="no birth date"),
    ],
)
def test_one_person_is_one_whatever_is_left_out(tmp_path, one, other):
    write_series(tmp_path, HEIGHTS_MM, series=1, **one)
    write_series(tmp_path, HEIGHTS_MM, series=2, **other)
    assert len(read_study(tmp_path).series) == 2


def test_context_is_age_sex_and_indication(tmp_path):
    request = {"ReasonForTheRequestedProcedure": "Haemoptysis for 3 weeks", "PatientSex": "F"}
    write_series(tmp_path, [0], PatientAge="063Y", AdditionalPatientHistory="Smoker", **request)
    assert read_study(tmp_path).context == ClinicalContext(
        age_years=63.0, sex=Sex.FEMALE, indication="Haemoptysis for 3 weeks; Smoker"
    )


@pytest.mark.parametrize(
    ("age", "birth", "years"),
    [
        ("018M", None, 1.5),
        ("004W", None, 0.08),
        (None, "19630302", 62.0),
        (None, "19630301", 63.0),
        (None, "20260301", None),
        ("junk", "also junk", None),
        ("000Y", "19630302", 62.0),  # an anonymiser's
        ("000D", None, 0.0),
    ],
)
def test_age_in_any_unit_or_from_the_birth_date(tmp_path, age, birth, years):
    write_series(tmp_path, [0], PatientAge=age, PatientBirthDate=birth)
    assert read_study(tmp_path).context.age_years == years


def test_indication_in_gb18030_is_read(tmp_path):
    text = {"SpecificCharacterSet": "GB18030", "ReasonForTheRequestedProcedure": "咳嗽三周,排除肺结节"}
    write_series(tmp_path, [0], **text)
    assert read_study(tmp_path).context.indication == "咳嗽三周,排除肺结节"


def test_indication_is_found_in_the_request_sequence(tmp_path):
    item = pydicom.Dataset()
    item.ReasonForTheRequestedProcedure = "Staging"
    write_series(tmp_path, [0], RequestAttributesSequence=lambda k: [item])
    assert read_study(tmp_path).context.indication == "Staging"


@pytest.mark.parametrize(
    ("name", "words", "left"),
    [
        ("Müller^Jörg", "MUELLER, Muller, Mueller Joerg; Müllerhaus", "[removed]; Müllerhaus"),
        ("MUELLER^JOERG", "Müller Jörg has fever", "[removed] has fever"),
        ("Nguyễn^Văn An", "Nguyen Van An, NGUYEN: fever", "[removed]: fever"),
        ("Groß^Eva", "Herr GROSS", "Herr [removed]"),
        ("Li^Wei", "Mr Li with cough; lithium, Li Wei", "[removed] with cough; lithium, [removed]"),
        ("Not^Will", "Will Not: fever, not cough", "[removed]: fever, not cough"),
        ("李^伟", "患者李伟咳嗽", "患者[removed]咳嗽"),
    ],
)
def test_a_name_is_removed_however_it_is_spelt_and_nothing_else(tmp_path, name, words, left):
    given = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": name}
    write_series(tmp_path, [0], ReasonForTheRequestedProcedure=words, **given)
    assert read_study(tmp_path).context.indication == left


def test_no_identity_enters_a_noun_or_an_output(tmp_path, capfd, recwarn, caplog):
    identity = {"PatientName": "Canaryname^Jane", "PatientID": "CANARY-ID", "PatientBirthDate": "19111111"}
    reason = "CANARYNAME, Jane (CANARY-ID): cough"
    # A value that breaks its type, which pydicom would print.
    write_series(
        tmp_path, HEIGHTS_MM, ReasonForTheRequestedProcedure=reason, AccessionNumber="C" * 40, **identity
    )
    study = read_study(tmp_path)
    output = capfd.readouterr()
    everything = repr(study).upper() + output.out + output.err + caplog.text + str(list(recwarn))
    assert "CANARY" not in everything
    assert "19111111" not in everything
    assert study.context.indication.endswith("cough")


def test_damaged_files_are_quarantined_and_the_rest_is_read(tmp_path):
    paths = write_series(tmp_path, HEIGHTS_MM)
    content = paths[0].read_bytes()
    (tmp_path / "noise").write_bytes(content[:140] + bytes(range(256)) * 8)
    (tmp_path / "cut").write_bytes(content[:150])
    study = read_study(tmp_path)
    assert len(study.series[0].instances) == 5
    assert len(study.problems) == 2


def test_a_deflate_bomb_is_refused_before_it_grows(tmp_path):
    paths = write_series(tmp_path, HEIGHTS_MM)
    dataset = pydicom.dcmread(paths[0])
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    bomb = tmp_path / "bomb"
    dataset.save_as(bomb)
    meta_length = 128 + 4 + 12 + dataset.file_meta.FileMetaInformationGroupLength
    head = bomb.read_bytes()[:meta_length]
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    chunks = [squeezer.compress(bytes(2**24)) for _ in range(17)]
    bomb.write_bytes(head + b"".join(chunks) + squeezer.flush())
    study = read_study(tmp_path)
    assert codes(study) == ["MALFORMED"]


@pytest.mark.skipif(not SHARED_DICOM.is_dir(), reason="shared/data/dicom is not here")
def test_head_study_has_its_four_series_and_no_problem():
    study = read_study(SHARED_DICOM / "ct_head_philips_study")
    assert [len(s.instances) for s in study.series] == [1, 28, 3, 3]
    assert study.problems == ()


@pytest.mark.skipif(not SHARED_DICOM.is_dir(), reason="shared/data/dicom is not here")
def test_enhanced_time_points_and_frame_types_are_parted():
    siemens = read_study(SHARED_DICOM / "mr_enhanced_philips_siemens" / "Siemens")
    assert [len(s.instances) for s in siemens.series] == [6, 6, 6, 6]
    philips = read_study(SHARED_DICOM / "mr_enhanced_philips_siemens" / "Philips")
    assert [s.image_type[3] for s in philips.series] == ["M", "FIELD_MAP"]


@pytest.mark.parametrize(
    ("attributes", "said", "kept"),
    [
        ({"PatientName": "Doe^Jane"}, "THORAX_DOE_JANE 2.0", "THORAX_[removed] 2.0"),
        ({"PatientName": "Doe^Jane"}, "Jane, Doe thorax", "[removed] thorax"),
        ({"PatientName": "Doe^Jane"}, "Does thorax", "Does thorax"),
        ({"PatientName": "Smith-Jones^Anna"}, "Smith Jones thorax", "[removed] thorax"),
        ({"PatientName": "Wang^Wei=王^伟"}, "王伟 胸部", "[removed] 胸部"),
        ({"PatientName": "Li^Yi"}, "Chest Li Yi", "Chest [removed]"),
        ({"PatientName": "Li^Yi"}, "Chest, li", "Chest, li"),
        ({"PatientID": "MRN-4711"}, "Chest MRN4711", "Chest [removed]"),
        ({"OtherPatientIDs": "X-99887"}, "Chest X99887", "Chest [removed]"),
        ({"PatientBirthDate": "19600312"}, "CT DOB 19600312", "CT DOB [removed]"),
        ({"PatientBirthDate": "19600312"}, "geb. 12.03.1960 CT", "geb. [removed] CT"),
        ({"PatientBirthDate": "19600312"}, "born 1960-3-12", "born [removed]"),
        ({"PatientBirthDate": "19600312"}, "1960年3月12 胸部", "[removed] 胸部"),
        ({"PatientBirthDate": "19600312"}, "follow-up of 12 nodules", "follow-up of 12 nodules"),
    ],
)
def test_free_text_loses_the_patient_however_they_are_written(tmp_path, attributes, said, kept):
    none = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "", "PatientID": ""}
    write_series(tmp_path, [0, 2, 4], StudyDescription=said, **{**none, **attributes})
    assert read_study(tmp_path).description == kept
