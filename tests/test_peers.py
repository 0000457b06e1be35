"""Our reader beside others: what the comparison says of series whose truth is known."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_series import anatomy, write_series

from evaluation.peers.compare import Case, Grid, difference, explain, to_frame, to_grids
from evaluation.peers.facts import read_facts
from evaluation.peers.reading import choose_readers, main, read_folders, run_all
from evaluation.peers.run import Cost, Found, Reader, Refusal, Run, State, run_reader, shorten
from evaluation.peers.synthetic import truth, write_ct
from evaluation.peers.tables import Table, to_tables

SHAPE = (24, 20, 6)
MODULES = {"SimpleITK": "SimpleITK", "dicom2nifti": "dicom2nifti", "highdicom": "highdicom"}
PEERS = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]


@pytest.fixture
def sound(tmp_path) -> Path:
    return write_ct(tmp_path / "sound", SHAPE)


def row_of(table: Table, reader: str):
    return next(row for row in table.rows if row.reader == reader)


def case_of(folder: Path, affine: np.ndarray, voxels: np.ndarray, target: Grid | None = None) -> Case:
    facts = read_facts(folder)
    (grid,) = to_grids(voxels, affine)
    shown = to_frame(grid, target)
    return Case(shown, target, difference(target, shown) if target else None, facts[0], facts)


def axial_affine(step_mm: float = 2.0) -> np.ndarray:
    """That of dicom_series.write_series with steps of 2 mm from z = 0."""
    affine = np.diag([-0.7, -0.8, step_mm, 1.0])
    affine[:2, 3] = (10.0, 20.0)
    return affine


def hu(slices: int) -> np.ndarray:
    return np.stack([anatomy(k).T - 1024 for k in range(slices)], axis=-1).astype(np.float32)


def plain_run(reader: str, file: Path, affine: np.ndarray, voxels: np.ndarray, uid: str = "2.25.1") -> Run:
    np.save(file, voxels)
    return Run(reader, State.READ, found=(Found(file, affine, uid, "", ()),), cost=Cost(1, 1, 1, 1, 1))


def test_every_installed_reader_agrees_on_a_sound_series(sound):
    tables, versions = read_folders([sound], choose_readers(",".join(["ours", *PEERS])))
    assert len(tables) == 1
    assert tables[0].basis == "ours"
    assert set(versions) == {"ours", *PEERS}
    for row in tables[0].rows:
        assert (row.verdict, row.shape, row.why) == ("accepted", (24, 20, 6), ()), row
        assert row.spacing_mm == pytest.approx((0.75, 0.75, 1.0))
        assert row.gap is not None
        assert row.gap.voxel == 0
        assert row.gap.corner_mm == pytest.approx(0, abs=1e-4)
        assert row.cost is not None
        assert 0 <= row.cost.above_start_mib < row.cost.peak_mib


def test_a_missing_slice_shows_who_refuses_and_who_stretches(sound, tmp_path, capsys):
    pytest.importorskip("SimpleITK")
    third = next(f for f in sound.iterdir() if f.name == f"{7919 * 2:06d}.dcm")
    third.unlink()
    out = tmp_path / "result.json"
    assert main([str(sound), "--readers", "ours,SimpleITK", "--out", str(out)]) == 0
    rows = {row["reader"]: row for row in json.loads(out.read_text())["tables"][0]["rows"]}
    assert rows["ours"]["verdict"] == "refused MISSING_SLICE"
    assert rows["SimpleITK"]["spacing_mm"][2] == pytest.approx(1.25)
    why = "slice step 1.250 mm (the mean over first to last) where positions are 1.000 to 2.000 mm apart"
    assert rows["SimpleITK"]["why"] == [why]
    page = capsys.readouterr().out
    assert f"**{why}**" in page
    assert "| ours | refused MISSING_SLICE |" in page


def test_a_reference_with_another_spacing_is_told_from_a_right_one(sound):
    voxels = truth(SHAPE, sound.parent / "truth.npy").voxels
    wrong = np.diag([-0.75, -0.75, 1.5, 1.0])
    wrong[:3, 3] = (192, 180, -300)
    nibabel.save(nibabel.Nifti1Image(voxels, wrong), sound.parent / "sound_ground_truth.nii.gz")
    (table,), _ = read_folders([sound], choose_readers("ours"))
    (row,) = table.rows
    assert table.basis == "reference sound_ground_truth.nii.gz"
    assert row.gap.voxel == 0
    assert row.gap.corner_mm == pytest.approx(2.5)
    assert row.why == ("spacing differs by up to 0.500 mm",)


def test_a_reader_that_hangs_dies_or_is_missing_becomes_a_row(sound, tmp_path):
    readers = (
        Reader("hangs", (sys.executable, "-c", "import time; time.sleep(60)")),
        Reader("dies", (sys.executable, "-c", "import os; os.abort()")),
        Reader("raises", (sys.executable, "-c", "raise ValueError('no such thing in /home/jane/scan')")),
        Reader("is missing", _writes({"missing": "nosuch"}), "pip install nosuch"),
        Reader("writes nonsense", _writes([])),
    )
    runs = run_all(readers, sound, tmp_path / "runs", tmp_path, repeat=2, timeout_s=1.0)
    assert [len(repeats) for repeats in runs] == [1, 1, 1, 1, 1]
    (table,) = to_tables(sound, "sound", read_facts(sound), runs)
    assert [(row.reader, row.verdict, row.words) for row in table.rows] == [
        ("hangs", "timed out", "after 1 s"),
        ("dies", "crashed", "killed by SIGABRT"),
        ("raises", "crashed", "ValueError: no such thing in ..."),
        ("is missing", "not installed", "pip install nosuch"),
        ("writes nonsense", "crashed", "exit status 0 without a word"),
    ]


def _writes(result: object) -> tuple[str, ...]:
    code = "import json, pathlib, sys; pathlib.Path(sys.argv[2], 'result.json').write_text(%r)"
    return sys.executable, "-c", code % json.dumps(result)


def test_memory_of_a_reader_is_its_own_not_that_of_its_parent(sound, tmp_path):
    held = np.ones(2**26)  # 512 MiB; Linux hands its peak on as ru_maxrss
    run = run_reader(choose_readers("ours")[0], sound, tmp_path / "run")
    assert held[-1] == 1
    assert run.cost is not None
    assert 20 < run.cost.peak_mib < 300


def test_synthetic_timing_finds_the_truth_in_each_syntax(capsys):
    assert main(["--synthetic", "32x24x5", "--syntax", "raw,rle", "--readers", "ours", "--repeat", "2"]) == 0
    page = capsys.readouterr().out
    assert "## 32 x 24 x 5, raw" in page
    assert "## 32 x 24 x 5, rle" in page
    assert page.count("| ours | accepted | 0 | 0.000 |") == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], "CONFIG_INVALID: Nothing to read"),
        (["--synthetic", "512x512"], "CONFIG_INVALID: 512x512 is no size"),
        (["--synthetic", "8x8x8", "--syntax", "zip"], "CONFIG_INVALID: No syntax zip"),
        (["--readers", "osirix", "."], "UNKNOWN_READER: No reader osirix"),
        (["no/such/folder"], "PATH_MISSING: no/such/folder is no folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, code, capsys):
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith(code)


def test_words_of_readers_lose_paths_and_uids():
    words = "In /tmp/x/jane doe: (0x55f3) series 1.2.826.0.1.3680 of GANTRY_TILT/TOO_FEW is bad."
    assert shorten(words) == "In ... doe: series UID of GANTRY_TILT/TOO_FEW is bad"


def test_another_storage_order_is_no_difference(tmp_path):
    write_series(tmp_path, range(0, 8, 2))
    target = to_frame(Grid(hu(4), axial_affine()))
    flipped = np.flip(np.transpose(hu(4), (2, 0, 1)), 0)
    affine = axial_affine() @ np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 3], [0, 0, 0, 1.0]])
    case = case_of(tmp_path, affine, flipped, target)
    assert case.difference is not None
    assert case.difference.none
    assert explain(case) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v[::-1], "voxels are mirrored along I"),
        (lambda v: v[:, :, [0, 2, 1, 3]], "the same slices in another order: 2 of 4 lie elsewhere"),
        (lambda v: v + 1024, "stored values: the rescale (slope 1, intercept -1024) is not applied"),
        (lambda v: v * 3, "values are 3 times the other's"),
        (lambda v: v + np.float32(1e-4), "values within 0.0001: single precision"),
        (lambda v: np.where(v < -996, -1024, v), "56 voxels are -1024 instead of -1000 to -997"),
        (lambda v: v + (v == 43) * 7 - (v == 44), "28 voxels differ, by up to 7"),
    ],
)
def test_other_values_are_explained(tmp_path, change, words):
    write_series(tmp_path, range(0, 8, 2))
    voxels = change(hu(4)).astype(np.float32)
    target = to_frame(Grid(hu(4), axial_affine()))
    assert explain(case_of(tmp_path, axial_affine(), voxels, target)) == (words,)


def test_rounded_values_are_told_from_wrong_ones(tmp_path):
    write_series(tmp_path, range(0, 8, 2))
    fractions = np.linspace(0, 0.9, hu(4).size, dtype=np.float32).reshape(hu(4).shape)
    target = to_frame(Grid(hu(4) + fractions, axial_affine()))
    case = case_of(tmp_path, axial_affine(), np.round(hu(4) + fractions), target)
    assert explain(case) == ("values are rounded to whole numbers",)


def test_kept_duplicates_and_stacked_positions_are_told_apart(tmp_path):
    write_series(tmp_path / "sent twice", range(0, 8, 2))
    write_series(tmp_path / "sent twice", range(0, 8, 2), prefix="again-")
    write_series(tmp_path / "two echoes", [0, 0, 2, 2, 4, 4, 6, 6])
    write_series(tmp_path / "two series", range(0, 8, 2), series=1)
    write_series(tmp_path / "two series", range(1, 9, 2), series=2)
    words = {
        name: explain(case_of(tmp_path / name, axial_affine(), np.zeros((6, 8, 8), np.float32)))
        for name in ("sent twice", "two echoes", "two series")
    }
    assert words == {
        "sent twice": ("keeps 4 duplicate images as slices",),
        "two echoes": ("stacks 8 images of 4 positions along one axis",),
        "two series": ("stacks all 8 images of 2 series",),
    }


def test_dropped_and_resampled_slices_are_counted(tmp_path):
    write_series(tmp_path, range(0, 12, 2))
    fewer = case_of(tmp_path, axial_affine(), np.zeros((6, 8, 4), np.float32))
    more = case_of(tmp_path, axial_affine(1.0), np.zeros((6, 8, 11), np.float32))
    assert explain(fewer) == ("leaves out 2 of 6 slices",)
    assert explain(more)[0] == "makes 11 slices of 6 by resampling"


def test_a_lost_tilt_is_measured_in_mm(tmp_path):
    cosine, sine = np.cos(np.radians(20)), np.sin(np.radians(20))
    orientation = [1, 0, 0, 0, float(cosine), float(sine)]
    write_series(tmp_path, [(-10, -20, z) for z in range(0, 10, 2)], ImageOrientationPatient=orientation)
    axes = np.array([[0.7, 0, 0], [0, 0.8 * cosine, 0], [0, 0.8 * sine, 2.0]])
    kept = np.eye(4)
    kept[:3, :3] = axes
    kept[:3, 3] = (-10, -20, 0)
    kept[:2] *= -1
    straight = kept.copy()
    straight[:3, 2] = np.array([0, sine, cosine]) * 2.0
    target = to_frame(Grid(hu(5), kept))
    assert explain(case_of(tmp_path, kept, hu(5), target)) == ()
    words = explain(case_of(tmp_path, straight, hu(5), target))
    assert words[0] == "loses the tilt of 20.0 degrees: 2.7 mm of shift from first slice to last"
    assert words[1].startswith("slice step 2.000 mm")
    assert words[1].endswith("where positions are 1.879 mm apart")


def test_verdict_is_held_against_the_name_of_a_failing_series(tmp_path):
    folder = tmp_path / "failing_series" / "slicecount" / "001"
    write_series(folder, [0, 2])
    facts = read_facts(folder)
    refused = Run("ours", State.READ, refused=(Refusal("two slices", "TOO_FEW_SLICES", "2.25.1"),))
    for_another = Run("ours", State.READ, refused=(Refusal("no pixels", "TRUNCATED_PIXELS", "2.25.1"),))
    reads = plain_run("peer", tmp_path / "p.npy", axial_affine(), hu(2))
    (table,) = to_tables(folder, "001", facts, [[refused], [reads]])
    (other,) = to_tables(folder, "001", facts, [[for_another], [reads]])
    assert table.asked == "slicecount"
    assert (row_of(table, "ours").verdict, row_of(table, "ours").as_asked) == ("refused TOO_FEW_SLICES", True)
    assert row_of(table, "peer").as_asked is False
    assert row_of(other, "ours").as_asked is False


def test_two_volumes_under_one_uid_are_each_compared_with_their_like(tmp_path):
    folder = tmp_path / "echoes"
    write_series(folder, [0, 0, 2, 2, 4, 4, 6, 6])
    ours = Run(
        "ours",
        State.READ,
        found=(
            plain_run("a", tmp_path / "0.npy", axial_affine(), hu(4)).found
            + plain_run("a", tmp_path / "1.npy", axial_affine(), hu(4) * 2).found
        ),
    )
    both = np.stack([hu(4) * 2, hu(4)], axis=-1)
    peer = plain_run("peer", tmp_path / "2.npy", axial_affine(), both, uid="")
    tables = to_tables(folder, "echoes", read_facts(folder), [[ours], [peer]])
    assert [table.series.split("; ")[1] for table in tables] == ["volume 1 of 2", "volume 2 of 2"]
    assert [[row.gap.voxel for row in table.rows] for table in tables] == [[0, 0], [0, 0]]


def test_real_tilt_is_kept_here_and_lost_by_itk(real_series):
    pytest.importorskip("SimpleITK")
    folder = real_series("failing_series/gantrytilting/001")
    (table,), _ = read_folders([folder], choose_readers("ours,SimpleITK"))
    ours, itk = row_of(table, "ours"), row_of(table, "SimpleITK")
    assert (ours.as_asked, itk.as_asked) == (True, False)
    assert itk.gap.corner_mm == pytest.approx(3.656, abs=0.001)
    assert itk.why[0] == "loses the tilt of 14.0 degrees: 3.6 mm of shift from first slice to last"
