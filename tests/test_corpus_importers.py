"""Sources -> pairs: volumes rescaled once, reports matched, and nothing taken that nobody signed."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import SHARED
from phantom_drafts import certificate
from phantoms import volume_series
from pydicom import dcmread

from dapt.build import BuildConfig, build_corpus, load_hide
from dapt.importers.ct_rate import read_ct_rate
from dapt.importers.dicom import match, read_dicom_hl7, read_dicom_sr
from dapt.importers.documents import Written, read_hl7, read_sr
from dapt.importers.pair import Hide, Pair, Refused, Rescale
from dapt.importers.public import read_iu_xray, read_roco
from dapt.importers.tables import age_years, read_table
from dapt.placing import _rescaled, looks_like_hu
from mla_med.corpus import load_image, read_about, read_examples
from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.documents.write import write_documents
from mla_med.errors import ReportError, SeriesError
from mla_med.imaging.nifti import write_nifti
from mla_med.imaging.transforms import BRAIN_MR, Preprocessing
from mla_med.report.parse import parse_report
from mla_med.report.render import body_text, render_report
from mla_med.report.style import load_style
from mla_med.types import Draft, Finding, Gate, Presence, Provenance, SeriesVerdict, Side

SMALL = Preprocessing(shape=(32, 24, 32), spacing_mm=12.0)
HERE = BuildConfig(workers=0, preprocessing=SMALL)
HIDE = Hide(b"salt of the tests")
TEXTS = SHARED / "text"
needs_texts = pytest.mark.skipif(not TEXTS.is_dir(), reason="shared/data/text is not here")
FINDINGS = [
    Finding("lung_mass", site="upper_lobe", side=Side.RIGHT, size_mm=42.0),
    Finding("pleural_effusion", side=Side.LEFT),
]


@pytest.fixture(scope="module")
def study(phantom_study) -> Path:
    return phantom_study("lung_mass", "pleural_effusion", "cardiomegaly")


@pytest.fixture(scope="module")
def volume(study):
    """Every other voxel of its axial series."""
    whole = read_volume(max(read_study(study).series, key=lambda s: len(s.instances)))
    affine = whole.affine @ np.diag([2.0, 2.0, 1.0, 1.0])
    voxels = np.ascontiguousarray(whole.voxels[::2, ::2])
    i, j, k = whole.certificate.spacing_mm
    sound = replace(whole.certificate, shape=voxels.shape, spacing_mm=(2 * i, 2 * j, k))
    return replace(whole, voxels=voxels, affine=affine, certificate=sound)


@pytest.fixture(scope="module")
def draft(study) -> Draft:
    read = read_study(study)
    series = max(read.series, key=lambda s: len(s.instances))
    report = render_report(FINDINGS, load_style("prose"))
    origin = Provenance(
        "mla", "0.1", "ab" * 32, read.study_uid, (series.series_uid,), "2026-11-05T09:30:12+00:00"
    )
    verdict = SeriesVerdict(series, certificate(), None, chosen=True)
    return Draft(report, Gate(True), (verdict,), {}, origin)


@pytest.fixture(scope="module")
def documents(draft) -> dict[str, bytes]:
    return {d.format: d.content for d in write_documents(draft, formats=("sr", "hl7"))}


def signed(sr: bytes) -> bytes:
    """As a RIS would send it."""
    dataset = dcmread(io.BytesIO(sr))
    dataset.PreliminaryFlag, dataset.VerificationFlag = "FINAL", "VERIFIED"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def pairs(imported) -> list[Pair]:
    return [item for item in imported if isinstance(item, Pair)]


def codes(imported) -> list[str]:
    return [item.code for item in imported if isinstance(item, Refused)]


# CT-RATE


def write_ct_rate(folder: Path, volumes: dict, slope: float = 1.0, intercept: float = -1024.0) -> Path:
    """As it is published: patient, study and reconstruction as folders, and three tables."""
    names = []
    for name, volume in volumes.items():
        patient, letter = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
        (folder / "valid" / patient / letter).mkdir(parents=True, exist_ok=True)
        write_nifti(volume, folder / "valid" / patient / letter / f"{name}.nii.gz")
        names.append(f"{name}.nii.gz")
    spacing = next(iter(volumes.values())).certificate.spacing_mm
    write(
        folder / "validation_reports.csv",
        [
            {
                "VolumeName": name,
                "ClinicalInformation_EN": "Cough.",
                "Technique_EN": "Without contrast.",
                "Findings_EN": "A mass in the right upper lobe.",
                "Impressions_EN": "Mass.",
            }
            for name in names
        ],
    )
    write(
        folder / "valid_predicted_labels.csv",
        [
            {"VolumeName": name, "Medical material": 0, "Lung nodule": 1, "Pleural effusion": "1"}
            for name in names
        ],
    )
    write(
        folder / "validation_metadata.csv",
        [
            {
                "VolumeName": name,
                "RescaleSlope": slope,
                "RescaleIntercept": intercept,
                "XYSpacing": f"[{spacing[0]}, {spacing[1]}]",
                "ZSpacing": spacing[2],
                "PatientAge": "061Y",
                "PatientSex": "F",
            }
            for name in names
        ],
    )
    return folder


def write(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def corpus_of(imported, source: Path, out: Path, kind: str) -> Path:
    return build_corpus(imported, kind, source, out, HERE)


def test_both_versions_of_ct_rate_give_the_same_hu(volume, tmp_path):
    """Version 1 holds stored values, with padding; version 2 holds HU; their tables say the same."""
    stored = volume.voxels + 1024
    stored[:2] = -2000
    raw = replace(volume, voxels=stored)
    hu = replace(volume, voxels=stored - 1024)
    arrays = []
    for name, volumes in {"v1": {"valid_1_a_1": raw}, "v2": {"valid_1_a_1": hu}}.items():
        source = write_ct_rate(tmp_path / name, volumes)
        out = tmp_path / f"corpus-{name}"
        corpus = corpus_of(read_ct_rate(source, load_hide(out)), source, out, "ct-rate")
        (example,) = read_examples(corpus, "validation")
        arrays.append(np.load(example.image))
    assert np.array_equal(*arrays)
    assert -1100 < np.percentile(arrays[0], 20) < -700
    assert example.contexts == {"en": "61 years, F, Cough."}
    assert example.reports == {"en": "FINDINGS: A mass in the right upper lobe.\nIMPRESSION: Mass."}
    assert {f.code for f in example.findings} == {"lung_nodule", "pleural_effusion"}
    assert example.labels == "given"
    assert set(example.known) == {"medical_material", "lung_nodule", "pleural_effusion"}


def test_hu_rescaled_again_and_what_is_neither_are_refused_and_the_study_is_named(volume, tmp_path):
    twice = replace(volume, voxels=volume.voxels - 1024)
    flat = replace(volume, voxels=np.full_like(volume.voxels, 40.0))
    source = write_ct_rate(
        tmp_path / "source", {"valid_1_a_1": twice, "valid_2_a_1": flat, "valid_10_a_1": volume}
    )
    (tmp_path / "source" / "no_chest_valid.txt").write_text("valid_1_b_1.nii.gz\n")
    out = tmp_path / "corpus"
    corpus = corpus_of(read_ct_rate(source, load_hide(out)), source, out, "ct-rate")
    with (corpus / "refused.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["code"] for r in rows] == ["HU_AMBIGUOUS", "HU_AMBIGUOUS"]
    assert rows[0]["place"] == "validation_reports.csv, line 2"
    assert "neither looks like HU" in rows[0]["reason"]
    # what they say is still text
    assert read_about(corpus)["splits"]["validation"]["images"] == 1
    assert len(read_examples(corpus, "validation")) == 3


def test_what_values_are_is_seen_by_air_and_tissue():
    rng = np.random.default_rng(3)
    air, tissue = rng.normal(-990, 20, (20, 30, 30)), rng.normal(40, 15, (20, 30, 30))
    hu = np.concatenate([air, tissue]).astype(np.float32)
    assert looks_like_hu(hu)
    assert not looks_like_hu(hu + 1024)
    assert not looks_like_hu(hu - 1024)
    assert not looks_like_hu(np.full((5, 5, 5), 40.0, np.float32))
    stated = Rescale(1.0, -1024.0)
    assert np.array_equal(_rescaled(hu, stated), hu)
    assert np.allclose(_rescaled(hu + 1024, stated), hu, atol=1e-3)
    # an intercept of 0 or 30 tells nothing: both readings have air and tissue
    with pytest.raises(SeriesError, match="both look like HU"):
        _rescaled(hu, Rescale(1.0, 30.0))
    assert np.array_equal(_rescaled(hu, Rescale(1.0, 30.0, "hu")), hu)


def test_a_table_whose_spacing_is_not_that_of_the_file_is_not_believed(volume, tmp_path):
    source = write_ct_rate(tmp_path / "source", {"valid_3_a_1": volume, "valid_4_a_1": volume})
    table = tmp_path / "source" / "validation_metadata.csv"
    rows = list(csv.DictReader(table.open()))
    rows[1]["ZSpacing"] = float(rows[1]["ZSpacing"]) / 2
    write(table, rows)
    out = tmp_path / "corpus"
    corpus = corpus_of(read_ct_rate(source, load_hide(out)), source, out, "ct-rate")
    assert read_about(corpus)["refused"] == {"image SPACING_DIFFERS": 1}


def test_reconstructions_of_a_study_are_of_one_patient_and_valid_10_comes_after_valid_2(tmp_path):
    rows = [
        {"VolumeName": f"valid_{name}.nii.gz", "Findings_EN": "Clear.", "Impressions_EN": ""}
        for name in ("10_a_1", "2_a_1", "2_a_2", "2_b_1")
    ]
    write(tmp_path / "reports.csv", rows)
    found = pairs(read_ct_rate(tmp_path, HIDE))
    assert [p.place[-1] for p in found] == ["3", "4", "5", "2"]
    assert len({p.patient for p in found}) == 2
    assert len({p.study for p in found}) == 3


@needs_texts
def test_real_reports_of_ct_rate_come_with_their_eighteen_labels(tmp_path):
    found = pairs(read_ct_rate(TEXTS / "ct_rate_reports_train", HIDE))
    assert len(found) == 800
    assert all(p.split == "train" and len(p.known) == 18 for p in found)
    assert found[0].report.startswith("FINDINGS: Trachea, both main bronchi are open.")
    assert found[0].report.endswith("IMPRESSION: Thoracic CT examination within normal limits")
    assert sum(any(f.code == "lung_nodule" for f in p.findings) for p in found) > 300


@needs_texts
def test_texts_of_iu_xray_and_roco_keep_their_splits_and_articles():
    iu = pairs(read_iu_xray(TEXTS / "iu_xray", HIDE))
    assert [sum(p.split == s for p in iu) for s in ("train", "validation", "test")] == [3062, 382, 382]
    roco = pairs(read_roco(TEXTS / "roco_captions_val", HIDE))
    assert len(roco) == 8180
    assert len({p.patient for p in roco}) < len(roco)


# DICOM SR


def test_an_sr_of_this_project_comes_back_as_the_report_that_it_holds(documents, draft, tmp_path):
    path = tmp_path / "sr.dcm"
    path.write_bytes(documents["sr"])
    written = read_sr(path)
    assert written.report == body_text(draft.report, load_style("prose"))
    parsed = parse_report(written.report, load_style("prose"))
    assert [f for f in parsed.findings if f.presence is Presence.PRESENT] == [
        f for f in draft.report.findings if f.presence is Presence.PRESENT
    ]
    assert (written.language, written.study_uid) == ("en", draft.provenance.study_uid)
    assert not written.is_final


def test_a_study_with_its_signed_sr_is_a_pair_and_with_a_draft_it_is_not(study, documents, draft, tmp_path):
    signed_study, drafted = tmp_path / "archive" / "signed", tmp_path / "drafts" / "drafted"
    shutil.copytree(volume_series(study), signed_study / "CT")
    shutil.copytree(volume_series(study), drafted / "CT")
    (signed_study / "report.dcm").write_bytes(signed(documents["sr"]))
    (drafted / "report.dcm").write_bytes(documents["sr"])
    source, out = tmp_path / "archive", tmp_path / "corpus"
    corpus = corpus_of(read_dicom_sr(source, load_hide(out)), source, out, "dicom+sr")
    (example,) = read_examples(corpus, "all")
    assert np.load(example.image).shape == SMALL.shape
    assert example.reports["en"] == body_text(draft.report, load_style("prose"))
    assert {"lung_mass", "pleural_effusion"} <= {f.code for f in example.findings}
    assert draft.provenance.study_uid not in (corpus / "train.jsonl").read_text()
    imported = list(read_dicom_sr(tmp_path / "drafts", HIDE))
    assert codes(imported) == ["REPORT_PRELIMINARY"]
    assert [p.report for p in pairs(imported)] == [None]
    assert pairs(read_dicom_sr(tmp_path / "drafts", HIDE, allow_preliminary=True))[0].report


def test_a_damaged_study_is_refused_without_its_name(study, tmp_path):
    source, out = tmp_path / "source", tmp_path / "corpus"
    shutil.copytree(volume_series(study), source / "sound")
    shutil.copytree(volume_series(study), source / "MUSTERMANN^ERIKA")
    other = sorted((source / "MUSTERMANN^ERIKA").iterdir())
    for path in other[:5]:
        path.write_bytes(path.read_bytes()[:900])
    shutil.copytree(source / "sound", source / "twice")
    corpus = corpus_of(read_dicom_sr(source, load_hide(out)), source, out, "dicom+sr")
    with (corpus / "refused.csv").open() as file:
        rows = {r["code"]: r for r in csv.DictReader(file)}
    assert set(rows) == {"DAMAGED_FILE", "STUDY_TWICE"}
    assert "MUSTERMANN" not in (corpus / "refused.csv").read_text()
    assert "MUSTERMANN^ERIKA" in (corpus / "confidential" / "sources.csv").read_text()


# HL7


MESSAGE = "\r".join(
    (
        "MSH|^~\\&|RIS|HOSPITAL|||20260301||ORU^R01|17|P|2.3||||||8859/1",
        "PID|1||4711^^^HOSPITAL^MR||Muster^Erika||19600101|F",
        "OBR|1|P9|ACC77^RIS|71250^CT Chest|||202603010900||||||Cough for \xfcber\\.br\\three weeks"
        "|||||ACC77|||||||F",
        "OBX|1|TX|71250&GDT^CT Chest||Mass \\T\\ effusion in Ms Erika Muster.~Size 42\\S\\mm.||||||F",
        "OBX|2|TX|71250&GDT^CT Chest||No pneumothorax.||||||F",
        "OBX|3|TX|71250&IMP^CT Chest||Mass.||||||F",
        "ZDS|1.2.3.4.5.6^RIS^Application^DICOM",
        "",
    )
)


def test_a_message_of_another_system_is_read_with_its_escapes_characters_and_sections(tmp_path):
    path = tmp_path / "a.hl7"
    path.write_bytes(MESSAGE.encode("latin-1"))
    (written,) = read_hl7(path)
    assert written.report == (
        "FINDINGS: Mass & effusion in Ms [removed]. Size 42^mm. No pneumothorax.\nIMPRESSION: Mass."
    )
    assert written.context == "Cough for über three weeks"
    assert (written.study_uid, written.accessions, written.patient) == (
        "1.2.3.4.5.6",
        ("ACC77", "P9"),
        "4711",
    )
    assert written.is_final
    assert "4711" not in repr(written)


def test_a_batch_holds_several_reports_and_an_unsigned_one_is_not_final(tmp_path):
    path = tmp_path / "batch.hl7"
    other = MESSAGE.replace("||||||F", "||||||P").replace("ACC77", "ACC78")
    path.write_bytes((MESSAGE + other).replace("\r", "\r\n").encode("latin-1"))
    assert [(w.accessions[0], w.is_final) for w in read_hl7(path)] == [("ACC77", True), ("ACC78", False)]
    path.write_bytes(b"MSH|^~\\&|A||||1||ADT^A01|1|P|2.3\rPID|1||5\r")
    with pytest.raises(ReportError, match="No ORU"):
        read_hl7(path)


def test_a_damaged_document_is_an_error_of_ours_and_never_prints_a_name(documents, tmp_path, capsys, recwarn):
    rng = np.random.default_rng(11)
    path = tmp_path / "damaged"
    for content, read, turns in ((MESSAGE.encode("latin-1"), read_hl7, 300), (documents["sr"], read_sr, 60)):
        for _ in range(turns):
            data = bytearray(content)
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(256)
            path.write_bytes(bytes(data[: rng.integers(len(data) // 2, len(data) + 1)]))
            with contextlib.suppress(ReportError):
                read(path)
    assert "Muster" not in "".join(capsys.readouterr())
    assert not any("Muster" in str(warning.message) for warning in recwarn)


def test_the_message_of_this_project_finds_its_study(study, documents, draft, tmp_path):
    source = tmp_path / "archive"
    shutil.copytree(volume_series(study), source / "study")
    (source / "messages").mkdir()
    (source / "messages" / "draft.hl7").write_bytes(documents["hl7"])
    (source / "messages" / "other.hl7").write_bytes(MESSAGE.encode("latin-1"))
    assert codes(read_dicom_hl7(source, HIDE)) == ["REPORT_PRELIMINARY"]
    found = pairs(read_dicom_hl7(source, HIDE, allow_preliminary=True))
    with_image = [p for p in found if p.image is not None]
    assert [p.report for p in with_image] == [body_text(draft.report, load_style("prose"))]
    (alone,) = [p for p in found if p.image is None]
    assert alone.report.endswith("IMPRESSION: Mass.")


def test_reports_are_matched_by_uid_then_accession_then_the_only_study_of_a_patient():
    studies = [("1.1", "A", ("7",)), ("1.2", "A", ("8",)), ("1.3", "B", ("7",)), ("1.4", "C", ())]

    def report(uid: str = "", numbers: tuple[str, ...] = (), patient: str = "") -> Written:
        return Written("text", "", "en", uid, numbers, patient)

    def found(*reports: Written) -> dict[str, int]:
        return {uid: len(some) for uid, some in match(studies, reports).items()}

    assert found(report("1.2")) == {"1.2": 1}
    assert found(report(numbers=("7",), patient="B")) == {"1.3": 1}
    assert found(report(numbers=("7",), patient="")) == {}
    assert found(report(patient="C")) == {"1.4": 1}
    assert found(report(patient="A")) == {}
    assert found(report(patient="C"), report(patient="C")) == {}
    # of a study that is not here, whoever it is
    assert found(report("9.9", patient="C")) == {}


# tables


def test_a_table_leads_to_dicom_nifti_and_says_which_row_is_wrong(study, volume, tmp_path):
    shutil.copytree(volume_series(study), tmp_path / "dicom")
    write_nifti(volume, tmp_path / "a.nii.gz")
    rows = [
        {"path": "dicom", "report": "Mass.", "age": "", "sex": ""},
        {"path": "a.nii.gz", "report": "Mass.", "age": "61", "sex": "F"},
        {"path": "a.nii.gz", "report": "Mass.", "age": "old", "sex": ""},
        {"path": "gone.nii.gz", "report": "", "age": "", "sex": ""},
    ]
    table = write(tmp_path / "pairs.csv", rows)
    out = tmp_path / "corpus"
    corpus = corpus_of(read_table(table, "chest_ct", load_hide(out)), table, out, "csv")
    examples = read_examples(corpus, "all")
    assert [np.load(e.image).shape for e in examples] == [SMALL.shape] * 2
    # the request of a study is that of its headers
    assert all(e.contexts["en"] for e in examples)
    with (corpus / "refused.csv").open() as file:
        assert [(r["code"], r["place"]) for r in csv.DictReader(file)] == [
            ("AGE_INVALID", "pairs.csv, line 4"),
            ("PATH_MISSING", "pairs.csv, line 5"),
        ]


def test_sequences_of_an_mr_are_named_by_their_columns(tmp_path):
    place = np.indices((40, 48, 40)) - np.array([20, 24, 20])[:, None, None, None]
    head = 200.0 * (np.square(place).sum(0) < 17**2) + np.random.default_rng(2).normal(5, 2, (40, 48, 40))
    for name in ("t1", "flair"):
        image = nib.Nifti1Image(head.astype(np.int16), np.diag([5.0, 5.0, 5.0, 1.0]))
        image.set_sform(image.affine, code="scanner")
        nib.save(image, tmp_path / f"{name}.nii")
    rows = [{"T1": "t1.nii", "FLAIR": "flair.nii", "path": ""}, {"T1": "", "FLAIR": "", "path": "t1.nii"}]
    table, out = write(tmp_path / "pairs.csv", rows), tmp_path / "corpus"
    grid = replace(BRAIN_MR, shape=(24, 28, 24), spacing_mm=8.0)
    config = BuildConfig(examination="brain_mr", workers=0, preprocessing=grid)
    build_corpus(read_table(table, "brain_mr", load_hide(out)), "csv", table, out, config)
    (example,) = read_examples(out, "all")
    assert example.present == (True, False, True, False, False, False)
    image_CIJK = load_image(example, grid)
    assert image_CIJK[0].std() > 0.5
    assert not image_CIJK[1].any()
    assert read_about(out)["refused"] == {"image SEQUENCE_UNKNOWN": 1}


def test_ages_are_read_as_dicom_and_people_write_them():
    assert [age_years(t) for t in ("64", "064Y", "006M", "21D", "")] == [64, 64, 0.5, 0.06, None]
    with pytest.raises(ReportError):
        age_years("640")
