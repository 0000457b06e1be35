"""Order, scan and voxels -> the elements of DICOM images and of a report, as a maker's scanner writes them.

CT Image (PS3.3 A.3), MR Image (A.4), Secondary Capture (A.8.1) and Basic Text SR (A.35.1). Whoever reads
them sees a subject of quality control named Phantom^Nobody; no device and no person stands in any element.
Knows no files, and nothing of what is drawn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, CTImageStorage, MRImageStorage, SecondaryCaptureImageStorage

from mla_med.phantom.scanner.ct import Scan
from mla_med.phantom.scanner.makers import CtMaker, MrMaker, MrPulse
from mla_med.phantom.scanner.makers.form import Numbers, Times
from mla_med.types import Sex

PHANTOM_NAME = {"en": "Phantom^Nobody", "zh": "Phantom^Nobody=体模^无名"}
"""Chinese consoles write a second, ideographic form (PS3.5 H.3)."""
FINDINGS = {"en": "Findings", "zh": "检查所见"}
LONGEST_LO = 64
"""Characters of a Long String (PS3.5 6.2)."""
LONGEST_DS = 16
WINDOWS = {"soft": ("40", "400"), "standard": ("40", "400"), "lung": ("-600", "1500")}
PROTON_MHZ_PER_TESLA = 42.577


@dataclass(frozen=True, slots=True)
class Order:
    """Who is examined, when and why: what all series of one study have in common."""

    patient_id: str
    sex: Sex
    age_years: int
    height_cm: float
    weight_kg: float
    indication: str
    description: str
    """StudyDescription."""
    body_part: str
    """BodyPartExamined."""
    language: str
    characters: str
    """SpecificCharacterSet of every file."""
    taken: datetime
    key: str = ""
    """What the UIDs follow from; `keyed` makes it of all that the files hold."""

    @property
    def study_uid(self) -> str:
        return uid("study", self.key)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the slices of a stack lie, in patient LPS mm, as DICOM wants it (PS3.3 C.7.6.2)."""

    first_mm: tuple[float, float, float]
    """The middle of the first voxel of the first slice."""
    across: tuple[float, float, float]
    """Direction in which the columns are counted."""
    down: tuple[float, float, float]
    """Direction in which the rows are counted."""
    step_mm: tuple[float, float, float]
    """From slice to slice."""
    spacing_mm: tuple[float, float]
    """Between rows, and between columns."""

    def position_mm(self, k: int) -> np.ndarray:
        return np.asarray(self.first_mm) + k * np.asarray(self.step_mm)


def uid(*parts: object) -> str:
    """A UID under 2.25 from what it names (PS3.5 B.2), the same for the same parts."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16])}"


def keyed(order: Order, maker: str, stacks: Sequence[np.ndarray], facts: object = "") -> Order:
    """The order with a key of everything that will be written: a UID never names two different files."""
    digest = hashlib.sha256(repr((replace(order, key=""), maker, facts)).encode())
    for stack in stacks:
        # memory order: no copy of a volume whose slices lie one after the other
        digest.update(np.ascontiguousarray(stack.transpose(2, 0, 1)).data)
    return replace(order, key=digest.hexdigest())


def decimal(value: float, digits: int | None = None, plus: bool = False) -> str:
    """A decimal string of at most 16 characters; `digits` behind the point, or as many as are needed."""
    value = float(value)
    if abs(value) < 1e-9:
        value = 0.0
    sign = "+" if plus and value > 0 else ""
    if digits is not None:
        text = f"{value:.{digits}f}"
        return sign + (text.removeprefix("-") if not float(text) else text)
    for precision in range(15, 4, -1):
        text = f"{value:.{precision}g}"
        if len(sign + text) <= LONGEST_DS:
            break
    return sign + text


def study_elements(order: Order) -> Dataset:
    """Patient, study and request (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2, C.7.3.1)."""
    ds = Dataset()
    ds.SpecificCharacterSet = order.characters
    ds.PatientName, ds.PatientID = PHANTOM_NAME[order.language], order.patient_id
    ds.PatientBirthDate, ds.PatientSex = "", order.sex.value
    ds.PatientAge = f"{order.age_years:03d}Y"
    ds.PatientSize, ds.PatientWeight = decimal(order.height_cm / 100, 2), decimal(order.weight_kg, 1)
    ds.QualityControlSubject = "YES"
    ds.StudyInstanceUID = order.study_uid
    ds.StudyDate, ds.StudyTime = _date(order.taken), _time(order.taken)
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "", ""
    ds.StudyDescription = order.description
    request = Dataset()
    request.RequestedProcedureID = request.ScheduledProcedureStepID = "1"
    request.RequestedProcedureDescription = order.description
    if 0 < len(order.indication) <= LONGEST_LO:
        request.ReasonForTheRequestedProcedure = order.indication
    elif order.indication:
        # consoles put what is too long for its element into the history
        ds.AdditionalPatientHistory = order.indication
    ds.RequestAttributesSequence = [request]
    return ds


def series_elements(
    order: Order, modality: str, number: int, description: str, after_s: int, series: str = ""
) -> Dataset:
    """What the images of one series share; `after_s` seconds after the study began."""
    ds = study_elements(order)
    began = order.taken + timedelta(seconds=after_s)
    ds.Modality, ds.SeriesNumber = modality, str(number)
    ds.SeriesInstanceUID = uid("series", order.key, number, series)
    ds.SeriesDescription = description
    ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = _date(began)
    ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = _time(began)
    ds.BodyPartExamined = order.body_part
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid("frame", order.key), ""
    ds.AcquisitionNumber = "1"
    return ds


def ct_elements(order: Order, scan: Scan, maker: CtMaker, contrast: bool) -> Dataset:
    """The axial series of a CT, but for what differs from slice to slice (PS3.3 C.8.2.1)."""
    kernel = maker.kernels[scan.kernel]
    description = maker.series_descriptions[scan.kernel].format(t=scan.thickness_mm, kernel=kernel)
    ds = series_elements(order, "CT", maker.first_series, description, 90)
    _ct_scanner(ds, scan, maker)
    ds.SOPClassUID, ds.ImageType = CTImageStorage, list(maker.image_type)
    ds.ConvolutionKernel = kernel
    ds.FilterType = kernel if maker.filter_type == "kernel" else maker.filter_type
    if maker.scan_options:
        ds.ScanOptions = maker.scan_options
    ds.SliceThickness = decimal(scan.thickness_mm, maker.numbers.spacing)
    ds.WindowCenter, ds.WindowWidth = WINDOWS[scan.kernel]
    if contrast:
        ds.ContrastBolusAgent = "IODINE 350"
    _ct_pixels(ds, maker)
    if scan.circular and maker.padding_declared and maker.padding_stored is not None:
        ds.PixelPaddingValue = maker.padding_stored
    return ds


def ct_localizer_elements(order: Order, scan: Scan, maker: CtMaker) -> Dataset:
    ds = series_elements(order, "CT", maker.localizer_series, maker.localizer_description, 5)
    _ct_scanner(ds, scan, maker)
    ds.GantryDetectorTilt = decimal(0, maker.numbers.spacing)
    ds.SOPClassUID, ds.ImageType = CTImageStorage, list(maker.localizer_type)
    del ds.CTDIvol, ds.CTDIPhantomTypeCodeSequence
    ds.SliceThickness = decimal(0.6, maker.numbers.spacing)
    ds.WindowCenter, ds.WindowWidth = "-100", "1000"
    _ct_pixels(ds, maker)
    del ds.RescaleType  # a projection is not in HU
    return ds


def ct_dose_elements(order: Order, maker: CtMaker) -> Dataset:
    """A picture of the console's dose report, 8 bits of grey (PS3.3 A.8.1)."""
    ds = series_elements(order, "CT", maker.dose_series, maker.dose_description, 120)
    del ds.FrameOfReferenceUID, ds.PositionReferenceIndicator
    _scanner(ds, maker)
    ds.SOPClassUID, ds.ImageType = SecondaryCaptureImageStorage, ["DERIVED", "SECONDARY", "OTHER"]
    ds.ConversionType, ds.PatientOrientation = "WSD", ""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    return ds


def mr_elements(
    order: Order,
    maker: MrMaker,
    pulse: MrPulse,
    *,
    number: int,
    after_s: int,
    plane: str,
    thickness_mm: float,
    distance_mm: float,
    b_value: float | None = None,
    series_b_value: float = 0.0,
    contrast: bool = False,
    slope: float | None = None,
    tesla: float | None = None,
    times: Times | None = None,
) -> Dataset:
    """One volume of an MR series, but for what differs from slice to slice (PS3.3 C.8.3.1).
    `series_b_value`: the largest of the series, which its description names."""
    pulse = pulse if times is None else taken_with(pulse, times)
    times, tesla = pulse.times, tesla or maker.tesla
    description = pulse.description.format(plane=maker.planes[plane], b=series_b_value)
    ds = series_elements(order, "MR", number, description, after_s)
    _scanner(ds, maker)
    ds.SOPClassUID, ds.ImageType = MRImageStorage, list(pulse.image_type)
    ds.ScanningSequence, ds.SequenceVariant = list(pulse.scanning), list(pulse.variant)
    ds.ScanOptions = list(pulse.options) or ""
    ds.MRAcquisitionType, ds.SequenceName = times.dimension, pulse.name.format(b=b_value or 0.0)
    ds.RepetitionTime, ds.EchoTime = decimal(times.tr_ms), decimal(times.te_ms)
    if times.ti_ms is not None:
        ds.InversionTime = decimal(times.ti_ms)
    ds.EchoTrainLength, ds.EchoNumbers = str(times.train), "1"
    ds.FlipAngle = decimal(times.flip_deg)
    ds.MagneticFieldStrength = decimal(tesla)
    ds.ImagingFrequency, ds.ImagedNucleus = decimal(PROTON_MHZ_PER_TESLA * tesla, 4), "1H"
    ds.ReceiveCoilName, ds.InPlanePhaseEncodingDirection = maker.coil, "ROW"
    ds.SliceThickness = decimal(thickness_mm, maker.numbers.spacing)
    ds.SpacingBetweenSlices = decimal(distance_mm, maker.numbers.spacing)
    if b_value is not None:
        _b_value(ds, maker, b_value)
    if contrast:
        ds.ContrastBolusAgent = "GADOLINIUM"
    _stored(ds, maker.signed, maker.bits_stored)
    if slope is not None:
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", decimal(slope), "normalized"
    _further(ds, maker.extra)
    return ds


def taken_with(pulse: MrPulse, times: Times) -> MrPulse:
    """The pulse with other times. T1 in thick slices is a spin echo, whatever the maker takes in 3-D."""
    if pulse.times.dimension == times.dimension:
        return replace(pulse, times=times)
    after = " +C" if re.search(r"\+C|Gd|CE|post", pulse.description) else ""
    description = f"T1 SE {{plane}}{after}"
    plain = tuple(word.replace("FFE", "SE") for word in pulse.image_type)
    return MrPulse("se2d1", description, ("SE",), ("SP",), plain, times)


def place(ds: Dataset, geometry: Geometry, k: int, numbers: Numbers) -> None:
    """Position, orientation and spacing of slice k."""
    position = geometry.position_mm(k)
    ds.ImagePositionPatient = [decimal(v, numbers.position, numbers.plus) for v in position]
    directions = (*geometry.across, *geometry.down)
    ds.ImageOrientationPatient = [decimal(v, numbers.orientation) for v in directions]
    ds.PixelSpacing = [decimal(v, numbers.spacing) for v in geometry.spacing_mm]
    normal = np.cross(geometry.across, geometry.down)
    ds.SliceLocation = decimal(float(position @ normal), 2)


def report_elements(order: Order, series_number: int, images: Mapping[str, str], series_uid: str) -> Dataset:
    """The head of a report that was finished on the day of the study. `images`: SOP instance -> class, of
    which it speaks. It is not signed: that would name a person."""
    ds = study_elements(order)
    written = order.taken + timedelta(hours=3)
    ds.SOPClassUID, ds.Modality = BasicTextSRStorage, "SR"
    ds.SeriesInstanceUID, ds.SeriesNumber = uid("report", order.key), str(series_number)
    ds.InstanceNumber, ds.Manufacturer = "1", "mla_med"
    ds.ContentDate, ds.ContentTime = _date(written), _time(written)
    ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag = "COMPLETE", "UNVERIFIED", "FINAL"
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.PerformedProcedureCodeSequence = []
    evidence, series = Dataset(), Dataset()
    evidence.StudyInstanceUID, evidence.ReferencedSeriesSequence = ds.StudyInstanceUID, [series]
    series.SeriesInstanceUID, series.ReferencedSOPSequence = series_uid, []
    for instance, sop_class in images.items():
        row = Dataset()
        row.ReferencedSOPClassUID, row.ReferencedSOPInstanceUID = sop_class, instance
        series.ReferencedSOPSequence.append(row)
    ds.CurrentRequestedProcedureEvidenceSequence = [evidence]
    del ds.RequestAttributesSequence  # of images only
    return ds


def report_content(ds: Dataset, text: str, language: str) -> None:
    """The text of the report as the content tree of a Basic Text SR (PS3.3 A.35.1.3.1); names of concepts are
    written as the department reads them."""
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = [_concept("18748-4", "LN", "Diagnostic Imaging Report")]
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "TEXT"
    item.ConceptNameCodeSequence = [_concept("121070", "DCM", FINDINGS[language])]
    item.TextValue = text
    ds.ContentSequence = [item]


def _concept(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _scanner(ds: Dataset, maker: CtMaker | MrMaker) -> None:
    ds.Manufacturer, ds.ManufacturerModelName = maker.manufacturer, maker.model
    ds.SoftwareVersions, ds.ProtocolName = maker.software, maker.protocol
    ds.PatientPosition = maker.position if isinstance(maker, CtMaker) else "HFS"


def _ct_scanner(ds: Dataset, scan: Scan, maker: CtMaker) -> None:
    _scanner(ds, maker)
    ds.KVP, ds.Exposure = str(scan.kvp), str(scan.mas)
    # one turn in half a second: the current that gives this exposure
    ds.ExposureTime, ds.XRayTubeCurrent = "500", str(2 * scan.mas)
    ds.CTDIvol = float(scan.ctdi_mgy)
    ds.CTDIPhantomTypeCodeSequence = [_concept("113691", "DCM", "IEC Body Dosimetry Phantom")]
    ds.ReconstructionDiameter = decimal(scan.fov_mm, maker.numbers.spacing)
    ds.GantryDetectorTilt = decimal(scan.tilt_deg, maker.numbers.spacing)
    _further(ds, maker.extra)


def _ct_pixels(ds: Dataset, maker: CtMaker) -> None:
    _stored(ds, maker.signed, maker.bits_stored)
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(maker.intercept), "1", "HU"


def _stored(ds: Dataset, signed: bool, bits: int) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, bits, bits - 1, int(signed)


def _b_value(ds: Dataset, maker: MrMaker, b_value: float) -> None:
    if maker.standard_b_value:
        ds.DiffusionBValue = float(b_value)
    if maker.private_b_value is None:
        return
    group, element, vr, creator, value = maker.private_b_value
    text: Any = value.format(b=b_value)
    numbers = {"FL": float, "FD": float}
    ds.private_block(group, creator, create=True).add_new(element, vr, numbers.get(vr, str)(text))


def _further(ds: Dataset, extra: Mapping[str, Any]) -> None:
    for keyword, value in extra.items():
        setattr(ds, keyword, value)


def _date(moment: datetime) -> str:
    return moment.strftime("%Y%m%d")


def _time(moment: datetime) -> str:
    return moment.strftime("%H%M%S")
