"""A size and a transfer syntax -> a CT that does not exist, as DICOM, with the volume that must come out.

Smooth anatomy and noise, 12 bits stored in 16, slope 1 and intercept -1024, as scanners write it. The
noise matters: without it a codec has nothing to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from evaluation.peers.compare import Grid
from evaluation.peers.tables import Row

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
SYNTAXES: Mapping[str, str] = {
    "raw": ExplicitVRLittleEndian,
    "jpegls": JPEGLSLossless,
    "j2k": JPEG2000Lossless,
    "rle": RLELossless,
}
PIXEL_MM, STEP_MM = 0.75, 1.0
ORIGIN_LPS_MM = (-192.0, -180.0, -300.0)
NOISE_HU = 12.0
INTERCEPT = -1024


@dataclass(frozen=True, slots=True)
class Timing:
    """All readers on one synthetic series."""

    syntax: str
    shape: tuple[int, int, int]
    repeats: int
    rows: tuple[Row, ...]
    ratios: Mapping[str, tuple[float, ...]]
    """Wall time of ours over that of a reader, in the same repeat."""

    @property
    def volume_mib(self) -> float:
        return float(np.prod(self.shape)) * 4 / 2**20


def write_ct(folder: Path, shape: Sequence[int], syntax: str = "raw", seed: int = 0) -> Path:
    """`shape`: columns, rows, slices. One file a slice, named by no order that helps."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = f"2.25.{seed + 1}{shape[0]:05d}{shape[1]:05d}{shape[2]:05d}{list(SYNTAXES).index(syntax)}"
    for k in range(shape[2]):
        dataset = _image(k, uid, stored_slice(k, shape, seed))
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if syntax != "raw":
            dataset.compress(SYNTAXES[syntax], generate_instance_uid=False)
        dataset.save_as(folder / f"{(k * 7919) % 10**6:06d}.dcm", enforce_file_format=True)
    return folder


def truth(shape: Sequence[int], file: Path, seed: int = 0) -> Grid:
    """What every reader should find: HU as float32 (columns, rows, slices), kept in `file`."""
    voxels = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=tuple(shape))
    for k in range(shape[2]):
        voxels[:, :, k] = stored_slice(k, shape, seed).T.astype(np.float32) + INTERCEPT
    affine = np.diag([-PIXEL_MM, -PIXEL_MM, STEP_MM, 1.0])
    affine[:3, 3] = np.array(ORIGIN_LPS_MM) * (-1, -1, 1)
    return Grid(voxels, affine)


def stored_slice(k: int, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Rows x columns of stored values, 0 to 4095: a body in air, with two lungs and a spine."""
    columns, rows, slices = shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    z = 2 * k / max(slices - 1, 1) - 1
    hu = np.full((rows, columns), -1000.0)
    hu[(x / 0.85) ** 2 + (y / 0.6) ** 2 < 1] = 40
    size = max(0.05, 1 - 0.6 * z * z)
    for side in (-1, 1):
        hu[((x - side * 0.38) / 0.28) ** 2 + ((y + 0.05) / 0.4) ** 2 < size] = -850
    hu[x**2 + ((y - 0.4) / 0.9) ** 2 < 0.012] = 600
    hu += 25 * np.sin(6 * x + 3 * z) * np.cos(5 * y)
    noise = np.random.default_rng((seed, k)).normal(0, NOISE_HU, hu.shape)
    return np.clip(np.rint(hu + noise) - INTERCEPT, 0, 4095).astype(np.uint16)


def _image(k: int, uid: str, stored: np.ndarray) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = CT_CLASS
    dataset.SOPInstanceUID = f"{uid}.{k + 1}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{uid}.8", f"{uid}.9"
    dataset.FrameOfReferenceUID = f"{uid}.7"
    dataset.Modality, dataset.Manufacturer = "CT", "SYNTHETIC"
    dataset.PatientID = dataset.PatientName = "SYNTHETIC"
    dataset.StudyDate = dataset.SeriesDate = "20260101"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, k + 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientPosition = "HFS"
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    x, y, z = ORIGIN_LPS_MM
    dataset.ImagePositionPatient = [x, y, z + k * STEP_MM]
    dataset.PixelSpacing = [PIXEL_MM, PIXEL_MM]
    dataset.SliceThickness = STEP_MM
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, INTERCEPT, "HU"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = stored.astype("<u2").tobytes()
    return dataset
