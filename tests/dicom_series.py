"""Makes small DICOM series that do not exist, as scanners, re-senders and anonymisers would write them.

`write_series(folder, positions)` is a sound axial CT; every deviation is a keyword: an attribute of
all images, or a function of the slice number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
MR_CLASS = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR_CLASS = "1.2.840.10008.5.1.4.1.1.4.1"
STUDY_UID = "2.25.1000"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ROWS, COLUMNS = 8, 6

SHARED_DICOM = Path(__file__).parents[2] / "shared/data/dicom"
PACKAGED = Path(pydicom.__file__).parent / "data/test_files/dicomdirtests"


def write_series(
    folder: Path,
    positions_mm: Sequence[float | Sequence[float]],
    *,
    series: int = 1,
    prefix: str = "",
    stored: Callable[[int], np.ndarray] | None = None,
    **attributes: Any,
) -> list[Path]:
    """One image for each position; a single number is a height above the origin."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, position in enumerate(positions_mm):
        dataset = image(series, k)
        dataset.ImagePositionPatient = (
            [-10.0, -20.0, float(position)] if isinstance(position, int | float) else list(position)
        )
        set_pixels(dataset, (stored or anatomy)(k))
        for keyword, value in attributes.items():
            set_attribute(dataset, keyword, value(k) if callable(value) else value)
        path = folder / f"{prefix}{series}-{k:03d}"
        save(dataset, path)
        paths.append(path)
    return paths


def image(series: int, k: int) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = CT_CLASS
    dataset.SOPInstanceUID = f"2.25.{series}{k:04d}"
    dataset.StudyInstanceUID = STUDY_UID
    dataset.SeriesInstanceUID = f"2.25.{series}"
    dataset.FrameOfReferenceUID = "2.25.77"
    dataset.Modality = "CT"
    dataset.PatientID = "MRN-4711"
    dataset.PatientName = "Doe^Jane"
    dataset.StudyDate = "20260301"
    dataset.SeriesNumber = series
    dataset.SeriesDescription = f"series {series}"
    dataset.BodyPartExamined = "CHEST"
    dataset.InstanceNumber = k + 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImageOrientationPatient = list(AXIAL)
    dataset.PixelSpacing = [0.8, 0.7]
    dataset.SliceThickness = 2.0
    dataset.RescaleSlope = 1
    dataset.RescaleIntercept = -1024
    return dataset


def anatomy(k: int) -> np.ndarray:
    """Stored values (rows, columns): air around tissue, no two slices or voxels alike."""
    hu = np.full((ROWS, COLUMNS), -1000)
    hu[2:6, 1:5] = 40
    return hu + 1024 + k + np.arange(COLUMNS)


def set_pixels(dataset: Dataset, stored: np.ndarray) -> None:
    signed = bool(stored.min() < 0)
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()


def set_attribute(dataset: Dataset, keyword: str, value: Any) -> None:
    """None removes it; values that break the standard are written as they are."""
    if value is None:
        if keyword in dataset:
            delattr(dataset, keyword)
        return
    with pydicom.config.disable_value_validation():
        setattr(dataset, keyword, value)


def save(dataset: Dataset, path: Path) -> None:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with pydicom.config.disable_value_validation():
        dataset.save_as(path, enforce_file_format=True)


def write_enhanced(path: Path, heights_mm: Sequence[float], echo_times: Sequence[float] = (30.0,)) -> None:
    """One enhanced MR file; the frames of the echoes alternate at each height."""
    dataset = image(9, 0)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        set_attribute(dataset, keyword, None)
    dataset.SOPClassUID, dataset.Modality = ENHANCED_MR_CLASS, "MR"
    frames = [(height, echo) for height in heights_mm for echo in echo_times]
    dataset.NumberOfFrames = len(frames)
    dataset.SharedFunctionalGroupsSequence = [_shared_groups()]
    dataset.PerFrameFunctionalGroupsSequence = [_frame_groups(*frame) for frame in frames]
    set_pixels(dataset, np.stack([anatomy(k) for k in range(len(frames))]))
    save(dataset, path)


def _shared_groups() -> Dataset:
    groups, orientation, measures, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(AXIAL)
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 2.0
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 2, 0, "US"
    groups.PlaneOrientationSequence = [orientation]
    groups.PixelMeasuresSequence = [measures]
    groups.PixelValueTransformationSequence = [rescale]
    return groups


def _frame_groups(height_mm: float, echo_time: float) -> Dataset:
    groups, position, echo = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [-10.0, -20.0, height_mm]
    echo.EffectiveEchoTime = echo_time
    groups.PlanePositionSequence = [position]
    groups.MREchoSequence = [echo]
    return groups
