"""Voxels as reconstructed -> DICOM series as the maker's scanner sends them, in folders of their own.

A CT: a localizer, the axial series, the picture of the dose report. An MR: a series for each sequence. A
report: one Basic Text SR. Each slice is written from one dataset that is changed from slice to slice.
Knows no anatomy, no lesions and no cohort.
"""

# I, J, K voxels of a volume, whose affine leads to patient RAS mm; R rows and C columns of an image

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage

from mla_med.phantom.scanner.ct import WATER_PER_MM, Scan, outside_circle
from mla_med.phantom.scanner.headers import (
    Geometry,
    Order,
    ct_dose_elements,
    ct_elements,
    ct_localizer_elements,
    mr_elements,
    place,
    report_content,
    report_elements,
    uid,
)
from mla_med.phantom.scanner.makers import CtMaker, MrMaker
from mla_med.phantom.scanner.makers.form import Numbers, Times
from mla_med.phantom.shapes import Grid

PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
"""The patient axis along which the columns, the rows and the slices of each plane are counted."""
IMPLEMENTATION = ("2.25.207839423862043771262912736129438301437", "MLA_MED_PHANTOM")
LOCALIZER_MM = 1.0
SECONDS_BETWEEN_SERIES = 210


@dataclass(frozen=True, slots=True)
class Written:
    """A series on disk."""

    series_uid: str
    folder: Path
    instances: dict[str, str]
    """SOP instance UID -> class UID."""


@dataclass(frozen=True, slots=True)
class MrImage:
    """One MR volume in units of the scanner: int16 (I, J, K), never negative."""

    kind: str
    """A key of MrMaker.pulses."""
    voxels: np.ndarray
    affine: np.ndarray
    plane: str = "axial"
    thickness_mm: float = 5.0
    b_value: float | None = None
    tesla: float | None = None
    times: Times | None = None
    """What differs from the maker's own."""


def write_ct(
    order: Order, hu: np.ndarray, grid: Grid, affine: np.ndarray, scan: Scan, maker: CtMaker,
    folder: Path, contrast: bool = False,
) -> tuple[Written, ...]:  # fmt: skip
    """The series of one CT. `affine`: of the voxels hu (int16, I, J, K), ct.scan_affine(grid, scan)."""
    axial = ct_elements(order, scan, maker, contrast)
    padded = outside_circle(grid) if scan.circular else None
    stack, geometry = stack_of(hu, affine, "axial")
    mask = None if padded is None else stack_of(padded[:, :, None], affine, "axial")[0][0]
    frames = (_to_stored(image, maker, mask) for image in stack)
    rows, place_of_rows = localizer_of(hu, grid)
    flat = ct_localizer_elements(order, scan, maker)
    return (
        _write(flat, iter([_to_stored(rows, maker, None)]), place_of_rows, maker.numbers, folder),
        _write(axial, frames, geometry, maker.numbers, folder, from_head=not maker.from_feet, n=len(stack)),
        _write(ct_dose_elements(order, maker), iter([_dose_picture(order, scan, maker, grid)]), None,
               maker.numbers, folder),
    )  # fmt: skip


def write_mr(order: Order, images: Sequence[MrImage], maker: MrMaker, folder: Path) -> tuple[Written, ...]:
    """A series for each kind, in the order in which they first come; those of one kind (DWI of several
    b-values) share it."""
    written = []
    for n, kind in enumerate(dict.fromkeys(image.kind for image in images)):
        same = [image for image in images if image.kind == kind]
        number = maker.first_series + n * maker.series_step
        weighted = max((image.b_value or 0.0 for image in same), default=0.0)
        instances: dict[str, str] = {}
        for image in same:
            stack, geometry = stack_of(image.voxels, image.affine, image.plane)
            ds = mr_elements(
                order,
                maker,
                maker.pulses[kind],
                number=number,
                after_s=60 + n * SECONDS_BETWEEN_SERIES,
                plane=image.plane,
                thickness_mm=image.thickness_mm,
                distance_mm=float(np.linalg.norm(geometry.step_mm)),
                b_value=image.b_value,
                series_b_value=weighted,
                contrast=kind == "T1 contrast",
                slope=maker.slope,
                tesla=image.tesla,
                times=image.times,
            )
            frames = (_mr_stored(slice_, maker) for slice_ in stack)
            part = _write(ds, frames, geometry, maker.numbers, folder, from_head=False, done=len(instances))
            instances |= part.instances
        written.append(Written(part.series_uid, part.folder, instances))
    return tuple(written)


def write_report(order: Order, text: str, images: Written, path: Path, series_number: int = 9100) -> None:
    """The report of a study as one Basic Text SR; `images`: the series that was read."""
    ds = report_elements(order, series_number, images.instances, images.series_uid)
    report_content(ds, text, order.language)
    ds.SOPInstanceUID = uid("report instance", order.key, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(ds, path)


def mr_units(signal: np.ndarray) -> np.ndarray:
    """Signal in units of the scanner -> what 12 bits hold: int16 of 0 to 4095."""
    return np.rint(np.clip(signal, 0, 4095)).astype(np.int16)


def stack_of(voxels: np.ndarray, affine: np.ndarray, plane: str) -> tuple[np.ndarray, Geometry]:
    """Voxels (I, J, K) -> images (slice, R, C), columns to the patient's left (back, if sagittal), rows to
    the back (feet), slices up (to the front, to the right); and where they lie. A view, nothing is moved."""
    main = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).argmax(axis=0)
    axes = [int(np.flatnonzero(main == axis)[0]) for axis in PLANES[plane]]
    turned, lps = voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = lps[:3, :3].copy()
    first = lps[:3, 3].copy()
    for axis, patient_axis, up in zip(axes, PLANES[plane], (False, False, True), strict=True):
        if bool(affine[patient_axis, axis] > 0) is not up:
            turned = np.flip(turned, axis)
            first += (voxels.shape[axis] - 1) * steps[:, axis]
            steps[:, axis] *= -1
    column, row, slice_ = axes
    across, down = steps[:, column], steps[:, row]
    spacing = float(np.linalg.norm(down)), float(np.linalg.norm(across))
    geometry = Geometry(
        _three(first),
        _three(across / spacing[1]),
        _three(down / spacing[0]),
        _three(steps[:, slice_]),
        spacing,
    )
    return turned.transpose(slice_, row, column), geometry


def localizer_of(hu: np.ndarray, grid: Grid) -> tuple[np.ndarray, Geometry]:
    """What a still tube sees from the front while the table moves: int16 (R, C), head up, and its place."""
    (dx, dy, dz), (x, _, z) = grid.spacing_mm, grid.origin_mm
    through = np.empty((hu.shape[0], hu.shape[2]), np.float32)
    for k in range(hu.shape[2]):
        through[:, k] = np.maximum(hu[:, :, k], -1000).sum(axis=1, dtype=np.float32)
    through = (through / 1000 + hu.shape[1]) * np.float32(WATER_PER_MM * dy)
    across, up = (
        np.arange(round((n - 1) * d / LOCALIZER_MM) + 1) for n, d in zip(through.shape, (dx, dz), strict=True)
    )
    rows = np.stack([np.interp(up * LOCALIZER_MM, np.arange(hu.shape[2]) * dz, line) for line in through])
    image = np.stack([np.interp(across * LOCALIZER_MM, np.arange(hu.shape[0]) * dx, line) for line in rows.T])
    # 300 mm of water lie near 0, as CT numbers do, and edges are raised
    values = -1000 + image * 1000 / (WATER_PER_MM * 300)
    values += 0.8 * (values - ndimage.gaussian_filter(values, 4))
    left, top = float(across[-1]) * LOCALIZER_MM + x, float(up[-1]) * LOCALIZER_MM + z
    first = (-left, -(grid.origin_mm[1] + (grid.shape[1] - 1) * dy / 2), top)
    geometry = Geometry(
        first, (1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (LOCALIZER_MM, LOCALIZER_MM)
    )
    return np.rint(np.clip(values[::-1, ::-1], -1024, 3071)).astype(np.int16), geometry


def _dose_picture(order: Order, scan: Scan, maker: CtMaker, grid: Grid) -> np.ndarray:
    """White on black, as consoles draw it: uint8 (R, C)."""
    length_mm = grid.shape[2] * grid.spacing_mm[2]
    dlp = scan.ctdi_mgy * length_mm / 10
    name = maker.localizer_description.split()[0]
    rows = (
        (maker.dose_description,),
        (),
        (order.body_part, maker.protocol),
        (f"{order.taken:%d-%m-%Y}", f"{order.taken:%H:%M}"),
        (),
        ("Series", "Type", "kV", "mAs", "Range mm", "CTDIvol mGy", "DLP mGycm", "Phantom"),
        (str(maker.localizer_series), name, "120", "", f"{length_mm:.1f}"),
        (
            *(str(maker.first_series), "Helical", str(scan.kvp), str(scan.mas), f"{length_mm:.1f}"),
            *(f"{scan.ctdi_mgy:.2f}", f"{dlp:.1f}", "32 cm"),
        ),
        (),
        ("Total DLP", f"{dlp:.1f} mGycm"),
    )
    picture = Image.new("L", (512, 512))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for n, row in enumerate(rows):
        for column, text in zip((16, 84, 164, 206, 248, 312, 388, 458), row, strict=False):
            draw.text((column, 24 + 16 * n), text, fill=255, font=font)
    return np.asarray(picture)


def _to_stored(hu_RC: np.ndarray, maker: CtMaker, outside: np.ndarray | None) -> np.ndarray:
    low = -(1 << maker.bits_stored - 1) if maker.signed else 0
    high = (1 << maker.bits_stored - int(maker.signed)) - 1
    stored = np.clip(hu_RC.astype(np.int32) - maker.intercept, low, high)
    if outside is not None and maker.padding_stored is not None:
        stored[outside] = maker.padding_stored
    return stored.astype("<i2" if maker.signed else "<u2")


def _mr_stored(units_RC: np.ndarray, maker: MrMaker) -> np.ndarray:
    stored = units_RC if maker.slope is None else np.rint(units_RC / maker.slope)
    return stored.astype("<i2" if maker.signed else "<u2")


def _write(
    ds: Dataset, frames: Iterator[np.ndarray], geometry: Geometry | None, numbers: Numbers,
    folder: Path, from_head: bool = True, n: int = 1, done: int = 0,
) -> Written:  # fmt: skip
    """A file an image. `frames` come from the feet up (or from the first slice on); of `n`, the last one is
    number 1 where counting starts at the head. `done`: images that the series has already."""
    series = folder / f"SE{int(ds.SeriesNumber):04d}"
    series.mkdir(parents=True, exist_ok=True)
    instances = {}
    for k, frame in enumerate(frames):
        number = done + (n - k if from_head else k + 1)
        ds.InstanceNumber = str(number)
        ds.SOPInstanceUID = uid("instance", ds.SeriesInstanceUID, number)
        ds.Rows, ds.Columns = frame.shape
        if geometry is not None:
            place(ds, geometry, k, numbers)
        ds.PixelData = np.ascontiguousarray(frame).tobytes()
        ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
        _save(ds, series / f"IM{number:04d}.dcm")
        instances[str(ds.SOPInstanceUID)] = str(ds.SOPClassUID)
    return Written(str(ds.SeriesInstanceUID), series, instances)


def _save(ds: Dataset, path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION
    ds.file_meta, ds.preamble = meta, bytes(128)
    ds.save_as(path, enforce_file_format=True)


def _three(values) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z
