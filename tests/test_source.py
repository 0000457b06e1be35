"""What read_study and read_studies make of archives, DICOMDIRs and trees of many studies."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import PACKAGED, save, write_series
from pydicom.dataset import Dataset

from mla_med.dicom.certificate import certify
from mla_med.dicom.select import choose_series
from mla_med.dicom.study import read_studies, read_study
from mla_med.dicom.volume import read_volume
from mla_med.errors import SeriesError, StudyError

HEIGHTS_MM = [0, 2, 4, 6, 8]


def codes(study):
    return [problem.code for problem in study.problems]


def zip_of(folder: Path, archive: Path, method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
    return archive


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_archive_gives_the_volume_of_its_folder(tmp_path, method):
    write_series(tmp_path / "study/deep/er", HEIGHTS_MM)
    archive = zip_of(tmp_path / "study", tmp_path / "an archive", method)
    expected = read_volume(read_study(tmp_path / "study").series[0])
    found = read_volume(read_study(archive).series[0])
    assert np.array_equal(found.voxels, expected.voxels)
    assert np.array_equal(found.affine, expected.affine)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["an archive", "study"], "nothing was unpacked"


def test_a_zip_archive_in_a_folder_is_read_with_the_files_beside_it(tmp_path):
    paths = write_series(tmp_path / "study", HEIGHTS_MM)
    with zipfile.ZipFile(tmp_path / "study/more.bin", "w") as file:
        for path in paths[3:]:
            file.write(path, path.name)
            path.unlink()
    assert read_volume(read_study(tmp_path / "study").series[0]).voxels.shape == (6, 8, 5)


def test_gzip_files_are_read_whatever_their_name(tmp_path):
    paths = write_series(tmp_path, HEIGHTS_MM)
    expected = read_volume(read_study(tmp_path).series[0]).voxels
    for k, path in enumerate(paths):
        path.with_name(f"{k}.dcm.gz" if k % 2 else f"IM{k}").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert np.array_equal(read_volume(read_study(tmp_path).series[0]).voxels, expected)


def test_gzip_files_in_a_zip_archive_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path in write_series(tmp_path / "study", HEIGHTS_MM):
            file.writestr(path.name + ".gz", gzip.compress(path.read_bytes()))
    assert len(read_study(tmp_path / "a.zip").series[0].instances) == 5


def test_names_that_lead_out_of_an_archive_are_refused_by_name(tmp_path):
    paths = write_series(tmp_path / "study", HEIGHTS_MM)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path, name in zip(paths, ["a", "b", "c", "../../up", "/etc/top"], strict=True):
            file.write(path, name)
            info = file.infolist()[-1]
            info.filename = name  # `write` itself strips the slash
    study = read_study(tmp_path / "a.zip")
    assert len(study.series[0].instances) == 3
    assert codes(study) == ["ARCHIVE_REFUSED", "ARCHIVE_REFUSED"]
    assert all("leads out of its archive" in p.words for p in study.problems)


def test_an_archive_in_an_archive_is_refused(tmp_path):
    inner = zip_of(write_series(tmp_path / "study", HEIGHTS_MM)[0].parent, tmp_path / "inner.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as file:
        file.write(inner, "inner.zip")
    with pytest.raises(StudyError, match="archive in an archive"):
        read_study(tmp_path / "outer.zip")


def test_a_damaged_archive_is_refused_in_one_line(tmp_path):
    write_series(tmp_path / "study", HEIGHTS_MM)
    content = zip_of(tmp_path / "study", tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(StudyError, match="no readable ZIP archive") as error:
        read_study(tmp_path / "a.zip")
    assert error.value.code == "ARCHIVE_REFUSED"


def test_a_damaged_member_is_named_and_the_others_are_read(tmp_path):
    write_series(tmp_path / "study", HEIGHTS_MM)
    archive = zip_of(tmp_path / "study", tmp_path / "a.zip")
    with zipfile.ZipFile(archive) as file:
        info = file.infolist()[2]
    content = bytearray(archive.read_bytes())
    content[info.header_offset + 90] ^= 0xFF
    archive.write_bytes(content)
    study = read_study(archive)
    assert len(study.series[0].instances) == 4
    assert [(p.code, p.words) for p in study.problems] == [
        ("ARCHIVE_REFUSED", "1-002 is damaged in its archive.")
    ]


def test_an_encrypted_member_is_refused_with_what_to_do(tmp_path):
    write_series(tmp_path / "study", HEIGHTS_MM)
    archive = zip_of(tmp_path / "study", tmp_path / "a.zip", zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    at = content.rindex(b"PK\1\2")  # the last entry of the directory
    content[at + 8] |= 1
    archive.write_bytes(content)
    (problem,) = read_study(archive).problems
    assert problem.words == "1-004 is encrypted; unpack it with its password."


def test_bombs_are_refused_before_they_unfold(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", bytes(300 * 2**20))
    with pytest.raises(StudyError, match="many times its size") as error:
        read_study(tmp_path / "a.zip")
    assert error.value.code == "ARCHIVE_REFUSED"
    with gzip.open(tmp_path / "bomb.gz", "wb") as file:
        file.write(bytes(70 * 2**20))
    with pytest.raises(StudyError, match="as no image does"):
        read_study(tmp_path / "bomb.gz")


def test_a_dicomdir_tells_of_images_that_are_not_there(tmp_path):
    shutil.copytree(PACKAGED, tmp_path / "medium")
    whole = read_studies(tmp_path / "medium/DICOMDIR")
    assert [study.study_uid == "" for study in whole] == [False] * 6 + [True]
    assert not any("MISSING_FILE" in codes(study) for study in whole)
    removed = next((tmp_path / "medium/77654033/CT2").iterdir())
    study_uid = pydicom.dcmread(removed).StudyInstanceUID
    removed.unlink()
    studies = {study.study_uid: study for study in read_studies(tmp_path / "medium")}
    assert codes(studies[study_uid]) == ["MISSING_FILE"]
    assert "names 1 images of the study that are not there" in studies[study_uid].problems[0].words
    assert all(codes(study) == [] for uid, study in studies.items() if uid not in (study_uid, ""))


def test_a_lost_end_slice_is_known_from_the_dicomdir(tmp_path):
    """No header says how many slices were meant; the directory of the medium does."""
    from pydicom.fileset import FileSet

    paths = write_series(tmp_path / "source", HEIGHTS_MM, PatientSex="F", StudyTime="1200", StudyID="1")
    medium = FileSet()
    for path in paths:
        medium.add(path)
    medium.write(tmp_path / "medium")
    assert read_study(tmp_path / "medium").problems == ()
    last = max(
        (p for p in (tmp_path / "medium").rglob("*") if p.is_file() and p.name != "DICOMDIR"),
        key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2],
    )
    last.unlink()
    assert codes(read_study(tmp_path / "medium")) == ["MISSING_FILE"]


def write_studies(root: Path, number: int) -> None:
    for n in range(number):
        attributes = {"StudyInstanceUID": f"2.25.5{n:03d}", "PatientID": f"P{n}", "PatientName": f"N{n}"}
        write_series(
            root / f"day/{n % 7}/study {n}",
            [height + n for height in HEIGHTS_MM],
            series=100 + n,
            SOPInstanceUID=lambda k, n=n: f"2.25.9{n:03d}{k}",
            **attributes,
        )


def test_fifty_studies_in_one_tree_one_broken(tmp_path):
    write_studies(tmp_path, 50)
    broken = sorted((tmp_path / "day/3/study 17").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:700])
    studies = read_studies(tmp_path)
    assert len(studies) == 50
    damaged = [study for study in studies if study.problems]
    assert [(study.study_uid, codes(study)) for study in damaged] == [("2.25.5017", ["TRUNCATED"])]
    for n, study in enumerate(s for s in studies if not s.problems):
        (verdict,) = choose_series(study)
        assert verdict.chosen
        volume = read_volume(verdict.series)
        assert volume.voxels.shape == (6, 8, 5)
        assert volume.affine[2, 3] == n + (n >= 17)
    (verdict,) = choose_series(next(s for s in studies if s.study_uid == "2.25.5017"))
    assert verdict.reason is not None
    assert verdict.reason.code == "MISSING_SLICE"


def test_fifty_studies_in_one_flat_folder_stay_apart(tmp_path):
    write_studies(tmp_path, 12)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((tmp_path / "day").rglob("*-*"))):
        shutil.move(path, flat / f"{(number * 37) % 60:02d}")
    # the header is whole up to its UIDs: the file tells whose it is
    broken = flat / "20"
    study_uid = pydicom.dcmread(broken).StudyInstanceUID
    broken.write_bytes(broken.read_bytes()[:700])
    studies = read_studies(flat)
    assert [(s.study_uid) for s in studies if codes(s)] == [study_uid]
    assert sum(len(s.series[0].instances) for s in studies) == 59


def test_a_damaged_file_of_nobody_is_reported_apart(tmp_path):
    write_studies(tmp_path / "good", 2)
    (tmp_path / "bad").mkdir()
    path = next((tmp_path / "good").rglob("1*-000"))
    (tmp_path / "bad/1").write_bytes(path.read_bytes()[:170])
    one, two, rest = read_studies(tmp_path)
    assert (codes(one), codes(two)) == ([], [])
    assert (rest.study_uid, rest.series, codes(rest)) == ("", (), ["NO_UID"])


def test_a_study_with_two_patients_is_refused_among_others(tmp_path):
    write_studies(tmp_path, 3)
    write_series(tmp_path / "odd", HEIGHTS_MM, series=7, StudyInstanceUID="2.25.5001", PatientID="Else")
    studies = read_studies(tmp_path)
    assert [codes(study) for study in studies] == [[], ["MIXED_PATIENTS"], []]
    assert studies[1].series == ()


def test_several_studies_where_one_is_wanted_is_an_error(tmp_path):
    write_studies(tmp_path, 2)
    with pytest.raises(StudyError, match="holds 2 studies") as error:
        read_study(tmp_path)
    assert error.value.code == "SEVERAL_STUDIES"


def structured_report(path: Path, study_uid: str, date: str, **attributes) -> None:
    def item(kind, name, **values):
        child, code = Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", name
        child.RelationshipType, child.ValueType, child.ConceptNameCodeSequence = "CONTAINS", kind, [code]
        for keyword, value in values.items():
            setattr(child, keyword, value)
        return child

    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "2.25.31" + date
    report.StudyInstanceUID, report.SeriesInstanceUID, report.Modality = study_uid, "2.25.3" + date, "SR"
    report.SpecificCharacterSet = "ISO_IR 192"
    report.PatientID, report.PatientName, report.StudyDate = "MRN-4711", "Doe^Jane", date
    findings = item(
        "TEXT", "Finding", TextValue="Mrs Doe has a nodule of 6 mm ≥ 3 mm in the left upper lobe."
    )
    report.ContentSequence = [item("CONTAINER", "Findings", ContentSequence=[findings])]
    for keyword, value in attributes.items():
        setattr(report, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(report, path)


def test_the_report_of_an_earlier_study_becomes_the_prior(tmp_path):
    write_series(tmp_path / "now", HEIGHTS_MM)
    structured_report(tmp_path / "old/1", "2.25.2", "20240101")
    structured_report(tmp_path / "old/2", "2.25.3", "20250101")
    study = read_study(tmp_path)
    assert study.context.prior == "Finding: Mrs [removed] has a nodule of 6 mm ≥ 3 mm in the left upper lobe."
    assert [(p.code, p.words) for p in study.problems] == [
        ("PRIOR_REPORT", "The report of 20250101 that lies with the study was taken as its prior.")
    ]


@pytest.mark.parametrize(
    ("study_uid", "date", "attributes"),
    [
        ("2.25.1000", "20260301", {}),  # the report of this very study
        ("2.25.2", "20270101", {}),  # a later one
        ("2.25.2", "20240101", {"PreliminaryFlag": "PRELIMINARY"}),  # a draft
    ],
)
def test_what_must_not_become_the_prior_does_not(tmp_path, study_uid, date, attributes):
    write_series(tmp_path / "now", HEIGHTS_MM)
    structured_report(tmp_path / "sr/1", study_uid, date, **attributes)
    assert read_study(tmp_path).context.prior == ""


def test_a_report_of_another_patient_is_another_study(tmp_path):
    write_series(tmp_path / "now", HEIGHTS_MM)
    structured_report(tmp_path / "sr/1", "2.25.2", "20240101", PatientID="Else")
    assert [study.context.prior for study in read_studies(tmp_path)] == ["", ""]


def raw_text(path: Path, tag: tuple[int, int], vr: bytes, value: bytes) -> None:
    """Bytes that no correct writer would put there, at their place in the data set."""
    content = path.read_bytes()
    value += b" " * (len(value) % 2)
    element = struct.pack("<HH2sH", *tag, vr, len(value)) + value
    (meta,) = struct.unpack_from("<I", content, 140)
    at = 144 + meta
    while struct.unpack_from("<HH", content, at) < tag:
        at += 8 + struct.unpack_from("<H", content, at + 6)[0]
    path.write_bytes(content[:at] + element + content[at:])


@pytest.mark.parametrize(
    ("character_set", "codec"),
    [
        ("ISO_IR 192", "utf-8"),
        ("GB18030", "gb18030"),
        ("GBK", "gbk"),
        (["", "ISO 2022 IR 58"], "iso2022_cn"),
        (None, "gb18030"),
        (None, "utf-8"),
    ],
)
def test_chinese_requests_are_read_in_any_character_set(tmp_path, character_set, codec):
    words = "咳嗽 发热"
    if codec == "iso2022_cn":
        encoded = b"".join(b"\x1b$)A" + w.encode("gb2312") + b" " for w in words.split())
    else:
        encoded = words.encode(codec)
    for path in write_series(tmp_path, HEIGHTS_MM, SpecificCharacterSet=character_set):
        raw_text(path, (0x0010, 0x21B0), b"LT", encoded)
        raw_text(path, (0x0018, 0x1030), b"LO", encoded)
    study = read_study(tmp_path)
    assert study.context.indication == words
    assert study.context.protocol == words
    assert certify(study.series[0]).shape == (6, 8, 5)


def test_protocol_and_indication_come_from_the_request(tmp_path):
    attributes, code = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "CT of the chest"
    attributes.RequestedProcedureDescription = "CT chest for Jane Doe"
    attributes.ReasonForTheRequestedProcedure = "cough"
    write_series(
        tmp_path,
        HEIGHTS_MM,
        RequestAttributesSequence=[attributes],
        ProcedureCodeSequence=[code],
        ProtocolName="Thorax",
    )
    context = read_study(tmp_path).context
    assert context.indication == "cough"
    assert context.protocol == "Thorax; CT chest for [removed]; CT of the chest"


def time_series(tmp_path, times, **attributes):
    for time in range(times):
        write_series(
            tmp_path,
            HEIGHTS_MM,
            prefix=f"t{time}-",
            SOPInstanceUID=lambda k, time=time: f"2.25.8{time}{k}",
            **{keyword: value(time) for keyword, value in attributes.items()},
        )


@pytest.mark.parametrize(
    ("attribute", "value", "parts"),
    [
        ("TemporalPositionIdentifier", lambda t: t + 1, ["time point 1", "time point 2", "time point 3"]),
        ("AcquisitionNumber", lambda t: t + 1, ["acquisition 1", "acquisition 2", "acquisition 3"]),
        ("AcquisitionTime", lambda t: f"12000{t}", ["acquired 120000", "acquired 120001", "acquired 120002"]),
        ("NominalPercentageOfCardiacPhase", lambda t: 10 * t, ["phase 0 %", "phase 10 %", "phase 20 %"]),
        ("EchoTime", lambda t: 5 + t, ["echo 5 ms", "echo 6 ms", "echo 7 ms"]),
        ("InstanceNumber", lambda t: lambda k: 5 * t + k, ["part 1 of 3", "part 2 of 3", "part 3 of 3"]),
        ("InstanceNumber", lambda t: lambda k: 3 * k + t, ["part 1 of 3", "part 2 of 3", "part 3 of 3"]),
    ],
)
def test_a_series_in_time_becomes_one_volume_for_each_time_point(tmp_path, attribute, value, parts):
    time_series(tmp_path, 3, **{attribute: value})
    study = read_study(tmp_path)
    assert [series.part for series in study.series] == parts
    for time, series in enumerate(study.series):
        assert read_volume(series).voxels.shape == (6, 8, 5)
        assert {i.sop_instance_uid[:7] for i in series.instances} == {f"2.25.8{time}"}


def test_two_attributes_together_may_be_needed(tmp_path):
    time_series(
        tmp_path,
        4,
        AcquisitionNumber=lambda t: t // 2,
        NominalPercentageOfCardiacPhase=lambda t: 10 * (t % 2),
    )
    assert [(len(s.instances), s.part) for s in read_study(tmp_path).series] == [
        (5, "acquisition 0, phase 0 %"),
        (5, "acquisition 0, phase 10 %"),
        (5, "acquisition 1, phase 0 %"),
        (5, "acquisition 1, phase 10 %"),
    ]


def test_images_at_one_place_that_nothing_tells_apart_are_refused(tmp_path):
    time_series(tmp_path, 2)
    (series,) = read_study(tmp_path).series
    with pytest.raises(SeriesError) as error:
        certify(series)
    assert error.value.code == "DUPLICATE_POSITION"


def test_the_reading_of_many_files_tells_how_far_it_is(tmp_path):
    write_series(tmp_path, HEIGHTS_MM)
    seen = []
    read_study(tmp_path, seen.append)
    assert seen == [0, 1, 2, 3, 4]


def test_an_archive_is_read_from_memory_only(tmp_path):
    """The bytes of a member are those of the file, also when it is asked for again."""
    from mla_med.archive import is_file, open_file

    path = write_series(tmp_path / "study", HEIGHTS_MM)[0]
    archive = zip_of(tmp_path / "study", tmp_path / "a.zip")
    for _ in range(2):
        with open_file(archive / "1-000") as file:
            assert isinstance(file, io.BytesIO)
            assert file.read() == path.read_bytes()
    assert is_file(archive / "1-000")
    assert not is_file(archive / "1-999")
    assert not is_file(archive / "../study/1-000")
