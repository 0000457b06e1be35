"""Series of phantoms: what a scanner would send, valid, and read back as it was drawn."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from phantoms import MATRIX, patient

from mla_med.dicom.select import choose_series
from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.phantom.scanner import ct
from mla_med.phantom.scanner.headers import Order, decimal, keyed
from mla_med.phantom.scanner.makers import CT, MR
from mla_med.phantom.scanner.makers.form import Times
from mla_med.phantom.scanner.series import MrImage, mr_units, stack_of, write_ct, write_mr, write_report
from mla_med.phantom.scanning import scan_ct
from mla_med.phantom.shapes import Grid
from mla_med.types import Sex, Side

ORDER = Order(
    patient_id="PHANTOM-3",
    sex=Sex.FEMALE,
    age_years=63,
    height_cm=164.0,
    weight_kg=70.0,
    indication="fever and cough",
    description="CT CHEST WITHOUT CONTRAST",
    body_part="CHEST",
    language="en",
    characters="ISO_IR 100",
    taken=datetime(2026, 3, 5, 9, 30),
)
BRAIN = replace(ORDER, description="MR BRAIN", body_part="BRAIN", indication="headache")
CHINESE = "发热、咳痰；吸烟40包年"


def body(grid: Grid) -> np.ndarray:
    """A chest of three ellipses, one lung larger than the other, so that no mirror image equals it."""
    x, y, z = grid.axes()
    hu = np.where((x / 150) ** 2 + (y / 100) ** 2 < 1, 40.0, -1000.0) + 0 * z
    for side, wide in ((70, 50), (-70, 40)):
        hu[((x - side) / wide) ** 2 + ((y - 10) / 60) ** 2 + (z / 140) ** 2 < 1] = -850
    return hu.astype(np.float32)


def scanned(**changes) -> tuple[np.ndarray, Grid, ct.Scan]:
    scan = replace(
        ct.Scan(spacing_mm=(6.25, 6.25, 5.0), matrix=64, thickness_mm=5.0, centre_mm=(3.3, -7.1)), **changes
    )
    grid = ct.scan_grid(scan, -30, 30)
    drawn = ct.drawn_grid(grid, scan)
    return ct.reconstruct(body(drawn), drawn, scan, np.random.default_rng(1), grid), grid, scan


def write(folder: Path, maker: str, order: Order = ORDER, **changes):
    hu, grid, scan = scanned(**changes)
    affine = ct.scan_affine(grid, scan)
    order = keyed(order, maker, [hu], scan)
    return hu, affine, write_ct(order, hu, grid, affine, scan, CT[maker], folder)


def chosen(folder: Path, examination: str = "chest_ct"):
    return [v for v in choose_series(read_study(folder), examination) if v.chosen]


def upright(volume) -> nibabel.Nifti1Image:
    """Axes to the right, the front and up."""
    return nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.voxels, volume.affine))


def errors_of(path: Path) -> list[str]:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines, "dciodvfy said nothing"
    return [line for line in lines if line.startswith("Error")]


@pytest.mark.parametrize("maker", CT)
def test_a_ct_of_each_maker_is_a_localizer_an_axial_series_and_a_dose_report_without_errors(maker, tmp_path):
    _, _, (localizer, axial, dose) = write(tmp_path, maker)
    assert [len(s.instances) for s in (localizer, axial, dose)] == [1, 13, 1]
    for series in (localizer, axial, dose):
        assert errors_of(min(series.folder.iterdir())) == []


@pytest.mark.parametrize("maker", CT)
def test_a_ct_of_each_maker_is_read_as_it_was_drawn_and_chosen(maker, tmp_path):
    hu, affine, (_, axial, _) = write(tmp_path, maker)
    (verdict,) = chosen(tmp_path)
    assert verdict.series.series_uid == axial.series_uid
    image = upright(read_volume(verdict.series))
    # intercept -1000 in 12 bits without sign: this maker cannot store less
    lowest = CT[maker].intercept if not CT[maker].signed else -1024
    assert np.array_equal(np.asanyarray(image.dataobj), np.maximum(hu, lowest))
    assert np.abs(image.affine - affine).max() < 0.05  # as many digits as the maker writes


def test_a_tilted_gantry_stands_in_the_orientation_and_comes_back_as_shear(tmp_path):
    hu, affine, (_, axial, _) = write(tmp_path, "philips", tilt_deg=-12.5)
    (verdict,) = chosen(tmp_path)
    volume = read_volume(verdict.series)
    assert volume.certificate.tilt_deg == pytest.approx(12.5, abs=0.01)
    assert np.array_equal(np.asanyarray(upright(volume).dataobj), hu)
    assert np.abs(upright(volume).affine - affine).max() < 1e-6
    header = pydicom.dcmread(min(axial.folder.iterdir()))
    assert header.GantryDetectorTilt == -12.5
    assert header.ImageOrientationPatient[5] == pytest.approx(np.sin(np.radians(-12.5)), abs=1e-9)


def test_padding_outside_the_circle_is_what_each_maker_stores(tmp_path):
    corners = {}
    for maker in CT:
        _, _, (_, axial, _) = write(tmp_path / maker, maker, circular=True)
        header = pydicom.dcmread(min(axial.folder.iterdir()))
        corners[maker] = (int(header.pixel_array[0, 0]), header.get("PixelPaddingValue"))
    assert corners == {
        "siemens": (0, None),
        "ge": (-2000, -2000),
        "philips": (0, None),
        "philips_brilliance": (0, None),
        "canon": (-2048, None),
        "toshiba": (-2048, None),
    }


def test_declared_padding_is_read_as_air(tmp_path):
    hu, _, _ = write(tmp_path, "ge", circular=True)
    (verdict,) = chosen(tmp_path)
    assert np.array_equal(np.asanyarray(upright(read_volume(verdict.series)).dataobj), hu)


def test_slices_are_numbered_from_the_end_at_which_the_maker_begins(tmp_path):
    heights = {}
    for maker in ("siemens", "philips"):
        _, _, (_, axial, _) = write(tmp_path / maker, maker)
        files = [pydicom.dcmread(p, stop_before_pixels=True) for p in sorted(axial.folder.iterdir())]
        assert [f.InstanceNumber for f in files] == list(range(1, 14))
        heights[maker] = [float(f.ImagePositionPatient[2]) for f in files]
    assert heights["siemens"][0] > heights["siemens"][-1]
    assert heights["philips"][0] < heights["philips"][-1]


@pytest.mark.parametrize("characters", ["GB18030", "ISO_IR 192"])
def test_a_chinese_request_is_read_in_the_characters_of_its_console(characters, tmp_path):
    order = replace(ORDER, language="zh", characters=characters, indication=CHINESE, description="胸部CT平扫")
    _, _, (localizer, _, _) = write(tmp_path, "ge", order)
    study = read_study(tmp_path)
    assert (study.context.indication, study.description) == (CHINESE, "胸部CT平扫")
    assert errors_of(min(localizer.folder.iterdir())) == []


def test_a_request_longer_than_its_element_is_read_whole(tmp_path):
    words = "smoker, 35 pack-years; fever, raised C-reactive protein; known colorectal carcinoma"
    assert len(words) > 64
    _, _, (_, axial, _) = write(tmp_path, "siemens", replace(ORDER, indication=words))
    context = read_study(tmp_path).context
    assert (context.indication, context.age_years, context.sex) == (words, 63.0, Sex.FEMALE)
    assert errors_of(min(axial.folder.iterdir())) == []


def test_no_element_names_a_person_a_place_or_a_device(tmp_path):
    write(tmp_path, "canon")
    for path in sorted(tmp_path.rglob("*.dcm")):
        header = pydicom.dcmread(path)
        assert str(header.PatientName) == "Phantom^Nobody"
        assert header.QualityControlSubject == "YES"
        named = ("InstitutionName", "StationName", "DeviceSerialNumber", "OperatorsName", "DeviceUID")
        assert not any(keyword in header for keyword in named)
        assert header.PatientBirthDate == header.ReferringPhysicianName == header.AccessionNumber == ""


def test_the_same_study_has_the_same_bytes_and_another_one_other_uids(tmp_path):
    def digests(folder):
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.dcm"))]

    write(tmp_path / "a", "siemens")
    write(tmp_path / "b", "siemens")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    write(tmp_path / "c", "siemens", replace(ORDER, indication="cough"))
    write(tmp_path / "d", "siemens", ctdi_mgy=4.0)
    uids = {name: read_study(tmp_path / name).study_uid for name in "acd"}
    assert len(set(uids.values())) == 3
    assert all(uid.startswith("2.25.") for uid in uids.values())


def test_a_localizer_shows_the_patient_head_up_and_right_side_at_the_left(tmp_path):
    hu, grid, scan = scanned()
    hu[:, :, -1] = 1000  # a plate at the head
    hu[grid.axes()[0][:, 0, 0] > 100] = 1000  # and one on the right
    order = keyed(ORDER, "siemens", [hu])
    localizer, _, _ = write_ct(order, hu, grid, ct.scan_affine(grid, scan), scan, CT["siemens"], tmp_path)
    image = pydicom.dcmread(min(localizer.folder.iterdir())).pixel_array.astype(int)
    rows, columns = image.shape
    assert image[0, columns // 2] > image[rows // 2, columns // 2]
    assert image[rows // 2, columns // 8] > image[rows // 2, -columns // 8]


def test_the_report_of_an_earlier_study_is_read_as_the_prior(tmp_path):
    hu, grid, scan = scanned()
    affine = ct.scan_affine(grid, scan)
    earlier = keyed(replace(ORDER, taken=datetime(2025, 6, 1, 8, 0)), "ge", [hu])
    _, axial, _ = write_ct(earlier, hu, grid, affine, scan, CT["ge"], tmp_path / "prior")
    now = keyed(ORDER, "ge", [hu])
    write_ct(now, hu, grid, affine, scan, CT["ge"], tmp_path / "study")
    text = "Findings: a 6 mm nodule.\nImpression: 右肺上叶结节。"
    report = tmp_path / "study" / "PRIOR" / "SR0001.dcm"
    write_report(replace(earlier, characters="ISO_IR 192"), text, axial, report)
    assert read_study(tmp_path / "study").context.prior == " ".join(text.split())
    assert errors_of(report) == []
    assert read_study(tmp_path / "prior").study_uid != read_study(tmp_path / "study").study_uid


def mr_images() -> list[MrImage]:
    """Every sequence, 2-D axial ones and 3-D ones in the other planes, none equal to its mirror image."""
    flat, cube = Grid.centred((40, 48, 9), (5.0, 4.5, 16.0)), Grid.centred((14, 16, 12), (11.0, 13.0, 13.0))
    rng = np.random.default_rng(2)
    images = []
    for kind, plane, b_value in (
        ("T1", "sagittal", None),
        ("T2", "axial", None),
        ("FLAIR", "axial", None),
        ("DWI", "axial", 0.0),
        ("DWI", "axial", 1000.0),
        ("ADC", "axial", None),
        ("SWI", "axial", None),
        ("T1 contrast", "coronal", None),
    ):
        grid = flat if plane == "axial" else cube
        x, y, z = grid.axes()
        signal = np.clip(1.2 - (x / 70) ** 2 - (y / 90) ** 2 - (z / 80) ** 2 + x / 400 + z / 500, 0, None)
        signal = (signal * rng.uniform(0.9, 1.1, grid.shape)).astype(np.float32)
        images.append(MrImage(kind, mr_units(1000 * signal), grid.affine, plane, 5.0, b_value))
    return images


@pytest.mark.parametrize("maker", MR)
def test_every_mr_sequence_of_each_maker_is_recognised_and_read_as_it_was_drawn(maker, tmp_path):
    images = mr_images()
    written = write_mr(keyed(BRAIN, maker, [i.voxels for i in images]), images, MR[maker], tmp_path)
    for series in written:
        assert errors_of(min(series.folder.iterdir())) == []
    verdicts = {verdict.role: verdict for verdict in chosen(tmp_path, "brain_mr")}
    assert set(verdicts) == {"T1", "T1 contrast", "T2", "FLAIR", "DWI", "ADC", "SWI"}
    slack = (MR[maker].slope or 0.0) / 2
    for image in images:
        if image.b_value == 0:
            continue
        read = upright(read_volume(verdicts[image.kind].series))
        assert np.abs(np.asanyarray(read.dataobj) - image.voxels).max() <= slack
        assert np.abs(read.affine - image.affine).max() < 0.01
        assert verdicts[image.kind].certificate.orientation == image.plane


def test_images_of_a_plane_run_as_radiologists_hang_them():
    grid = Grid((4, 5, 6), (1.0, 2.0, 3.0), (-10.0, -20.0, -30.0))
    x, y, z = grid.axes()
    voxels = x + 100 * y + 10_000 * z
    for plane, corner, step in (
        ("axial", (-7, -12, -30), (0, 0, 3)),
        ("coronal", (-7, -20, -15), (0, 2, 0)),
        ("sagittal", (-10, -12, -15), (1, 0, 0)),
    ):
        stack, geometry = stack_of(voxels, grid.affine, plane)
        i, j, k = corner
        assert stack[0, 0, 0] == i + 100 * j + 10_000 * k
        assert geometry.first_mm == (-i, -j, k)
        assert geometry.step_mm == (-step[0], -step[1], step[2])


def test_decimal_strings_fit_their_element():
    assert decimal(-198.08333333333334) == "-198.08333333333"
    assert decimal(1 / 3, 4, plus=True) == "+0.3333"
    assert decimal(-1e-12) == "0"
    assert decimal(-0.0001, 2) == "0.00"
    assert all(len(decimal(v)) <= 16 for v in (-1e-5 / 3, 123456.789012345678, -0.2588190451025208))


def test_t1_in_thick_slices_is_a_spin_echo_whatever_the_maker_takes_in_3d(tmp_path):
    spin_echo = Times(500, 10, 90)
    images = [
        replace(image, kind=kind, times=spin_echo)
        for image, kind in zip(mr_images()[1:3], ("T1", "T1 contrast"), strict=True)
    ]
    write_mr(keyed(BRAIN, "philips", [i.voxels for i in images]), images, MR["philips"], tmp_path)
    verdicts = {verdict.role: verdict for verdict in chosen(tmp_path, "brain_mr")}
    assert set(verdicts) == {"T1", "T1 contrast"}
    header = pydicom.dcmread(verdicts["T1"].series.instances[0].path)
    assert (header.ScanningSequence, header.RepetitionTime, header.EchoTime) == ("SE", 500, 10)


def test_what_was_planted_lies_in_the_images_where_its_box_says(phantom_series):
    (verdict,) = chosen(phantom_series)
    image = upright(read_volume(verdict.series))
    one = patient("lung_mass", "pleural_effusion", "cardiomegaly")
    (planted,) = (lesion for lesion in one.lesions if lesion.finding.code == "lung_mass")
    without = replace(one, lesions=tuple(lesion for lesion in one.lesions if lesion is not planted))
    change = np.abs(np.asanyarray(image.dataobj) - scan_ct(without, MATRIX).hu) > 300
    places = np.argwhere(change) @ image.affine[:3, :3].T + image.affine[:3, 3]
    low, high = np.array(planted.box_mm)
    inside = ((places > low - 3) & (places < high + 3)).all(axis=1)
    assert len(places) > 100
    assert inside.mean() > 0.95
    (mass,) = (finding for finding in one.findings if finding.code == "lung_mass")
    assert (low[0] + high[0] > 0) == (mass.side is Side.RIGHT)
    assert high[2] - low[2] == pytest.approx(mass.size_mm, rel=0.35)
