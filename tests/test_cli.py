"""The front door: what a user can cause is one line, exit code 1, and leaves nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from random import Random

import pydicom
import pytest
from dicom_series import write_series

from mla_med import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """run("draft", folder, ...) -> exit code, standard output, standard error."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mla-med", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    return call


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from mla_med import cli; sys.argv = ['mla-med', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'monai', 'transformers', 'pydicom', 'prefect', 'numpy'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "HEAVY []" in printed
    for verb in ("demo", "inspect", "draft", "phantom", "evaluate", "doctor"):
        assert verb in printed


def test_the_version_is_that_of_the_package(run):
    assert run("--version") == (0, f"mla_med {version('mla_med')}\n", "")


def test_inspect_prints_one_object_with_every_series(run, phantom_series):
    code, printed, _ = run("inspect", phantom_series, "--json")
    assert code == 0
    (study,) = json.loads(printed)["studies"]
    (series,) = study["series"]
    assert series["accepted"]
    assert series["chosen"]
    assert series["reason"] is None
    certificate = series["certificate"]
    assert certificate["shape"][:2] == [136, 136]
    assert certificate["spacing_mm"][2] == pytest.approx(3)
    assert len(certificate["affine"]) == 4
    assert certificate["air_hu"] == pytest.approx(-1000, abs=40)
    assert certificate["body_part_header"] == "chest"
    assert "chest" in certificate["body_part_pixels"]


def test_inspect_says_why_a_series_is_refused(run, packaged_head):
    code, printed, _ = run("inspect", packaged_head, "--json")
    assert code == 0
    (study,) = json.loads(printed)["studies"]
    (series,) = study["series"]
    assert (series["accepted"], series["chosen"], series["certificate"]) == (False, False, None)
    assert series["reason"]["code"] == "MISSING_SLICE"
    code, table, _ = run("inspect", packaged_head)
    assert code == 0
    assert "MISSING_SLICE" in table


@pytest.mark.parametrize("verb", ["inspect", "draft"])
@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: folder / "nowhere", "PATH_MISSING"),
        (lambda folder: folder, "NO_DICOM"),
        (lambda folder: _text_file(folder), "NO_DICOM"),
    ],
)
def test_what_is_no_study_is_one_line(run, tmp_path, verb, make, code):
    (tmp_path / "in").mkdir()
    out = ["--out", tmp_path / "out"] if verb == "draft" else []
    status, _, error = run(verb, make(tmp_path / "in"), *out)
    assert status == 1
    assert len(error.strip().splitlines()) == 1
    assert error.startswith(code + ": ")
    assert not (tmp_path / "out").exists()


def _text_file(folder):
    path = folder / "notes.txt"
    path.write_text("not an image")
    return path


def test_a_missing_checkpoint_is_one_line(run, phantom_series, tmp_path):
    status, _, error = run(
        "draft", phantom_series, "--out", tmp_path / "out", "--checkpoint", tmp_path / "none"
    )
    assert status == 1
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("CHECKPOINT_MISSING: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("share", "code"), [(0.5, "TRUNCATED_PIXELS"), (0.005, "DAMAGED_FILE")])
def test_a_truncated_slice_is_one_line_with_its_file(run, phantom_series, tmp_path, share, code):
    """Part of one file is gone, pixels or header: the study is not drafted from the rest of it."""
    copy = tmp_path / "in"
    copy.mkdir()
    for path in phantom_series.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    victim = copy / "IM0040.dcm"
    victim.write_bytes(victim.read_bytes()[: int(victim.stat().st_size * share)])
    status, _, error = run("draft", copy, "--out", tmp_path / "out")
    assert status == 1
    assert len(error.strip().splitlines()) == 1
    assert error.startswith(code + ": ")
    assert "IM0040.dcm" in error
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(run, phantom_series, full_disk):
    status, _, error = run("draft", phantom_series, "--out", full_disk / "out")
    assert status == 1
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("OUTPUT_NOT_WRITTEN: ")
    assert not list(full_disk.rglob("*.*"))


def test_a_phantom_on_a_full_disk_is_one_line(run, full_disk):
    status, _, error = run("phantom", "study", 1, "--out", full_disk / "p", "--matrix", "64")
    assert status == 1
    assert error.startswith("OUTPUT_NOT_WRITTEN: ")
    assert not list(full_disk.rglob("*.*"))


def test_a_phantom_study_has_its_series_a_report_and_a_truth(run, tmp_path):
    planted = ["--finding", "lung_nodule", "--matrix", "64"]
    status, printed, _ = run("phantom", "study", 19, "--out", tmp_path, *planted)
    assert status == 0
    assert "nodule" in printed
    record = json.loads((tmp_path / "phantom-0000000019.json").read_text())
    assert {finding["code"] for finding in record["findings"]} == {"lung_nodule"}
    assert (tmp_path / "phantom-0000000019.txt").read_text().strip() in printed
    series = sorted((tmp_path / "phantom-0000000019" / "study").iterdir())
    assert pydicom.dcmread(next(series[0].iterdir())).Modality == "CT"


def test_phantoms_without_a_verb_name_the_verbs(run):
    _, printed, error = run("phantom")
    for verb in ("study", "cohort", "sheet"):
        assert verb in printed + error


def test_an_unknown_finding_names_those_that_exist(run, tmp_path):
    status, _, error = run("phantom", "study", 1, "--out", tmp_path, "--finding", "hangnail")
    assert status == 1
    assert "lung_nodule" in error


def test_evaluate_scores_and_says_where_the_page_is(run, tmp_path):
    from evaluation.linter import random_findings
    from mla_med.report.render import body_text, render_report

    texts = [body_text(render_report(random_findings("chest_ct", Random(seed)))) for seed in range(12)]
    for name in ("references", "drafts"):
        lines = [json.dumps({"id": n, "report": text}) for n, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    status, printed, _ = run(
        "evaluate", tmp_path / "references.jsonl", tmp_path / "drafts.jsonl", "--out", tmp_path / "scores"
    )
    assert status == 0
    assert "BLEU-4 | 1.000" in printed
    assert (tmp_path / "scores" / "page.html").is_file()
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert "tok:" in json.dumps(metrics)


def test_no_patient_appears_in_output_or_errors(run, tmp_path, packaged_head):
    """The name and the ID of the packaged real patient, in every verb that reads the study."""
    header = pydicom.dcmread(next(packaged_head.iterdir()), stop_before_pixels=True)
    names = [str(header.PatientName.family_name), str(header.PatientID)]
    assert all(len(name) > 2 for name in names)
    printed = "".join(run("inspect", packaged_head)[1:] + run("draft", packaged_head, "--out", tmp_path)[1:])
    printed += (tmp_path / "draft.json").read_text() + (tmp_path / "draft.html").read_text()
    # the folders of the package are named after the patient ID; only file names may be shown
    assert not [name for name in names if name in printed.replace(str(tmp_path), "")]


def test_doctor_finds_what_is_here(run):
    status, printed, _ = run("doctor")
    assert status == 0
    assert "torch" in printed
    assert "MISSING" not in printed


def test_a_name_in_a_description_is_removed(run, phantom_series, tmp_path):
    for path in sorted(phantom_series.iterdir())[::8]:
        ds = pydicom.dcmread(path)
        ds.PatientName, ds.SeriesDescription = "Mueller^Anna", "THORAX Mueller [soft]"
        ds.ImagePositionPatient[2] = float(ds.ImagePositionPatient[2])
        ds.save_as(tmp_path / path.name)
    _, printed, _ = run("inspect", tmp_path)
    assert "Mueller" not in printed
    assert "[soft]" in printed


def test_a_phantom_never_replaces_what_is_there(run, tmp_path):
    there = tmp_path / "phantom-0000000001" / "scan.dcm"
    there.parent.mkdir()
    there.write_bytes(b"somebody's study")
    status, _, error = run("phantom", "study", 1, "--out", tmp_path, "--matrix", "64")
    assert status == 1
    assert error.startswith("OUTPUT_IN_USE: ")
    assert there.read_bytes() == b"somebody's study"


HOLE, DAMAGED = "2.25.72", "2.25.73"


def write_days_work(folder, phantom_series):
    """Three studies: a phantom, a series with a hole, and one of which a file is damaged."""
    shutil.copytree(phantom_series, folder / "a")
    write_series(folder / "b", [0, 2, 6, 8], series=2, StudyInstanceUID=HOLE, PatientID="B")
    paths = write_series(folder / "c", [0, 2, 4, 6], series=3, StudyInstanceUID=DAMAGED, PatientID="C")
    paths[1].write_bytes(paths[1].read_bytes()[:600])
    return folder


def test_inspect_takes_a_tree_of_studies(run, tmp_path, phantom_series):
    folder = write_days_work(tmp_path, phantom_series)
    code, printed, _ = run("inspect", folder, "--json", "--headers-only")
    assert code == 0
    studies = {s["study_uid"]: s for s in json.loads(printed)["studies"]}
    hole, damaged = studies.pop(HOLE), studies.pop(DAMAGED)
    (phantom,) = studies.values()
    assert [s["series"][0]["accepted"] for s in (phantom, hole, damaged)] == [True, False, False]
    assert [p["code"] for p in damaged["problems"]] == ["TRUNCATED"]
    code, printed, _ = run("inspect", tmp_path)
    assert code == 0
    assert "3 studies" in printed
    assert "MISSING_SLICE" in printed


def test_draft_of_a_tree_drafts_each_study_and_stops_at_none(run, tmp_path, phantom_series):
    folder = write_days_work(tmp_path / "in", phantom_series)
    code, printed, _ = run("draft", folder, "--out", tmp_path / "out")
    assert code == 1, "one of them failed"
    rows = {row["study_uid"]: row for row in json.loads((tmp_path / "out/studies.json").read_text())}
    hole, damaged = rows.pop(HOLE), rows.pop(DAMAGED)
    (phantom,) = rows.values()
    assert [row["state"] for row in (phantom, hole, damaged)] == ["drafted", "refused", "failed"]
    assert [reason["code"] for reason in hole["reasons"]][:2] == ["NO_SERIES", "MISSING_SLICE"]
    assert [reason["code"] for reason in damaged["reasons"]] == ["DAMAGED_FILE"]
    assert (tmp_path / "out" / phantom["folder"] / "draft.dcm").is_file()
    assert len(phantom["folder"]) == 16
    assert "drafted" in printed


def test_a_nifti_file_is_drafted_without_an_sr(run, tmp_path, phantom_series):
    from mla_med.dicom.study import read_study
    from mla_med.dicom.volume import read_volume
    from mla_med.imaging.nifti import write_nifti

    write_nifti(read_volume(read_study(phantom_series).series[0]), tmp_path / "ct.nii.gz")
    code, printed, _ = run("inspect", tmp_path / "ct.nii.gz")
    assert code == 0
    assert "NIfTI" in printed
    code, printed, _ = run("draft", tmp_path / "ct.nii.gz", "--out", tmp_path / "none")
    assert code == 0
    assert "NO_CONTEXT" in printed
    known = ["--age", 61, "--sex", "f"]
    code, printed, _ = run("draft", tmp_path / "ct.nii.gz", "--out", tmp_path / "out", *known)
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["draft.html", "draft.json", "draft.txt"]
    assert "pleural effusion" in (tmp_path / "out/draft.txt").read_text().lower()


def test_a_zip_archive_is_drafted(run, tmp_path, phantom_series):
    shutil.make_archive(str(tmp_path / "study"), "zip", phantom_series)
    code, _, _ = run("draft", tmp_path / "study.zip", "--out", tmp_path / "out")
    assert code == 0
    assert (tmp_path / "out/draft.dcm").is_file()


def test_deidentify_copies_a_study_without_its_patient(run, tmp_path):
    write_series(tmp_path / "in", [0, 2, 4, 6])
    key = ["--key-file", tmp_path / "key"]
    code, printed, _ = run("deidentify", tmp_path / "in", "--out", tmp_path / "out", *key)
    assert code == 0
    assert "4 files of 1 studies written" in printed
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    for path in (tmp_path / "out").iterdir():
        assert b"Doe" not in path.read_bytes()
    write_series(tmp_path / "screens", [0], ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])
    code, printed, _ = run("deidentify", tmp_path / "screens", "--out", tmp_path / "none", *key)
    assert code == 1
    assert "RISK" in printed or "DERIVED" in printed


def test_uneven_slices_are_accepted_when_asked_for(run, tmp_path):
    write_series(tmp_path, [0, 2, 4, 6.1, 8.1, 10])
    code, printed, _ = run("inspect", tmp_path)
    assert "UNEVEN_SPACING" in printed
    code, printed, _ = run("inspect", tmp_path, "--resample")
    assert code == 0
    assert "Resampled: 6 uneven slices" in printed


def test_a_site_may_bring_its_own_rules(run, tmp_path):
    write_series(tmp_path / "in", [0, 2, 4, 6])
    (tmp_path / "rules.toml").write_text("[examination.chest_ct]\nthicknes_mm = [0.5, 1.0]\n")
    code, _, error = run("inspect", tmp_path / "in", "--rules", tmp_path / "rules.toml")
    assert code == 1
    assert "thickness_mm" in error, "the nearest known key is named"
