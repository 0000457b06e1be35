"""De-identification: nothing that names a person gets out, and the images stay what they were."""

from __future__ import annotations

import os
import zipfile
from copy import deepcopy
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import sr_errors
from dicom_series import CT_CLASS, PACKAGED, anatomy, image, set_pixels, write_enhanced, write_series
from pydicom.data import get_testdata_file
from pydicom.datadict import DicomDictionary, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import pixel_array
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mla_med.dicom.deidentify import (
    ALLOWABLE,
    KEPT_DATES,
    KEPT_TEXTS,
    TABLE,
    deidentify_dataset,
    deidentify_study,
)
from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.errors import ConfigError, OutputError, StudyError

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"

_TEXTS = ("LO", "LT", "PN", "ST", "UC", "UR", "UT", "SH", "AE", "CS")
_TIMES = ("DA", "DT", "TM")


# The bar: a canary in every attribute that can hold one.


@dataclass(frozen=True)
class Canary:
    place: str
    vr: str
    text: str


class Planter:
    """Values that occur nowhere else, of the length and the letters that each VR allows."""

    def __init__(self):
        self.canaries: list[Canary] = []

    def value(self, place: str, vr: str) -> str:
        number = len(self.canaries)
        text = {
            "UI": f"1.2.826.777.{number:05d}.4711",
            "DA": f"{date(1901, 1, 1) + timedelta(days=number):%Y%m%d}",
            "DT": f"{date(1901, 1, 1) + timedelta(days=number):%Y%m%d}112233.{number:06d}",
            "TM": f"112233.7{number:05d}",
            "DS": f"778{number:05d}",
            "IS": f"778{number:05d}",
            "UR": f"http://cnry{number:05d}x.org",
        }.get(vr, f"CNRY{number:05d}X")
        self.canaries.append(Canary(place, vr, text))
        return text

    def plant(self, dataset: Dataset, tag: Tag, vr: str, place: str) -> None:
        name = f"{place} {Tag(tag)}"
        if vr == "SQ":
            item = Dataset()
            item.add(DataElement(0x0008103E, "LO", self.value(f"{name} item", "LO")))
            item.add(DataElement(0x00181020, "DS", "1"))
            item.add(DataElement(0x00081150, "UI", CT_CLASS))
            item.add(DataElement(0x00081155, "UI", self.value(f"{name} item", "UI")))
            dataset.add(DataElement(tag, "SQ", [item]))
        elif vr in ("OB", "UN"):
            dataset.add(DataElement(tag, vr, (self.value(name, vr) + " ").encode()))
        else:
            dataset.add(DataElement(tag, vr, self.value(name, vr)))

    @property
    def identifiers(self) -> list[Canary]:
        return [canary for canary in self.canaries if canary.vr not in _TIMES]

    @property
    def times(self) -> list[Canary]:
        return [canary for canary in self.canaries if canary.vr in _TIMES]


def table_tags() -> dict[int, str]:
    """Tag -> VR of what PS3.15 Table E.1-1 lists, but for what is too short to be told apart; LO where
    pydicom does not know the attribute yet."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    lists = dicom_anonymization_database_selector(TABLE).values()
    tags = sorted({tag[0] << 16 | tag[1] for tags in lists for tag in tags if len(tag) == 2})
    known = {tag: dictionary_VR(tag) if tag in DicomDictionary else "LO" for tag in tags}
    return {tag: vr for tag, vr in known.items() if vr not in ("AS", "US")}


def unlisted_tags() -> dict[int, str]:
    """The text, dates and UIDs that the standard knows and Table E.1-1 does not list. No code strings:
    they are words of the standard, and are kept."""
    listed = table_tags()
    return {
        tag: vr
        for tag, (vr, _, _, _, keyword) in sorted(DicomDictionary.items())
        if tag not in listed
        and tag >= 0x00080000
        and vr in (*_TEXTS[:-1], *_TIMES, "UI")
        and keyword not in (*KEPT_TEXTS, "SOPClassUID")
    }


def planted_file(path: Path, planter: Planter) -> None:
    """A sound CT image with canaries wherever a DICOM file has room for one."""
    dataset = image(1, 0)
    dataset.ImagePositionPatient = [0.0, 0.0, 0.0]
    set_pixels(dataset, np.arange(48).reshape(8, 6))
    dataset.PixelData += planter.value("behind the pixels", "UN").encode() + b" "
    for tag, vr in table_tags().items():
        if tag >> 16 > 2:
            planter.plant(dataset, tag, vr, "top")
    for tag, vr in unlisted_tags().items():
        planter.plant(dataset, tag, vr, "top, unlisted")
    dataset.ReferencedInstanceSequence = [nested(planter)]
    plant_elsewhere(dataset, planter)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle"):
        setattr(meta, keyword, planter.value(f"file meta {keyword}", "AE"))
    meta.ReceivingApplicationEntityTitle = planter.value("file meta receiver", "AE")
    meta.ImplementationVersionName = planter.value("file meta version", "SH")
    meta.ImplementationClassUID = planter.value("file meta implementation", "UI")
    meta.PrivateInformationCreatorUID = planter.value("file meta creator", "UI")
    meta.PrivateInformation = planter.value("file meta private", "OB").encode() + b" "
    dataset.file_meta = meta
    dataset.preamble = b"MZ" + planter.value("preamble", "UN").encode().ljust(126, b"\0")
    with pydicom.config.disable_value_validation():
        dataset.save_as(path, enforce_file_format=True)
    with path.open("ab") as file:
        file.write(
            b"\xfc\xff\xfc\xffOB\0\0\x20\0\0\0" + planter.value("trailing padding", "OB").encode().ljust(32)
        )


def nested(planter: Planter) -> Dataset:
    """Two deep, under sequences that the table does not list."""
    inner, outer = Dataset(), Dataset()
    for tag, vr in table_tags().items():
        if tag >> 16 > 2:
            planter.plant(inner, tag, vr, "nested")
    inner.add(DataElement(0x00091001, "UN", planter.value("nested, private", "UN").encode() + b" "))
    outer.ReferencedImageSequence = [deepcopy(inner)]
    outer.RealWorldValueMappingSequence = [inner]
    return outer


def plant_elsewhere(dataset: Dataset, planter: Planter) -> None:
    block = dataset.private_block(0x0011, planter.value("private creator", "LO"), create=True)
    for offset, vr in enumerate(("LO", "PN", "UT", "UI", "DA", "SQ", "UN")):
        planter.plant(dataset, block.get_tag(offset), vr, "private")
    wide = planter.value("private, two bytes a letter", "UN").encode("utf-16-le")
    dataset.add(DataElement(block.get_tag(0x20), "UN", wide))
    for tag, vr in {0x00129998: "LO", 0x00189998: "PN", 0x00209998: "UT", 0x00289998: "UN"}.items():
        planter.plant(dataset, Tag(tag), vr, "public, in no dictionary")
    for tag in (0x60001500, 0x60020022, 0x60004000, 0x50000022, 0x50002500, 0x50002610):
        planter.plant(dataset, Tag(tag), "LO", "overlay or curve")
    for tag in (0x60003000, 0x50003000):
        planter.plant(dataset, Tag(tag), "OB", "overlay or curve data")


def found_in(content: bytes, canaries: list[Canary]) -> list[str]:
    """The places whose canaries can be read in the bytes: in any case, with one or two bytes a
    letter, with padding between the letters."""
    content = content.lower()
    dense = content.replace(b"\0", b"").replace(b" ", b"")
    return [
        c.place for c in canaries if c.text.lower().encode() in content or c.text.lower().encode() in dense
    ]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(planter, source folder) of a file whose path names a person, too."""
    planter = Planter()
    source = tmp_path_factory.mktemp("planted")
    folder = source / planter.value("folder name", "LO")
    folder.mkdir()
    planted_file(folder / f"{planter.value('file name', 'LO')}.dcm", planter)
    return planter, source


def written_bytes(out: Path) -> bytes:
    return b"".join(path.name.encode() + path.read_bytes() for path in sorted(out.iterdir()))


def test_no_identifier_date_or_time_survives_anywhere_in_a_file(planted, tmp_path):
    planter, source = planted
    tags = table_tags()
    in_table = [tag for tag, vr in tags.items() if vr not in _TIMES]
    print(
        f"\n{len(in_table)} attributes of the table that hold identifiers, "
        f"{len(planter.identifiers)} identifiers and {len(planter.times)} dates and times planted"
    )
    assert len(in_table) >= 483
    assert len(planter.identifiers) >= 1600
    assert len(planter.times) >= 340

    result = deidentify_study(source, tmp_path / "out", key=KEY)

    assert (result.written, result.studies, result.refused) == (1, 1, ())
    assert found_in(written_bytes(tmp_path / "out"), planter.canaries) == []


def test_the_search_finds_every_canary_before_cleaning(planted):
    planter, source = planted
    path = next(path for path in source.rglob("*.dcm"))
    content = str(path).encode() + path.read_bytes()
    assert found_in(content, planter.canaries) == [canary.place for canary in planter.canaries]


def test_with_shifted_dates_only_the_kept_times_of_day_survive(planted, tmp_path):
    planter, source = planted
    kept = {Tag(tag_for_keyword(keyword)) for keyword in KEPT_DATES}
    times_of_day = {
        c.text for c in planter.times if c.vr == "TM" and any(str(tag) in c.place for tag in kept)
    }
    deidentify_study(source, tmp_path / "out", key=KEY, keep_dates=True)
    gone = [canary for canary in planter.canaries if canary.text not in times_of_day and canary.vr != "DT"]
    dates_with_times = [Canary(c.place, "DA", c.text[:8]) for c in planter.canaries if c.vr == "DT"]
    content = written_bytes(tmp_path / "out")
    assert found_in(content, gone) == []
    assert found_in(content, dates_with_times) == []


def test_the_cleaned_file_opens_and_shows_the_same_pixels(planted, tmp_path):
    _, source = planted
    deidentify_study(source, tmp_path / "out", key=KEY)
    cleaned = pydicom.dcmread(tmp_path / "out" / "000001.dcm")
    assert cleaned.pixel_array.tolist() == np.arange(48).reshape(8, 6).tolist()
    assert len(cleaned.PixelData) == 96
    item = cleaned.ReferencedInstanceSequence[0].RealWorldValueMappingSequence[0]
    assert (item.PatientName, item.StudyDate) == ("", ""), "cleaned inside, not dropped as a whole"
    assert cleaned.preamble == bytes(128)
    assert [element.keyword for element in cleaned.file_meta] == [
        *("FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID"),
        *("MediaStorageSOPInstanceUID", "TransferSyntaxUID", "ImplementationClassUID"),
        "ImplementationVersionName",
    ]
    assert cleaned.file_meta.MediaStorageSOPInstanceUID == cleaned.SOPInstanceUID
    assert cleaned.file_meta.ImplementationVersionName == "MLA_MED"


# What is written: method, patients, ages, dates.


def test_the_file_says_what_was_done_to_it():
    cleaned = deidentify_dataset(ct(), KEY)
    assert cleaned.PatientIdentityRemoved == "YES"
    assert cleaned.LongitudinalTemporalInformationModified == "REMOVED"
    assert [
        (code.CodeValue, code.CodingSchemeDesignator) for code in cleaned.DeidentificationMethodCodeSequence
    ] == [
        ("113100", "DCM"),
        ("113108", "DCM"),
    ]
    assert list(cleaned.DeidentificationMethod) == [
        "mla_med, PS3.15 Table E.1-1 of 2026c, Basic Profile",
        "Kept: sex, age (90 and over as 90)",
        "Dates and times removed",
    ]


def test_shifted_dates_are_declared_as_modified():
    cleaned = deidentify_dataset(ct(), KEY, keep_dates=True)
    assert cleaned.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [code.CodeValue for code in cleaned.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113108", "113107"]


def test_what_an_earlier_deidentifier_said_is_not_repeated():
    cleaned = deidentify_dataset(ct(DeidentificationMethod="by Jane Roe, +31 6 1234"), KEY)
    assert "Roe" not in str(cleaned)


@pytest.mark.parametrize(
    ("age", "kept"),
    [("028Y", "028Y"), ("089Y", "089Y"), ("090Y", "090Y"), ("103Y", "090Y"), ("006M", "006M"), ("28", None)],
)
def test_ages_of_ninety_and_over_are_one_age(age, kept):
    assert deidentify_dataset(ct(PatientAge=age), KEY).get("PatientAge") == kept


@pytest.mark.parametrize(("sex", "kept"), [("F", "F"), ("M", "M"), ("O", "O"), ("DOE_JANE", "")])
def test_sex_is_kept_if_it_is_one(sex, kept):
    assert deidentify_dataset(ct(PatientSex=sex), KEY).PatientSex == kept


def test_a_patient_has_one_pseudonym_and_two_patients_have_two():
    first, second = deidentify_dataset(ct(), KEY), deidentify_dataset(ct(PatientName="Doe^J."), KEY)
    stranger = deidentify_dataset(ct(PatientID="MRN-4712"), KEY)
    assert first.PatientID == first.PatientName == second.PatientID
    assert len({first.PatientID, stranger.PatientID, deidentify_dataset(ct(), OTHER_KEY).PatientID}) == 3
    assert "4711" not in first.PatientID


def test_equal_numbers_of_two_hospitals_are_two_patients():
    here, there = (deidentify_dataset(ct(IssuerOfPatientID=place), KEY) for place in ("here", "there"))
    assert here.PatientID != there.PatientID


def test_without_the_option_no_date_or_time_is_left():
    cleaned = deidentify_dataset(
        ct(SeriesDate="20260301", AcquisitionTime="101112", ContentDate="20260301"), KEY
    )
    assert cleaned.StudyDate == ""
    assert "SeriesDate" not in cleaned
    assert "AcquisitionTime" not in cleaned
    assert cleaned.ContentDate == "19000101"


def test_shifted_dates_keep_their_intervals_and_their_patient():
    def shifted(study_date: str, **attributes) -> date:
        cleaned = deidentify_dataset(ct(StudyDate=study_date, **attributes), KEY, keep_dates=True)
        return date.fromisoformat(cleaned.StudyDate)

    first, second = shifted("20240228"), shifted("20240301", StudyInstanceUID="2.25.1001")
    assert second - first == timedelta(days=2)
    assert timedelta(days=1) <= date(2024, 2, 28) - first <= timedelta(days=3650)
    assert shifted("20240228", PatientID="MRN-4712") != first


def test_birth_dates_go_even_where_dates_are_kept():
    cleaned = deidentify_dataset(
        ct(PatientBirthDate="19500102", PatientBirthTime="0102"), KEY, keep_dates=True
    )
    assert cleaned.PatientBirthDate == ""
    assert "PatientBirthTime" not in cleaned


@pytest.mark.parametrize("nonsense", ["20261332", "00010101", "yesterday", "20260301-20260401"])
def test_a_date_that_cannot_be_shifted_goes(nonsense):
    assert deidentify_dataset(ct(StudyDate=nonsense), KEY, keep_dates=True).StudyDate == ""


def test_a_time_zone_goes_with_its_hint_of_the_place():
    cleaned = deidentify_dataset(ct(AcquisitionDateTime="20260301101112.5+0900"), KEY, keep_dates=True)
    assert cleaned.AcquisitionDateTime.endswith("101112.5")
    assert not cleaned.AcquisitionDateTime.startswith("20260301")


# Texts that are kept.


def test_texts_of_the_scanner_are_kept():
    cleaned = deidentify_dataset(
        ct(Manufacturer="SIEMENS", ConvolutionKernel="B31f", SoftwareVersions="VB20"), KEY
    )
    assert (cleaned.Manufacturer, cleaned.ConvolutionKernel, cleaned.SoftwareVersions) == (
        "SIEMENS",
        "B31f",
        "VB20",
    )
    assert (cleaned.BodyPartExamined, cleaned.Modality) == ("CHEST", "CT")
    assert "SeriesDescription" not in cleaned


@pytest.mark.parametrize("kernel", ["B31f doe", "JANE", "4711", "for Jane Doe"])
def test_a_kept_text_that_repeats_the_patient_goes(kernel):
    cleaned = deidentify_dataset(
        ct(PatientName="Doe-Roe^Jane", ConvolutionKernel=kernel.replace("doe", "Jane")), KEY
    )
    assert "ConvolutionKernel" not in cleaned


def test_the_physician_is_looked_for_as_well():
    cleaned = deidentify_dataset(
        ct(ReferringPhysicianName="House^Gregory", SoftwareVersions="of dr HOUSE"), KEY
    )
    assert "SoftwareVersions" not in cleaned


def test_mary_does_not_take_the_word_primary_with_her():
    cleaned = deidentify_dataset(ct(PatientName="Stone^Mary"), KEY)
    assert list(cleaned.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]


def test_a_short_patient_number_takes_no_measurement_with_it():
    cleaned = deidentify_dataset(ct(PatientID="1024", RescaleIntercept="-1024", RepetitionTime="1024"), KEY)
    assert (cleaned.RescaleIntercept, cleaned.RepetitionTime) == (-1024, 1024)


def test_a_long_patient_number_goes_from_every_number():
    assert "AcquisitionNumber" not in deidentify_dataset(
        ct(PatientID="19500102", AcquisitionNumber="19500102"), KEY
    )


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (["ISO 2022 IR 6", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 144", "Люкceмбypг^Анна"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 192", "Ναύτης^Μαρία"),
    ],
)
def test_a_name_in_any_script_is_gone_and_the_file_is_utf_8(tmp_path, charset, name):
    family = name.split("=")[-1].split("^")[0]
    folder = tmp_path / "in"
    attributes = {"PatientName": name, "SeriesDescription": family, "SoftwareVersions": f"of {family}"}
    write_series(folder, [0, 2, 4], SpecificCharacterSet=charset, **attributes)
    deidentify_study(folder, tmp_path / "out", key=KEY)
    cleaned = pydicom.dcmread(tmp_path / "out" / "000001.dcm")
    assert cleaned.SpecificCharacterSet == "ISO_IR 192"
    assert "SoftwareVersions" not in cleaned
    content = written_bytes(tmp_path / "out")
    first = charset if isinstance(charset, str) else charset[1]
    python_name = {"ISO_IR 144": "iso8859_5", "ISO_IR 100": "latin-1", "GB18030": "gb18030"}.get(
        first, "utf-8"
    )
    assert family.encode(python_name) not in content
    assert family.encode() not in content


def test_codes_of_the_site_go_and_public_ones_stay():
    dataset = ct()
    dataset.ProcedureCodeSequence = [
        code("CTJD", "99HOSPITAL", "CT for Mrs Doe"),
        code("P5-08000", "SRT", "CT chest"),
    ]
    cleaned = deidentify_dataset(dataset, KEY)
    assert [item.CodeMeaning for item in cleaned.ProcedureCodeSequence] == ["CT chest"]


@pytest.mark.parametrize(("vr", "value"), [("LO", "Mrs X"), ("CS", "MRS_X"), ("DS", "120")])
def test_a_value_of_another_kind_than_the_standard_says_goes(vr, value):
    dataset = ct()
    dataset.add(DataElement(0x00180060, vr, value))  # KVP, a DS
    assert ("KVP" in deidentify_dataset(dataset, KEY)) == (vr == "DS")


def test_what_the_standard_retired_goes():
    assert "StudyPriorityID" not in deidentify_dataset(ct(StudyPriorityID="HIGH"), KEY)


def test_what_was_empty_does_not_look_given_afterwards():
    cleaned = deidentify_dataset(ct(ContrastBolusAgent="", InstitutionName=""), KEY)
    assert (cleaned.ContrastBolusAgent, cleaned.InstitutionName) == ("", "")
    assert deidentify_dataset(ct(ContrastBolusAgent="for Mrs Doe"), KEY).ContrastBolusAgent == "ANONYMIZED"


def test_no_item_keeps_a_character_set_of_its_own():
    dataset = ct()
    dataset.ProcedureCodeSequence = [code("P5-08000", "SRT", "CT chest")]
    dataset.ProcedureCodeSequence[0].SpecificCharacterSet = "ISO_IR 144"
    item = deidentify_dataset(dataset, KEY).ProcedureCodeSequence[0]
    assert "SpecificCharacterSet" not in item


def test_an_image_whose_size_is_not_a_number_is_refused(tmp_path):
    write_series(tmp_path / "in", [0, 2, 4])
    dataset = pydicom.dcmread(tmp_path / "in" / "1-001")
    dataset.add(DataElement(0x00280010, "LO", "8"))
    dataset.save_as(tmp_path / "in" / "1-001")
    result = deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    assert (result.written, codes(result)) == (2, ["MALFORMED"])


def test_an_enhanced_object_whose_rescaling_is_not_a_number_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    write_enhanced(tmp_path / "in" / "mr", [0, 3, 6])
    dataset = pydicom.dcmread(tmp_path / "in" / "mr")
    rescale = dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    rescale.add(DataElement(0x00281053, "LO", "2"))
    dataset.save_as(tmp_path / "in" / "mr")
    assert codes(deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)) == ["MALFORMED"]


def test_the_given_data_set_is_not_changed():
    dataset = ct(PatientIdentityRemoved="NO", PatientAge="093Y")
    before = deepcopy(dataset)
    deidentify_dataset(dataset, KEY)
    assert dataset == before


def test_a_private_b_value_becomes_the_standard_one(tmp_path):
    attributes = {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}
    for path in write_series(tmp_path / "in", [0, 2, 4], **attributes):
        dataset = pydicom.dcmread(path)
        dataset.add(DataElement(0x00190010, "LO", "SIEMENS MR HEADER"))
        dataset.add(DataElement(0x0019100C, "IS", "800"))
        dataset.save_as(path)
    deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    assert pydicom.dcmread(tmp_path / "out" / "000001.dcm").DiffusionBValue == 800


# UIDs.


def test_the_same_key_gives_the_same_uids_and_another_key_others():
    first, again, other = (deidentify_dataset(ct(), key) for key in (KEY, KEY, OTHER_KEY))
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert first[keyword].value == again[keyword].value != other[keyword].value
        assert first[keyword].value.startswith("2.25.")
        assert len(first[keyword].value) <= 44
    assert first.StudyInstanceUID == "2.25.329143635491724965957994593299930888028"


def test_references_between_series_and_from_a_report_stay_true(tmp_path):
    write_series(tmp_path / "in", [0, 2, 4])
    write_series(
        tmp_path / "in",
        [0, 2, 4],
        series=2,
        SourceImageSequence=lambda k: [reference(f"2.25.1{k:04d}")],
    )
    deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    images = [pydicom.dcmread(path) for path in sorted((tmp_path / "out").iterdir())]
    uids = [dataset.SOPInstanceUID for dataset in images]
    assert len(set(uids)) == 6
    assert [dataset.SourceImageSequence[0].ReferencedSOPInstanceUID for dataset in images[3:]] == uids[:3]
    assert len({dataset.FrameOfReferenceUID for dataset in images}) == 1

    report = deidentify_dataset(evidence_report(), KEY)
    study = report.CurrentRequestedProcedureEvidenceSequence[0]
    series = study.ReferencedSeriesSequence[0]
    assert study.StudyInstanceUID == images[0].StudyInstanceUID == report.StudyInstanceUID
    assert series.SeriesInstanceUID == images[0].SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == uids[1]
    assert series.ReferencedSOPSequence[0].ReferencedSOPClassUID == CT_CLASS
    assert "ContentSequence" not in report


def test_a_uid_of_the_standard_keeps_its_meaning():
    talairach = "1.2.840.10008.1.4.1.1"
    assert deidentify_dataset(ct(FrameOfReferenceUID=talairach), KEY).FrameOfReferenceUID == talairach


# Burned-in text: refused, not cleaned.


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"SOPClassUID": SECONDARY_CAPTURE}, "BURNED_IN_RISK"),
        ({"SOPClassUID": ULTRASOUND, "Modality": "US"}, "BURNED_IN_RISK"),
        ({"SOPClassUID": ENCAPSULATED_PDF, "Modality": "DOC"}, "KIND_NOT_COVERED"),
        ({"SOPClassUID": COMPREHENSIVE_SR, "Modality": "SR"}, "KIND_NOT_COVERED"),
        ({"SOPClassUID": "1.3.12.2.1107.5.9.1"}, "KIND_NOT_COVERED"),
        ({"Modality": "OT"}, "BURNED_IN_RISK"),
        ({"Modality": "SC"}, "BURNED_IN_RISK"),
        ({"Modality": "XC"}, "BURNED_IN_RISK"),
        ({"ConversionType": "WSD"}, "BURNED_IN_RISK"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "BURNED_IN_RISK"),
        ({"SeriesDescription": "Dose Report"}, "BURNED_IN_RISK"),
        ({"SeriesDescription": "Patient Protocol"}, "BURNED_IN_RISK"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "DERIVED_SECONDARY"),
        ({"ImageType": ["DERIVED", "SECONDARY"], "BurnedInAnnotation": "NO"}, "DERIVED_SECONDARY"),
        ({"BurnedInAnnotation": "YES"}, "BURNED_IN"),
        ({"BurnedInAnnotation": "MAYBE"}, "BURNED_IN_RISK"),
        ({"RecognizableVisualFeatures": "YES"}, "RECOGNIZABLE_FEATURES"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "BURNED_IN_RISK"),
        ({"BurnedInAnnotation": "NO"}, None),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}, None),
        ({"SeriesDescription": "low dose chest"}, None),
    ],
)
def test_images_that_may_show_text_are_refused_with_a_code(tmp_path, attributes, expected):
    write_series(tmp_path / "in", [0.0], **attributes)
    result = deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    assert codes(result) == ([expected] if expected else [])
    assert len(list((tmp_path / "out").iterdir())) == (0 if expected else 1)


def test_an_overlay_inside_the_pixels_is_refused(tmp_path):
    write_series(tmp_path / "in", [0.0])
    dataset = pydicom.dcmread(tmp_path / "in" / "1-000")
    dataset.add(DataElement(0x60000100, "US", 16))
    dataset.add(DataElement(0x60000102, "US", 15))
    dataset.save_as(tmp_path / "in" / "1-000")
    assert codes(deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)) == ["BURNED_IN_RISK"]


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "DERIVED_SECONDARY"),
        ({"RecognizableVisualFeatures": "YES"}, "RECOGNIZABLE_FEATURES"),
        ({"SOPClassUID": SECONDARY_CAPTURE}, "BURNED_IN_RISK"),
    ],
)
def test_a_caller_who_looked_may_set_a_reason_aside(tmp_path, attributes, reason):
    write_series(tmp_path / "in", [0.0], **attributes)
    result = deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY, allow={reason})
    assert (result.written, result.refused) == (1, ())


def test_declared_text_and_documents_cannot_be_set_aside(tmp_path):
    write_series(tmp_path / "in", [0.0], BurnedInAnnotation="YES")
    write_series(tmp_path / "in", [0.0], series=2, SOPClassUID=COMPREHENSIVE_SR)
    result = deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY, allow=ALLOWABLE)
    assert codes(result) == ["BURNED_IN", "KIND_NOT_COVERED"]
    with pytest.raises(ConfigError, match="BURNED_IN cannot be set aside"):
        deidentify_study(tmp_path / "in", tmp_path / "other", key=KEY, allow={"BURNED_IN"})


# Pixels and geometry.


def test_a_series_reads_as_the_same_volume(tmp_path):
    write_series(tmp_path / "in", [0, 2, 4, 6])
    deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    check_same_volume(tmp_path / "in", tmp_path / "out")


def test_an_enhanced_object_reads_as_the_same_volumes(tmp_path):
    (tmp_path / "in").mkdir()
    write_enhanced(tmp_path / "in" / "mr", [0, 3, 6, 9], echo_times=(30.0, 80.0))
    deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    before, after = read_study(tmp_path / "in"), read_study(tmp_path / "out")
    assert len(before.series) == len(after.series) == 2
    for old, new in zip(before.series, after.series, strict=True):
        assert np.array_equal(read_volume(old).voxels, read_volume(new).voxels)


@pytest.mark.parametrize(
    "name",
    [
        "ct_chest_philips_32of275",
        "ct_head_philips_tilt+16.5_28of58",
        "mr_t1_siemens_jpegls14",
        "mr_t1_siemens_enhanced",
    ],
)
def test_a_real_series_reads_as_the_same_volume(real_series, tmp_path, name):
    result = deidentify_study(real_series(name), tmp_path / "out", key=KEY)
    assert result.refused == ()
    check_same_volume(real_series(name), tmp_path / "out")


@pytest.mark.parametrize("keep_dates", [False, True])
@pytest.mark.parametrize("name", ["ct_chest_philips_32of275", "mr_head_ge_oblique", "mr_t1_siemens_enhanced"])
def test_cleaning_makes_no_object_unsound(real_series, tmp_path, name, keep_dates):
    source = next(path for path in sorted(real_series(name).rglob("*")) if path.is_file())
    result = deidentify_study(source, tmp_path / "out", key=KEY, keep_dates=keep_dates)
    assert result.written == 1
    assert set(sr_errors(tmp_path / "out" / "000001.dcm")) <= set(sr_errors(source))


def test_a_real_study_loses_its_pages_of_text_and_keeps_its_images(real_series, tmp_path):
    result = deidentify_study(real_series("ct_head_philips_study"), tmp_path / "out", key=KEY)
    assert result.written == 29
    assert sorted(codes(result)) == ["BURNED_IN"] + ["BURNED_IN_RISK"] * 5 + ["KIND_NOT_COVERED"] * 3


@pytest.mark.parametrize(
    "name",
    [
        *("CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm"),
        *("MR_small_padded.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"),
        *("693_J2KI.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_dcmtk.dcm"),
        *("MR_small_RLE.dcm", "SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_small_odd_big_endian.dcm"),
        *("SC_rgb_small_odd.dcm", "examples_jpeg2k.dcm", "JPEG2000.dcm"),
    ],
)
def test_pixels_are_the_same_to_the_bit(tmp_path, name):
    source = Path(get_testdata_file(name))
    result = deidentify_study(source, tmp_path / "out", key=KEY, allow=ALLOWABLE)
    assert result.refused == ()
    before, after = (pixel_array(path, raw=True) for path in (source, tmp_path / "out" / "000001.dcm"))
    assert before.dtype == after.dtype
    assert np.array_equal(before, after)


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"])
def test_compressed_frames_keep_their_bytes_but_for_comments(name):
    before = pydicom.dcmread(get_testdata_file(name))
    after = deidentify_dataset(before, KEY)
    assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
    old, new = (b"".join(generate_frames(d.PixelData, number_of_frames=1)) for d in (before, after))
    differing = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    assert len(differing) <= 40


@pytest.mark.parametrize(
    ("name", "comment"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", b"\xff\xfe\x00\x0aDOE JANE"),
        ("MR_small_jpeg_ls_lossless.dcm", b"\xff\xe1\x00\x0aDOE JANE"),
        ("JPGExtended.dcm", b"\xff\xfe\x00\x0aDOE JANE"),
    ],
)
def test_comments_in_a_jpeg_and_bytes_behind_it_are_gone(name, comment):
    dataset = pydicom.dcmread(get_testdata_file(name))
    expected = dataset.pixel_array
    frame = b"".join(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame[:2] + comment + frame[2:] + b"DOE JANE\xff\xd9"])
    assert b"DOE JANE" in dataset.PixelData
    cleaned = deidentify_dataset(dataset, KEY)
    assert b"DOE" not in cleaned.PixelData
    assert np.array_equal(cleaned.pixel_array, expected)


def test_a_comment_in_a_jpeg_2000_and_bytes_behind_it_are_gone():
    dataset = pydicom.dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    expected = dataset.pixel_array
    frame = b"".join(generate_frames(dataset.PixelData, number_of_frames=1))
    after_size = 4 + int.from_bytes(frame[4:6])
    comment = b"\xff\x64\x00\x0c\x00\x01DOE JANE"
    dataset.PixelData = encapsulate([frame[:after_size] + comment + frame[after_size:] + b"DOE JANE"])
    cleaned = deidentify_dataset(dataset, KEY)
    assert b"DOE" not in cleaned.PixelData
    assert np.array_equal(cleaned.pixel_array, expected)


def test_bytes_between_the_segments_of_a_jpeg_are_refused():
    dataset = pydicom.dcmread(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"))
    frame = b"".join(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame[:2] + b"DOE JANE" + frame[2:]])
    with pytest.raises(ValueError, match="belong to no JPEG segment"):
        deidentify_dataset(dataset, KEY)


def test_a_jpeg_2000_whose_tiles_lead_back_is_refused():
    dataset = pydicom.dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x93\x00\x00\xff\xd9"])
    with pytest.raises(ValueError, match="damaged JPEG 2000"):
        deidentify_dataset(dataset, KEY)


def test_what_hides_behind_an_rle_segment_is_gone():
    dataset = pydicom.dcmread(get_testdata_file("MR_small_RLE.dcm"))
    expected = dataset.pixel_array
    frame = b"".join(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame + b"DOE JANE"])
    cleaned = deidentify_dataset(dataset, KEY)
    assert cleaned.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert b"DOE" not in cleaned.PixelData
    assert np.array_equal(cleaned.pixel_array, expected)


def test_rle_data_too_short_for_its_header_are_refused_before_they_are_decoded():
    dataset = pydicom.dcmread(get_testdata_file("MR_small_RLE.dcm"))
    dataset.Rows = dataset.Columns = 65535
    with pytest.raises(ValueError, match="RLE data too short"):
        deidentify_dataset(dataset, KEY)


# Files and folders.


def test_one_bad_file_stops_nothing_and_no_reason_names_anybody(tmp_path):
    source = tmp_path / "in" / "DOE_JANE_MRN-4711"
    write_series(source, [0, 2, 4])
    (source / "Doe^Jane empty").touch()
    (source / "Doe^Jane letter.txt").write_text("Dear Jane Doe")
    (source / "Doe^Jane short.dcm").write_bytes((source / "1-000").read_bytes()[:-40])
    (source / "Doe^Jane link").symlink_to(source / "1-000")
    os.mkfifo(source / "Doe^Jane pipe")
    done = []
    result = deidentify_study(
        tmp_path / "in", tmp_path / "out", key=KEY, progress=lambda *step: done.append(step)
    )
    assert result.written == 3
    assert {refusal.path.name: refusal.reason.code for refusal in result.refused} == {
        "Doe^Jane empty": "NOT_DICOM",
        "Doe^Jane letter.txt": "NOT_DICOM",
        "Doe^Jane link": "NOT_A_REGULAR_FILE",
        "Doe^Jane pipe": "NOT_A_REGULAR_FILE",
        "Doe^Jane short.dcm": "TRUNCATED",
    }
    assert done[-1] == (8, 8)
    told = f"{result} {[refusal.reason.words for refusal in result.refused]}".lower()
    assert not any(word in told for word in ("doe", "jane", "4711"))
    assert sorted(os.listdir(tmp_path / "out")) == ["000001.dcm", "000002.dcm", "000003.dcm"]


def test_a_damaged_header_is_refused_without_quoting_it(tmp_path):
    write_series(tmp_path / "in", [0.0], Rows=None)
    write_series(tmp_path / "in", [0.0], series=2, StudyInstanceUID="../../Doe^Jane")
    path = write_series(tmp_path / "in", [0.0], series=3)[0]
    dataset = pydicom.dcmread(path)
    dataset.add(DataElement(0x00280008, "LO", "Doe^Jane"))  # NumberOfFrames
    dataset.save_as(path)
    result = deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    assert codes(result) == ["MALFORMED", "NO_UID", "MALFORMED"]
    assert "Doe" not in str(result)


def test_sequences_nested_without_end_are_refused(tmp_path):
    write_series(tmp_path / "in", [0, 2])
    path = tmp_path / "in" / "1-000"
    deep = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 20_000
    content = path.read_bytes()
    pixels = content.index(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(content[:pixels] + deep + content[pixels:])
    result = deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    assert result.written == 1
    assert len(result.refused) == 1


def test_a_path_in_a_uid_leads_nowhere(tmp_path):
    write_series(tmp_path / "in", [0.0], SOPInstanceUID="../../../escape", SeriesInstanceUID="..")
    deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_the_preamble_of_every_file_is_zero(tmp_path):
    path = write_series(tmp_path / "in", [0.0])[0]
    path.write_bytes(b"MZ" + b"\x90" * 126 + path.read_bytes()[128:])
    deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    assert (tmp_path / "out" / "000001.dcm").read_bytes()[:132] == bytes(128) + b"DICM"


def test_a_file_without_preamble_is_read_and_gets_one(tmp_path):
    path = write_series(tmp_path / "in", [0.0])[0]
    dataset = pydicom.dcmread(path)
    del dataset.file_meta
    dataset.preamble = None
    pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True)
    deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    cleaned = pydicom.dcmread(tmp_path / "out" / "000001.dcm")
    assert cleaned.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert np.array_equal(cleaned.pixel_array, anatomy(0))


def test_a_zip_archive_is_read_without_unpacking_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "Doe^Jane.zip", "w") as archive:
        for path in write_series(tmp_path / "in", [0, 2, 4]):
            archive.write(path, f"Doe^Jane/{path.name}")
    result = deidentify_study(tmp_path / "Doe^Jane.zip", tmp_path / "out", key=KEY)
    assert (result.written, result.refused) == (3, ())
    check_same_volume(tmp_path / "in", tmp_path / "out")


def test_a_transfer_syntax_that_is_not_known_is_refused(tmp_path):
    path = write_series(tmp_path / "in", [0.0])[0]
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.106"  # JPEG XL
    dataset["PixelData"].is_undefined_length = True
    dataset.PixelData = encapsulate([b"DOE JANE"])
    dataset.save_as(path)
    assert codes(deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)) == ["MALFORMED"]


def test_a_dicomdir_is_not_copied(tmp_path):
    result = deidentify_study(PACKAGED / "DICOMDIR", tmp_path / "out", key=KEY)
    assert codes(result) == ["KIND_NOT_COVERED"]


def test_an_output_folder_that_is_not_empty_is_refused(tmp_path):
    write_series(tmp_path / "in", [0.0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "000001.dcm").touch()
    with pytest.raises(OutputError, match="not empty"):
        deidentify_study(tmp_path / "in", tmp_path / "out", key=KEY)
    assert (tmp_path / "out" / "000001.dcm").read_bytes() == b""


def test_two_that_write_into_one_new_folder_do_not_write_over_each_other(tmp_path):
    for name in ("one", "two"):
        write_series(tmp_path / name, [0.0])
    (tmp_path / "one" / "0 no image").touch()  # nothing is written yet when the other one comes

    def come(done: int, total: int) -> None:
        if done == 1:
            with pytest.raises(OutputError, match="not empty"):
                deidentify_study(tmp_path / "two", tmp_path / "out", key=KEY)

    assert deidentify_study(tmp_path / "one", tmp_path / "out", key=KEY, progress=come).written == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["000001.dcm"]


def test_an_output_folder_inside_the_source_is_refused(tmp_path):
    write_series(tmp_path / "in", [0.0])
    with pytest.raises(OutputError, match="inside the source"):
        deidentify_study(tmp_path / "in", tmp_path / "in" / "out", key=KEY)
    assert not (tmp_path / "in" / "out").exists()


def test_a_source_that_is_not_there_is_named_as_such(tmp_path):
    with pytest.raises(StudyError, match="nothing at the given source"):
        deidentify_study(tmp_path / "Doe^Jane", tmp_path / "out", key=KEY)


def test_a_short_key_is_refused():
    with pytest.raises(ConfigError, match="token_bytes"):
        deidentify_dataset(ct(), b"secret")


def test_a_full_disk_leaves_whole_files_only(full_disk, tmp_path):
    write_series(tmp_path / "in", [0, 2, 4], stored=lambda k: np.full((120, 120), 1000 + k))
    with pytest.raises(OutputError, match="Free some space"):
        deidentify_study(tmp_path / "in", full_disk / "out", key=KEY)
    names = sorted(os.listdir(full_disk / "out"))
    assert names == ["000001.dcm", "000002.dcm"]
    assert all(pydicom.dcmread(full_disk / "out" / name).pixel_array.shape == (120, 120) for name in names)


# Helpers.


def ct(**attributes) -> pydicom.FileDataset:
    """One image of a sound series, with attributes of its own, as a file would hold it."""
    dataset = image(1, 0)
    dataset.ImagePositionPatient = [0.0, 0.0, 0.0]
    set_pixels(dataset, np.arange(48).reshape(8, 6))
    with pydicom.config.disable_value_validation():
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def reference(sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT_CLASS, sop_instance_uid
    return item


def evidence_report() -> Dataset:
    """A structured report that cites the second image of the first series."""
    report, study, series, text = Dataset(), Dataset(), Dataset(), Dataset()
    report.SOPClassUID, report.Modality = COMPREHENSIVE_SR, "SR"
    report.SOPInstanceUID, report.SeriesInstanceUID, report.StudyInstanceUID = "2.25.5", "2.25.6", "2.25.1000"
    series.SeriesInstanceUID, series.ReferencedSOPSequence = "2.25.1", [reference("2.25.10001")]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = "2.25.1000", [series]
    report.CurrentRequestedProcedureEvidenceSequence = [study]
    text.ValueType, text.TextValue = "TEXT", "Mrs Doe has a mass."
    report.ContentSequence = [text]
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return report


def codes(result) -> list[str]:
    return [refusal.reason.code for refusal in result.refused]


def check_same_volume(source: Path, out: Path) -> None:
    before, after = (largest_series(path) for path in (source, out))
    old, new = read_volume(before), read_volume(after)
    assert np.array_equal(old.voxels, new.voxels)
    assert np.array_equal(old.affine, new.affine)
    assert before.body_part == after.body_part


def largest_series(folder: Path):
    return max(read_study(folder).series, key=lambda series: len(series.instances))
