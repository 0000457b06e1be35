"""Person -> what a scanner would send: HU with noise and table, and a DICOM series of it.

Noise is white noise through the reconstruction kernel (a Gaussian here), which correlates it in
the plane as filtered back projection does. Every UID and byte follows from the seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scipy import ndimage

from mla_med.phantom.plain.anatomy import Grid, Person, blend, soft
from mla_med.phantom.plain.lesions import Lesion, render_person


@dataclass(frozen=True, slots=True)
class Scan:
    """How the person was scanned."""

    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 3.0)
    matrix: int = 256
    """Rows and columns."""
    noise_hu: float = 14.0
    """Standard deviation of the noise in water."""
    kernel_mm: float = 1.2
    """Width (standard deviation) of the in-plane kernel."""
    below_mm: float = 35.0
    above_mm: float = 20.0
    """How far the scan reaches below the costophrenic angles and above the apices."""
    shift_mm: tuple[float, float] = (0.0, 0.0)
    """The patient off the centre of the gantry."""


def random_scan(rng: np.random.Generator, spacing_mm=(1.5, 1.5, 3.0), matrix: int = 256) -> Scan:
    """A scan as technicians vary it."""
    return Scan(
        spacing_mm=spacing_mm,
        matrix=matrix,
        noise_hu=float(rng.uniform(8, 22)),
        kernel_mm=float(rng.uniform(0.9, 1.6)),
        below_mm=float(rng.uniform(15, 55)),
        above_mm=float(rng.uniform(8, 30)),
        shift_mm=(float(rng.normal(0, 6)), float(rng.normal(0, 6))),
    )


def scan_grid(person: Person, scan: Scan) -> Grid:
    """The voxels that this scan of this person fills (RAS)."""
    low, high = person.lung_base - scan.below_mm, person.lung_top + scan.above_mm
    slices = int(np.ceil((high - low) / scan.spacing_mm[2])) + 1
    flat = Grid.centred((scan.matrix, scan.matrix, slices), scan.spacing_mm)
    x, y, _ = flat.origin_mm
    return Grid(flat.shape, flat.spacing_mm, (x + scan.shift_mm[0], y + scan.shift_mm[1], low))


def scan_person(
    person: Person,
    lesions: tuple[Lesion, ...],
    scan: Scan,
    rng: np.random.Generator,
    grid: Grid | None = None,
) -> tuple[np.ndarray, Grid]:
    """-> HU int16 (I, J, K) as reconstructed, and its grid (`scan_grid` where none is given)."""
    grid = grid or scan_grid(person, scan)
    hu = render_person(person, lesions, grid)
    _draw_table(hu, person, grid)
    hu += _noise(grid, scan, rng)
    np.clip(hu, -1024, 3071, out=hu)
    return np.rint(hu).astype(np.int16), grid


def write_series(hu: np.ndarray, grid: Grid, person: Person, out: Path, indication: str = "") -> Path:
    """Writes one axial CT series, a file a slice (DICOM PS3.3 A.3, CT Image IOD)."""
    out.mkdir(parents=True, exist_ok=True)
    pixels = (hu.astype(np.int32) + 1024).astype(np.uint16)
    # UIDs follow from the voxels: the same patient scanned otherwise is another study, not the same
    # UIDs with other pixels
    key = hashlib.sha256(pixels.tobytes()).hexdigest()
    for k in range(hu.shape[2]):
        # LPS rows run to the left, columns to the back: both in-plane axes of RAS are reversed
        plane = np.ascontiguousarray(pixels[::-1, ::-1, k].T)
        slice_ = _slice_dataset(plane, k, grid, person, indication, key)
        slice_.save_as(out / f"IM{k + 1:04d}.dcm", enforce_file_format=True)
    return out


def uid(*parts: object) -> str:
    """A UID under 2.25 from what it names (DICOM PS3.5 B.2), the same for the same parts."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16])}"


def _draw_table(hu: np.ndarray, person: Person, grid: Grid) -> None:
    x, y, _ = grid.axes()
    top = -person.half_depth - 14 + 0.0009 * x**2
    shell = np.abs(y - top + 10) - 10
    inside = soft(np.maximum(shell, np.abs(x) - 190), grid.edge_mm)
    free = hu < -500
    blend(hu, inside * free, -880.0)
    blend(hu, soft(np.maximum(np.abs(shell) - 1.0, np.abs(x) - 190), grid.edge_mm) * free, -350.0)


def _noise(grid: Grid, scan: Scan, rng: np.random.Generator) -> np.ndarray:
    white = rng.standard_normal(grid.shape, dtype=np.float32)
    sigma = [scan.kernel_mm / grid.spacing_mm[0], scan.kernel_mm / grid.spacing_mm[1], 0]
    noise = ndimage.gaussian_filter(white, sigma, truncate=3) if max(sigma) > 0.3 else white
    # smoothing lowers the spread: bring it back to what was asked for
    return noise * (scan.noise_hu / max(float(noise[::4, ::4, ::4].std()), 1e-6))


def _slice_dataset(
    plane: np.ndarray, k: int, grid: Grid, person: Person, indication: str, key: str
) -> Dataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid("instance", key, k)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    _patient_and_study(ds, person, indication, key)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "CT", "mla_med", "Phantom"
    ds.SeriesInstanceUID = uid("series", key)
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = "2", str(k + 1), "1"
    ds.SeriesDescription, ds.BodyPartExamined, ds.PatientPosition = (
        f"CHEST {grid.spacing_mm[2]:.1f} SOFT",
        "CHEST",
        "HFS",
    )
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.KVP, ds.ConvolutionKernel, ds.RescaleType = "120", "SOFT", "HU"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid("frame", key), ""
    columns, rows = plane.shape[1], plane.shape[0]
    x = -(grid.origin_mm[0] + (columns - 1) * grid.spacing_mm[0])
    y = -(grid.origin_mm[1] + (rows - 1) * grid.spacing_mm[1])
    z = grid.origin_mm[2] + k * grid.spacing_mm[2]
    ds.ImagePositionPatient = [f"{v:.6g}" if abs(v) > 1e-4 else "0" for v in (x, y, z)]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.PixelSpacing = [f"{grid.spacing_mm[1]:g}", f"{grid.spacing_mm[0]:g}"]
    ds.SliceThickness = f"{grid.spacing_mm[2]:g}"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleIntercept, ds.RescaleSlope = "-1024", "1"
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    ds.PixelData = plane.tobytes()
    return ds


def _patient_and_study(ds: Dataset, person: Person, indication: str, key: str) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.PatientID = "Phantom^Nobody", f"PHANTOM-{person.seed}"
    ds.PatientBirthDate, ds.PatientSex = "", person.sex.value
    ds.PatientAge = f"{person.age_years:03d}Y"
    ds.StudyInstanceUID = uid("study", key)
    ds.StudyDate, ds.StudyTime, ds.SeriesDate, ds.SeriesTime = "20260102", "080000", "20260102", "080100"
    ds.AcquisitionDate, ds.AcquisitionTime = "20260102", "080100"
    ds.ContentDate, ds.ContentTime = "20260102", "080100"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "", ""
    ds.StudyDescription = "CT CHEST WITHOUT CONTRAST"
    if indication:
        request = Dataset()
        request.RequestedProcedureID = request.ScheduledProcedureStepID = "1"
        request.ReasonForTheRequestedProcedure = indication
        ds.RequestAttributesSequence = [request]
