"""Pairs -> corpus: whole after a kill, never stale, leaks named, and silent about who it is."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from dapt.build import BuildConfig, build_corpus, load_hide, split_of
from dapt.corpus import main
from dapt.importers.pair import Hide
from dapt.importers.public import read_medpix
from dapt.importers.tables import read_table
from dapt.placing import PICTURES, _bare, hash_of_transform
from dapt.privacy import find_identifiers, mask_identifiers
from flows import FlowError
from mla_med.corpus import load_image, read_about, read_examples, read_settings
from mla_med.errors import ConfigError, MlaMedError, OutputError, StudyError

HERE = BuildConfig(examination="", workers=0)
MEDPIX = SHARED / "medpix_train_dev"
needs_medpix = pytest.mark.skipif(not MEDPIX.is_dir(), reason="shared/data/medpix_train_dev is not here")
slow = pytest.mark.skipif(not os.environ.get("MLA_MED_SLOW"), reason="takes minutes: MLA_MED_SLOW=1")


def write_pictures(folder: Path, n: int = 12, **columns) -> Path:
    """A table of noisy pictures, each of another patient."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    rows = []
    for k in range(n):
        Image.fromarray(rng.integers(0, 255, (40 + k, 50), np.uint8)).save(folder / f"{k}.png")
        rows.append({"path": f"{k}.png", "patient": f"P{k}", "report": f"Report {k} of a picture."})
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=False):
            row[name] = value
    return write_table(folder / "pairs.csv", rows)


def write_table(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)
    return path


def build(table: Path, out: Path, config: BuildConfig = HERE, progress=lambda done, refused: None) -> Path:
    pairs = read_table(table, config.examination, load_hide(out))
    return build_corpus(pairs, "csv", table, out, config, progress)


def contents(corpus: Path) -> dict[str, bytes]:
    return {str(p.relative_to(corpus)): p.read_bytes() for p in corpus.rglob("*") if p.is_file()}


def refusals(corpus: Path) -> list[dict[str, str]]:
    with (corpus / "refused.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def with_salt_of(other: Path, folder: Path) -> Path:
    shutil.copytree(other / "confidential", folder / "confidential")
    return folder


def test_a_corpus_is_read_as_one_of_phantoms_is(tmp_path):
    table = write_pictures(tmp_path / "source", 4, age=["64", "", "", ""], context=["cough", "", "", ""])
    corpus = build(table, tmp_path / "corpus")
    examples = read_examples(corpus, "all")
    assert len(examples) == 4
    first = next(e for e in examples if e.reports["en"] == "Report 0 of a picture.")
    assert first.contexts == {"en": "64 years, cough"}
    assert (first.labels, first.known, first.findings, first.boxes_mm) == ("none", (), (), {})
    image = load_image(first, read_settings(corpus))
    assert image.shape == (1, *PICTURES.shape)
    assert image.min() == -2.5


def test_black_is_lowest_white_highest_and_the_left_of_a_picture_is_the_right_of_the_patient(tmp_path):
    picture = np.zeros((256, 256), np.uint8)
    picture[10:40, 20:60] = 255  # above and left
    Image.fromarray(picture).save(tmp_path / "a.png")
    table = write_table(tmp_path / "t.csv", [{"path": "a.png", "report": "One square."}])
    corpus = build(table, tmp_path / "corpus")
    image_IJ = load_image(read_examples(corpus, "all")[0], read_settings(corpus))[0, :, :, 0]
    right, front = np.argwhere(image_IJ == 5.0).mean(0)
    assert (right, front) == (215.5, 230.5)
    assert (image_IJ == 5.0).sum() == 30 * 40


def test_killed_and_run_again_it_leaves_the_bytes_of_an_unbroken_run(tmp_path):
    table = write_pictures(tmp_path / "source")
    whole = build(table, tmp_path / "whole")
    broken = with_salt_of(whole, tmp_path / "broken")

    def die(done: int, refused: int) -> None:
        if done == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        build(table, broken, progress=die)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    made = {p: p.stat().st_mtime_ns for p in (broken / "images").glob("*.npy")}
    assert len(made) == 7
    assert not (broken / "corpus.json").exists()
    next(iter(made)).with_suffix(".9.part").write_bytes(b"half")
    build(table, broken)
    assert contents(broken) == contents(whole)
    assert {p: p.stat().st_mtime_ns for p in made} == made


def test_an_image_that_is_not_whole_is_made_again(tmp_path):
    table = write_pictures(tmp_path / "source", 2)
    corpus = build(table, tmp_path / "corpus")
    before = contents(corpus)
    damaged = next((corpus / "images").glob("*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    build(table, corpus)
    assert contents(corpus) == before


def test_another_transform_or_other_bytes_make_another_image(tmp_path):
    table = write_pictures(tmp_path / "source", 3)
    corpus = build(table, tmp_path / "corpus")
    first = {p.name for p in (corpus / "images").glob("*.npy")}
    Image.fromarray(np.eye(50, dtype=np.uint8) * 9).save(tmp_path / "source" / "1.png")
    build(table, corpus)
    used = {e.image.name for e in read_examples(corpus, "all")}
    assert len(used - first) == 1
    assert read_about(corpus)["unused_images"] == 1
    smaller = replace(PICTURES, shape=(64, 64, 1))
    build(table, corpus, replace(HERE, preprocessing=smaller))
    assert not {e.image.name for e in read_examples(corpus, "all")} & first
    assert {np.load(e.image).shape for e in read_examples(corpus, "all")} == {(1, 64, 64, 1)}


def test_the_hash_of_a_transform_knows_code_from_comment():
    code = 'def f(x):\n    """Doubles."""\n    return 2 * x  # twice\n'
    assert _bare(code) == _bare("def f(x):\n    return 2 * x\n")
    assert _bare(code) != _bare(code.replace("2 *", "3 *"))
    assert hash_of_transform(PICTURES) != hash_of_transform(replace(PICTURES, spacing_mm=2.0))


def test_a_renamed_file_is_the_same_image(tmp_path):
    table = write_pictures(tmp_path / "source", 2)
    corpus = build(table, tmp_path / "corpus")
    before = {p.name for p in (corpus / "images").glob("*.npy")}
    (tmp_path / "source" / "0.png").rename(tmp_path / "source" / "renamed.png")
    table.write_text(table.read_text().replace("0.png", "renamed.png"))
    build(table, corpus)
    assert {p.name for p in (corpus / "images").glob("*.npy")} == before


def test_one_bad_file_costs_itself_and_is_named_where_only_its_owner_looks(tmp_path):
    table = write_pictures(tmp_path / "source", 5)
    (tmp_path / "source" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "source" / "3.png").unlink()
    corpus = build(table, tmp_path / "corpus")
    found = {r["code"]: r for r in refusals(corpus)}
    assert set(found) == {"PICTURE_DAMAGED", "PATH_MISSING"}
    assert found["PICTURE_DAMAGED"]["what"] == "image"
    sources = (corpus / "confidential" / "sources.csv").read_text()
    assert f"{found['PICTURE_DAMAGED']['id']},2.png" in sources
    # its text can still be learnt from
    (left,) = [e for e in read_examples(corpus, "all") if e.image is None]
    assert left.reports == {"en": "Report 2 of a picture."}
    with pytest.raises(StudyError, match="no image"):
        load_image(left, read_settings(corpus))


def test_a_full_disk_stops_everything_and_blames_no_study(full_disk, tmp_path):
    table = write_pictures(tmp_path / "source", 3)
    with pytest.raises(OutputError):
        build(table, full_disk / "corpus")


def test_texts_without_images_and_images_without_texts(tmp_path):
    table = write_pictures(
        tmp_path / "source", 4, report=["", "", "Text.", "Text."], path=["0.png", "1.png", "", ""]
    )
    corpus = build(table, tmp_path / "corpus")
    examples = read_examples(corpus, "all")
    assert (
        sorted((e.image is not None, bool(e.reports)) for e in examples)
        == [(False, True)] * 2 + [(True, False)] * 2
    )
    texts = build(table, tmp_path / "texts", replace(HERE, images=False))
    assert read_about(texts)["preprocessing"] is None
    with pytest.raises(StudyError, match="text alone"):
        read_settings(texts)


def test_every_study_of_a_patient_is_in_one_split_and_the_split_needs_no_salt(tmp_path):
    rows = [{"patient": f"P{k // 3}", "report": f"Report {k}."} for k in range(120)]
    table = write_table(tmp_path / "t.csv", rows)
    one, other = build(table, tmp_path / "one"), build(table, tmp_path / "other")
    for corpus in (one, other):
        splits = {s: {e.patient for e in read_examples(corpus, s)} for s in ("train", "validation", "test")}
        assert sum(map(len, splits.values())) == 40
        assert not splits["train"] & splits["test"]
    assert {e.patient for e in read_examples(one, "all")}.isdisjoint(
        e.patient for e in read_examples(other, "all")
    )
    texts = [[e.reports["en"] for e in read_examples(c, "train")] for c in (one, other)]
    assert texts[0] == texts[1]


def test_shares_are_kept_and_official_splits_too(tmp_path):
    splits = [split_of(Hide(b"").person(str(k)), (80, 10, 10)) for k in range(5000)]
    assert [round(splits.count(s) / 50) for s in ("train", "validation", "test")] == pytest.approx(
        [80, 10, 10], abs=2
    )
    rows = [{"report": f"R {k}", "split": ("dev", "test", "")[k % 3]} for k in range(30)]
    table = write_table(tmp_path / "t.csv", rows)
    about = read_about(build(table, tmp_path / "corpus"))
    assert (about["validation"] >= 10, about["test"] >= 10) == (True, True)
    hashed = read_about(build(table, tmp_path / "hashed", replace(HERE, split="hash")))
    assert hashed["train"] > 15


def test_leaks_of_patient_image_and_report_are_named(tmp_path):
    table = write_pictures(tmp_path / "source", 6, split=["train"] * 3 + ["test"] * 3)
    shutil.copy(tmp_path / "source" / "0.png", tmp_path / "source" / "3.png")
    rows = list(csv.DictReader(table.open()))
    long = (
        "The heart is of normal size and the lungs are clear without any sign of pneumonia or effusion today."
    )
    rows[1]["report"], rows[4]["report"] = long, long + " Again."
    rows[5]["patient"] = rows[2]["patient"]
    corpus = build(write_table(table, rows), tmp_path / "corpus")
    found = list(csv.DictReader((corpus / "leakage.csv").open()))
    assert [(r["what"], r["split"], r["other_split"]) for r in found] == [
        ("patient", "test", "train"),
        ("image", "test", "train"),
        ("report", "test", "train"),
    ]
    assert "leak: 1 of test have the same patient in train" in (corpus / "corpus.html").read_text()


def test_findings_are_given_or_read_from_the_report_and_what_is_not_told_is_not_known(tmp_path):
    rows = [
        {"report": "There is a 12 mm nodule in the right upper lobe. No pleural effusion.", "findings": ""},
        {
            "report": "Some words.",
            "findings": '[{"code": "lung_nodule", "side": "left", "site": "lower_lobe"}]',
        },
        {"report": "Some words.", "findings": "consolidation; emphysema"},
        {"report": "Some words.", "findings": "consolidaton"},
        {"report": "右肺上叶见结节，大小约12 mm。未见胸腔积液。", "findings": ""},
    ]
    table = write_table(tmp_path / "t.csv", rows)
    corpus = build(table, tmp_path / "corpus", BuildConfig(workers=0))
    by_text = {
        next(iter(e.reports.values()))[:5] + e.labels[:1] + str(len(e.findings)): e
        for e in read_examples(corpus, "all")
    }
    read = by_text["Theree1"]
    assert (read.findings[0].code, read.findings[0].side, read.findings[0].size_mm) == (
        "lung_nodule",
        "right",
        12.0,
    )
    assert set(read.known) == {"lung_nodule", "pleural_effusion"}
    assert by_text["Some g1"].findings[0].site == "lower_lobe"
    assert len(by_text["Some g2"].known) == 26
    assert [r["code"] for r in refusals(corpus)] == ["FINDING_UNKNOWN"]
    chinese = next(e for e in read_examples(corpus, "all") if "zh" in e.reports)
    assert {f.code for f in chinese.findings} == {"lung_nodule"}


PLANTED = (
    "Quintessa",
    "Ravenscroft",
    "00482913",
    "CT-20190312",
    "555-123-4567",
    "ravens@example.org",
    "12.03.2019",
)
LETTER = (
    "Compared with the CT of 12.03.2019 (accession no. CT-20190312). Patient name: Quintessa Ravenscroft, "
    "MRN: 00482913. Dr. Quintessa Ravenscroft, phone 555-123-4567, ravens@example.org. No pneumothorax."
)


def test_no_planted_identifier_is_in_logs_or_in_any_file_that_may_leave(tmp_path, capsys):
    source = tmp_path / "Ravenscroft Quintessa"
    table = write_pictures(source, 3)
    (source / "00482913.png").write_bytes(b"no picture")
    rows = list(csv.DictReader(table.open()))
    rows[0] |= {"patient": "00482913", "report": LETTER, "context": LETTER, "path": "00482913.png"}
    rows[1] |= {"patient": "Ravenscroft", "path": "Ravenscroft/Quintessa.png"}
    write_table(table, rows)
    out = tmp_path / "corpus"
    arguments = [
        str(table),
        "--out",
        str(out),
        "--kind",
        "csv",
        "--examination",
        "pictures",
        "--workers",
        "0",
    ]
    assert main([*arguments, "--mask"]) == 0
    printed = "".join(capsys.readouterr())
    leaving = {n: c for n, c in contents(out).items() if not n.startswith("confidential/")}
    assert len(leaving) >= 10
    for word in PLANTED:
        assert word not in printed
        assert not [n for n, c in leaving.items() if word.encode() in c], word
    assert (
        "No pneumothorax."
        in (out / "train.jsonl").read_text()
        + (out / "test.jsonl").read_text()
        + (out / "validation.jsonl").read_text()
    )
    assert len(refusals(out)) == 2
    assert (out / "confidential").stat().st_mode & 0o077 == 0


def test_without_mask_identifiers_are_counted_with_their_places_and_nothing_is_changed(tmp_path):
    table = write_table(tmp_path / "t.csv", [{"report": LETTER}])
    corpus = build(table, tmp_path / "corpus")
    (example,) = read_examples(corpus, "all")
    assert example.reports["en"] == LETTER
    found = read_about(corpus)["privacy"]
    assert found["masked"] is False
    assert found["found"] == {"date": 1, "accession": 1, "name": 2, "number": 1, "phone": 1, "e-mail": 1}
    rows = list(csv.DictReader((corpus / "privacy.csv").open()))
    place = next(r for r in rows if r["kind"] == "date")
    assert LETTER[int(place["start"]) : int(place["end"])] == "12.03.2019"
    for name in ("privacy.csv", "corpus.json", "corpus.html"):
        assert not any(word in (corpus / name).read_text() for word in PLANTED)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("CT of 2018-11-02 and March 26, 2018.", "CT of [date] and [date]."),
        (
            "on 3/12, dated 3 May 2019",
            "on 3/12, dated 3 May 2019".replace("on 3/12", "[date]").replace("3 May 2019", "[date]"),
        ),
        ("DOE^JANE, a 93 year old woman", "[name], a [age over 89] year old woman"),
        ("Dictated by John A. Doe, MD", "Dictated by [name], MD"),
        ("患者姓名：王小明，住院号：Z123456，2019年3月12日", "患者姓名：[name]，住院号：[number]，[date]"),
        ("王主任会诊", "[name]主任会诊"),
        ("Study 1.2.840.113619.2.55.3.1 of 12345678", "Study [uid] of [number]"),
    ],
)
def test_what_may_name_somebody_is_found(text, masked):
    assert mask_identifiers(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "A 13x9.3 mm nodule in series 4/12, levels L4/5 and T2-T3; 12.5 x 3.4 x 10.2 cm.",
        "MS lesions on MR of the brain, MRS normal; SUV 3.12, -850.5 HU, 64 years.",
        "Signed by Radiology. Dr. was informed at 14:35. 2 of 26 findings, 1.25 mm, b 1000.",
        "右肺上叶见结节，大小约12 mm，请结合临床，建议3个月后复查。",
    ],
)
def test_sizes_levels_and_sequences_name_nobody(text):
    assert find_identifiers(text) == ()


def test_errors_name_the_fault_and_what_to_try(tmp_path, capsys):
    table = write_table(tmp_path / "t.csv", [{"reprot": "a"}])
    assert main([str(table), "--out", str(tmp_path / "o"), "--kind", "csv"]) == 1
    assert "COLUMN_UNKNOWN: t.csv has a column 'reprot'" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "o"), "--kind", "csv"]) == 1
    assert "PATH_MISSING" in capsys.readouterr().err
    for wish, words in (
        (["--spacing", "0.1"], "0.5 to 12 mm"),
        (["--spacing", "1.5", "--examination", "pictures"], "no size in mm"),
    ):
        assert main([str(table), "--out", str(tmp_path / "o"), "--kind", "csv", *wish]) == 1
        assert words in capsys.readouterr().err
    with pytest.raises(ConfigError, match="pictures"):
        BuildConfig(examination="knee_mr")
    good = write_pictures(tmp_path / "source", 1)
    build(good, tmp_path / "corpus")
    with pytest.raises(ConfigError, match="another kind"):
        build_corpus([], "roco", good, tmp_path / "corpus", HERE)
    with pytest.raises(MlaMedError) as error:
        build(write_table(tmp_path / "e.csv", [{"report": ""}]), tmp_path / "empty")
    assert error.value.code == "SOURCE_EMPTY"


@needs_medpix
def test_forty_pictures_of_medpix_keep_their_split_and_their_texts(tmp_path):
    corpus = tmp_path / "corpus"
    pairs = read_medpix(MEDPIX, load_hide(corpus))
    build_corpus(pairs, "medpix", MEDPIX, corpus, replace(HERE, limit=40))
    examples = read_examples(corpus, "validation")
    assert len(examples) == 40
    assert len({e.patient for e in examples}) == 22
    assert all(e.image and e.reports and {"caption", "findings"} <= set(e.texts) for e in examples[:3])
    assert examples[0].contexts["en"].startswith("73 years, M, 73-year-old male with hematuria")
    assert not refusals(corpus)


@slow
@needs_medpix
def test_the_whole_of_medpix(tmp_path):
    assert main([str(MEDPIX), "--out", str(tmp_path), "--kind", "medpix"]) == 0
    about = read_about(tmp_path)
    assert (about["train"], about["validation"], about["test"]) == (1653, 197, 0)
    assert about["splits"]["train"]["images"] == 1653
    assert not about["refused"]
    assert json.loads((tmp_path / "corpus.json").read_text())["leakage"]["found"].get("patient") is None


def test_the_verb_of_the_front_door_is_the_command(tmp_path):
    from typer.testing import CliRunner

    from mla_med.cli import app

    table = tmp_path / "table.csv"
    table.write_text("path,report\n,No abnormality in the chest.\n,A nodule in the right lung.\n")
    given = ["corpus", str(table), "--kind", "csv", "--no-images", "--out", str(tmp_path / "corpus")]
    assert CliRunner().invoke(app, given).exit_code == 0
    assert len(read_examples(tmp_path / "corpus", "all")) == 2
    assert CliRunner().invoke(app, ["corpus", str(tmp_path / "none"), *given[2:]]).exit_code == 1


def test_images_are_placed_in_the_voxels_that_are_asked_for(tmp_path):
    voxels = np.full((40, 40, 20), -1000, np.int16)
    voxels[8:32, 8:32] = 40
    nib.save(nib.Nifti1Image(voxels, np.diag([8.0, 8.0, 8.0, 1.0])), tmp_path / "a.nii.gz")
    table = write_table(tmp_path / "t.csv", [{"path": "a.nii.gz", "report": "No emphysema."}])
    out = tmp_path / "corpus"
    wish = ["--examination", "chest_ct", "--spacing", "8", "--workers", "0"]
    assert main([str(table), "--out", str(out), "--kind", "csv", *wish]) == 0
    settings = read_settings(out)
    assert (settings.spacing_mm, settings.shape) == (8.0, (48, 36, 42))
    (example,) = read_examples(out, "all")
    assert np.load(example.image).shape == settings.shape
    assert np.linalg.norm(example.affine[:3, :3], axis=0) == pytest.approx(8.0)


def test_the_flow_gathers_the_corpus_of_the_command(tmp_path):
    from flows.prepare_corpus import gather_corpus_flow

    table = tmp_path / "table.csv"
    table.write_text("path,report\n,No abnormality in the chest.\n,A nodule in the right lung.\n")
    fake = logging.getLogger("flow")
    with patch("flows.prepare_corpus.get_run_logger", lambda: fake):
        gather_corpus_flow.fn(table, "csv", tmp_path / "corpus", workers=0)
    assert len(read_examples(tmp_path / "corpus", "all")) == 2
    with patch("flows.prepare_corpus.get_run_logger", lambda: fake), pytest.raises(FlowError) as error:
        gather_corpus_flow.fn(tmp_path / "none.csv", "csv", tmp_path / "other", workers=0)
    # Prefect keeps what an exception says: a code, and no path
    assert str(error.value) == "PATH_MISSING"
