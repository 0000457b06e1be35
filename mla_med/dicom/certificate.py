"""Series -> Certificate: its geometry, measured from the headers before anything trusts it.

Slices are ordered by position along their normal, exact duplicates dropped, gaps and everything
else that would make millimetres wrong refused by name. Knows nothing of pixel values.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder

from mla_med.dicom.group import MIN_SLICES, SAME_DIRECTION, SAME_SPACING
from mla_med.dicom.header import MALFORMED, Header, NotDicomError, pixel_digest, quiet_pydicom, read_headers
from mla_med.dicom.scan import printable
from mla_med.dicom.terms import body_part_of, contrast_of
from mla_med.errors import SeriesError
from mla_med.types import Certificate, Series

MAX_SPACING_ERROR = 0.01
"""A slice step may differ from the median step by this fraction."""
MISSING_SLICE_FACTOR = 1.5
"""From this multiple of the median step on, a slice is missing; below, the steps are uneven."""
SAME_POSITION_MM = 0.01
MAX_SHIFT_MM = 0.5
"""How far a slice may lie beside the line through the first and the last."""
MAX_VOXELS = 2**30
"""4 GiB of float32. Checked before any allocation."""
MAX_RESCALE = 1e12
"""Larger slopes and intercepts would leave the numbers that float32 holds."""
NOTABLE_TILT_DEG = 0.5
"""Below it, the angle is the rounding of the header."""
NAMED_WITHIN_DEG = 30.0
"""An orientation is axial, coronal or sagittal within this angle, else oblique."""

SECONDARY_CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.7"
LOCALIZER_WORDS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "REF_SURVIEW", "SCANOGRAM"}
SCREEN_WORDS = {"SCREEN SAVE", "SCREEN", "DOSE_INFO", "PATIENT_INFO"}
PROJECTION_WORDS = {
    *("PROJECTION IMAGE", "MIP", "MINIP", "MNIP", "MAX_IP", "MIN_IP", "MIP_PROJECTION"),
    *("VRT", "SSD", "VOLREN", "VOLUME RENDERING", "3D RENDERING", "MPR THICK MIP", "RAYSUM"),
}
REFORMAT_WORDS = {"MPR", "REFORMATTED", "CURVED MPR", "CSA MPR", "MPR THICK"}


def certify(series: Series, resample: bool = False) -> Certificate:
    """What was measured on the series, or a SeriesError that says why it cannot be trusted.

    `resample`: uneven slices are no reason to refuse, as the caller will have them resampled."""
    return order_slices(series, resample)[1]


def order_slices(series: Series, resample: bool = False) -> tuple[tuple[Header, ...], Certificate]:
    """The headers in slice order, each image once, and the certificate of their geometry."""
    headers = _headers(series)
    _check_kind(headers)
    _check_geometry_stated(headers)
    unique = _drop_duplicates(headers)
    _check_one_geometry(unique)
    ordered, steps_mm = _along_normal(unique, resample)
    _check_pixels_stated(ordered)
    notes = _notes(ordered, len(headers) - len(unique))
    certificate = _measure(ordered, steps_mm, notes)
    return ordered, replace(certificate, duplicates_dropped=len(headers) - len(unique))


def _headers(series: Series) -> list[Header]:
    assert series.instances, "a series has at least one instance"
    found: dict[tuple, Header] = {}
    for path in dict.fromkeys(instance.path for instance in series.instances):
        try:
            found.update({(path, header.frame): header for header in read_headers(path)})
        except (NotDicomError, OSError, *MALFORMED) as error:
            raise SeriesError(
                f"{printable(path.name)} of series {series.series_uid} can no longer be read "
                f"({type(error).__name__}). Was it moved or changed? Read the study again.",
                code="FILE_CHANGED",
            ) from error
    headers = [found.get((instance.path, instance.frame)) for instance in series.instances]
    known = [instance.sop_instance_uid for instance in series.instances]
    if [header and header.sop_instance_uid for header in headers] != known:
        raise SeriesError(
            f"Files of series {series.series_uid} changed since it was read. Read the study again.",
            code="FILE_CHANGED",
        )
    return [header for header in headers if header is not None]


HU_TYPES = ("HU", "HU_MOD", "US", "")
"""Rescale types of CT (PS3.3 C.11.1.1.2) that may be HU; US is what some scanners write for them."""


def _check_kind(headers: Sequence[Header]) -> None:
    """Is it CT or MR, made of slices?"""
    first = headers[0]
    words = {word.upper() for header in headers for word in header.image_type}
    name = f"Series {first.series_uid}"
    refusals = (
        (
            first.modality not in ("CT", "MR"),
            "NOT_CT_OR_MR",
            f"{name} has modality {first.modality or 'none'}; only CT and MR are read.",
        ),
        (
            any(h.samples != 1 or not h.photometric.startswith("MONOCHROME") for h in headers),
            "COLOUR",
            f"{name} is in colour ({first.photometric or 'unstated'}), so its values measure nothing. "
            "Choose the original images.",
        ),
        (
            any(h.sop_class_uid.startswith(SECONDARY_CAPTURE_CLASS) for h in headers)
            or bool(words & SCREEN_WORDS),
            "SECONDARY_CAPTURE",
            f"{name} is a secondary capture, a picture of a screen. Choose the original images.",
        ),
        (
            bool(words & LOCALIZER_WORDS),
            "LOCALIZER",
            f"{name} is a localizer. Choose the series that was planned on it.",
        ),
        (
            "MOSAIC" in words and any(h.tiles == 0 for h in headers),
            "MOSAIC",
            f"{name} is a mosaic, many slices tiled in one image, and the private header that says how they "
            "lie is not there. Was it removed when the study was anonymised? Export one image per slice.",
        ),
        (
            bool(words & PROJECTION_WORDS),
            "DERIVED_PROJECTION",
            f"{name} is a projection ({', '.join(sorted(words & PROJECTION_WORDS))}). "
            "Choose the slices that it was made from.",
        ),
        (
            first.modality == "CT" and any(h.rescale_type not in HU_TYPES for h in headers),
            "NOT_HU",
            f"{name} is in {first.rescale_type or 'mixed units'}, not in HU (RescaleType): a material map of "
            "a dual-energy scan, mostly. Choose the series in HU.",
        ),
        (
            any(h.has_lut for h in headers),
            "MODALITY_LUT",
            f"{name} turns stored values into units by a table (ModalityLUTSequence), which is not read. "
            "Export it with RescaleSlope and RescaleIntercept.",
        ),
        (
            any(h.frames > 1 and h.frame is None for h in headers),
            "UNSUPPORTED_ENHANCED",
            f"{name} has several frames in a file that does not describe them. "
            "Send it as one image per slice.",
        ),
    )
    for refused, code, words_for_people in refusals:
        if refused:
            raise SeriesError(words_for_people, code=code)


def _check_geometry_stated(headers: Sequence[Header]) -> None:
    for header in headers:
        missing = _missing_geometry(header)
        if missing:
            raise SeriesError(
                f"{_place(header)} of series {header.series_uid} has no usable {missing}, so its place "
                "in the patient is unknown. Were geometry attributes removed when it was anonymised?",
                code="NO_GEOMETRY",
            )


def _missing_geometry(header: Header) -> str:
    if header.rows < 1 or header.columns < 1:
        return "Rows and Columns"
    if header.position_mm is None:
        return "ImagePositionPatient"
    if header.orientation is None or not _is_orthonormal(header.orientation):
        return "ImageOrientationPatient"
    if header.row_column_spacing_mm is None or min(header.row_column_spacing_mm) <= 0:
        return "PixelSpacing"
    return ""


def _is_orthonormal(orientation: Sequence[float]) -> bool:
    row, column = orientation[:3], orientation[3:]
    pairs = ((row, row, 1.0), (column, column, 1.0), (row, column, 0.0))
    return all(abs(sum(map(operator.mul, a, b)) - wanted) < 0.01 for a, b, wanted in pairs)


def _drop_duplicates(headers: Sequence[Header]) -> list[Header]:
    """Each image once. Two different images under one UID are an error of whoever made the UID."""
    images: dict[tuple[str, int | None], Header] = {}
    for header in headers:
        kept = images.setdefault((header.sop_instance_uid, header.frame), header)
        if kept is not header and not _same_image(kept, header):
            raise SeriesError(
                f"{kept.file_name} and {header.file_name} of series {header.series_uid} are different "
                f"images with one SOPInstanceUID, {header.sop_instance_uid}. Send the series again.",
                code="DUPLICATE_UID",
            )
    return list(images.values())


def _same_image(kept: Header, header: Header) -> bool:
    """Equal headers, and equal pixels: what was corrected and sent again may keep its UID."""
    if replace(kept, path=header.path) != header:
        return False
    return kept.path == header.path or pixel_digest(kept.path) == pixel_digest(header.path)


def _check_one_geometry(headers: Sequence[Header]) -> None:
    first = headers[0]
    orientations = np.array([header.orientation for header in headers])
    if np.abs(orientations - orientations[0]).max() > SAME_DIRECTION:
        raise SeriesError(
            f"The {len(headers)} slices of series {first.series_uid} are not parallel. "
            "Is it a localizer or a rotating view? Choose a series of parallel slices.",
            code="MIXED_ORIENTATION",
        )
    sizes = {(header.rows, header.columns) for header in headers}
    spacings = np.array([header.row_column_spacing_mm for header in headers])
    if len(sizes) > 1 or np.abs(spacings / spacings[0] - 1).max() > SAME_SPACING:
        raise SeriesError(
            f"The slices of series {first.series_uid} differ in size or pixel spacing, "
            "so they do not make one volume. Choose another series.",
            code="MIXED_SIZE",
        )


def _along_normal(headers: Sequence[Header], resample: bool) -> tuple[tuple[Header, ...], np.ndarray]:
    """Slices in the order of their position, and the distances between them along the normal."""
    uid, n = headers[0].series_uid, len(headers)
    # InstanceNumber lies in re-sent studies; the position along the normal does not.
    normal = _axes(headers[0])[2]
    distances = np.array([normal @ np.array(header.position_mm) for header in headers])
    order = np.argsort(distances, kind="stable")
    steps_mm = np.diff(distances[order])
    ordered = tuple(headers[k] for k in order)
    if n > 1 and not (steps_mm > SAME_POSITION_MM).any():
        raise SeriesError(
            f"All {n} images of series {uid} lie at one position; that is a series in time, "
            "not a volume. Choose another series.",
            code="NOT_A_VOLUME",
        )
    if n < MIN_SLICES:
        raise SeriesError(
            f"Series {uid} has {n} {'slice' if n == 1 else 'slices'}; a volume needs at least {MIN_SLICES}. "
            "Is part of it missing?",
            code="TOO_FEW_SLICES",
        )
    _check_steps(uid, steps_mm, resample)
    _check_on_one_line(ordered)
    return ordered, steps_mm


def _axes(header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along a row, down a column and along the slice normal, in LPS."""
    assert header.orientation is not None
    row = np.array(header.orientation[:3])
    row /= np.linalg.norm(row)
    column = np.array(header.orientation[3:])
    column -= row * (row @ column)
    column /= np.linalg.norm(column)
    return row, column, np.cross(row, column)


def _check_steps(uid: str, steps_mm: np.ndarray, resample: bool) -> None:
    n = len(steps_mm) + 1
    k = int(steps_mm.argmin())
    if steps_mm[k] <= SAME_POSITION_MM:
        raise SeriesError(
            f"Two different images lie at one position, slices {k + 1} and {k + 2} of {n} of series {uid}. "
            "Does it hold two acquisitions, or was it re-sent under new UIDs?",
            code="DUPLICATE_POSITION",
        )
    # The lower median: of two steps, 1 and 2 mm, it is the 2 that has a slice missing.
    usual = float(np.sort(steps_mm)[(n - 2) // 2])
    k = int(steps_mm.argmax())
    if steps_mm[k] >= MISSING_SLICE_FACTOR * usual:
        raise SeriesError(
            f"Slice gap of {steps_mm[k]:.2f} mm after slice {k + 1} of {n}; the others are "
            f"{usual:.2f} mm apart. Is a slice missing from series {uid}?",
            code="MISSING_SLICE",
        )
    median = float(np.median(steps_mm))
    k = int(np.abs(steps_mm - median).argmax())
    if abs(steps_mm[k] - median) > MAX_SPACING_ERROR * median and not resample:
        raise SeriesError(
            f"Uneven slices: {steps_mm[k]:.3f} mm after slice {k + 1} of {n}, while the median step is "
            f"{median:.3f} mm. Have series {uid} resampled (--resample, resample=True), or choose another.",
            code="UNEVEN_SPACING",
        )


def _check_on_one_line(ordered: Sequence[Header]) -> None:
    positions = np.array([header.position_mm for header in ordered])
    # at its own distance along the line: how even the steps are is judged by themselves
    distances = positions @ _axes(ordered[0])[2]
    share = (distances - distances[0]) / (distances[-1] - distances[0])
    line = positions[0] + share[:, None] * (positions[-1] - positions[0])
    shifts_mm = np.linalg.norm(positions - line, axis=1)
    k = int(shifts_mm.argmax())
    if shifts_mm[k] > MAX_SHIFT_MM:
        raise SeriesError(
            f"Slice {k + 1} of {len(ordered)} of series {ordered[0].series_uid} lies {shifts_mm[k]:.2f} mm "
            "beside the line through the others. Was the table moved, or are two series mixed?",
            code="SHIFTED_SLICE",
        )


def _check_pixels_stated(ordered: Sequence[Header]) -> None:
    first = ordered[0]
    shape = (first.columns, first.rows, len(ordered))
    stored = max(first.rows * first.columns * header.frames for header in ordered)
    if max(stored, shape[0] * shape[1] * shape[2]) > MAX_VOXELS:
        raise SeriesError(
            f"Series {first.series_uid} claims {shape[0]} x {shape[1]} x {shape[2]} voxels, "
            f"more than the {MAX_VOXELS:,} that are read. Is its header damaged?",
            code="TOO_LARGE",
        )
    for k, header in enumerate(ordered):
        if header.bits_allocated not in (8, 16, 32) or not _can_decode(header.transfer_syntax_uid):
            raise SeriesError(
                f"{header.file_name} of series {header.series_uid} stores {header.bits_allocated}-bit pixels "
                f"in transfer syntax {header.transfer_syntax_uid}, for which no decoder is installed. "
                "Ask the PACS for explicit VR little endian.",
                code="UNSUPPORTED_PIXELS",
            )
        slope, intercept = _rescale_of(header)
        if slope == 0 or max(abs(slope), abs(intercept)) > MAX_RESCALE:
            raise SeriesError(
                f"{header.file_name} of series {header.series_uid} rescales by {slope:g} and "
                f"{intercept:g}, which no measurement needs. Is its header damaged?",
                code="RESCALE_IMPLAUSIBLE",
            )
        if not header.pixels_complete:
            raise truncated(header, k, len(ordered))
        if header.pixels_in_excess:
            raise SeriesError(
                f"{header.file_name} of series {header.series_uid} holds twice the pixels that its header "
                "describes, or more. Is BitsAllocated or NumberOfFrames wrong? Send the series again.",
                code="UNREADABLE_PIXELS",
            )
    if len({(header.slope is None, header.intercept is None) for header in ordered}) > 1:
        raise SeriesError(
            f"Some slices of series {first.series_uid} state how values are rescaled and others do not, so "
            "they have no unit in common. Were attributes lost on the way? Send the series again.",
            code="RESCALE_MIXED",
        )


def _rescale_of(header: Header) -> tuple[float, float]:
    return (1.0 if header.slope is None else header.slope), header.intercept or 0.0


def truncated(header: Header, k: int, n: int) -> SeriesError:
    assert header.position_mm is not None
    place = ", ".join(f"{x:.2f}" for x in header.position_mm)
    return SeriesError(
        f"{header.file_name}, slice {k + 1} of {n} at ({place}) mm, ends before its pixel data do. "
        f"Send series {header.series_uid} again.",
        code="TRUNCATED_PIXELS",
    )


@cache
def _can_decode(transfer_syntax_uid: str) -> bool:
    with quiet_pydicom():
        try:
            return get_decoder(transfer_syntax_uid).is_available
        except (NotImplementedError, ValueError, InvalidDicomError):
            return False


def _measure(ordered: Sequence[Header], steps_mm: np.ndarray, notes: Sequence[str]) -> Certificate:
    first, last, n = ordered[0], ordered[-1], len(ordered)
    row, column, normal = _axes(first)
    assert first.row_column_spacing_mm is not None
    row_spacing, column_spacing = first.row_column_spacing_mm
    origin = np.array(first.position_mm)
    step = (np.array(last.position_mm) - origin) / (n - 1)
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * column_spacing, column * row_spacing, step, origin])
    affine[:2] *= -1  # LPS to RAS
    cosine = np.clip(step @ normal / np.linalg.norm(step), -1, 1)
    tilt_deg = round(float(np.degrees(np.arccos(cosine))), 2)
    if tilt_deg > NOTABLE_TILT_DEG:
        notes = [*notes, f"Gantry tilt of {tilt_deg:.1f} degrees, kept as shear in the affine."]
    return Certificate(
        shape=(first.columns, first.rows, n),
        spacing_mm=(column_spacing, row_spacing, float(np.linalg.norm(step))),
        affine=tuple((r[0], r[1], r[2], r[3]) for r in affine.tolist()),
        orientation=orientation_of(normal),
        tilt_deg=tilt_deg,
        largest_spacing_error=float(np.abs(steps_mm / np.median(steps_mm) - 1).max()),
        duplicates_dropped=0,
        rescale=_rescale_words(ordered),
        transfer_syntax_uid=first.transfer_syntax_uid,
        lossy=any(header.lossy for header in ordered),
        body_part_header=_body_part(first),
        contrast_header=contrast_of(first.contrast, f"{first.description} {first.protocol}"),
        notes=tuple(notes),
    )


def _body_part(header: Header) -> str:
    """Of the first that says something: the attribute, the description, the protocol."""
    words = (header.body_part, header.description, header.protocol)
    return next(filter(None, map(body_part_of, words)), "")


def orientation_of(normal: np.ndarray) -> str:
    axis = int(np.abs(normal).argmax())
    if np.abs(normal[axis]) < np.cos(np.radians(NAMED_WITHIN_DEG)):
        return "oblique"
    return ("sagittal", "coronal", "axial")[axis]


def _rescale_words(headers: Sequence[Header]) -> str:
    pairs = {(header.slope, header.intercept) for header in headers}
    if pairs == {(None, None)}:
        return "none stated; values as stored"
    if len(pairs) == 1:
        slope, intercept = pairs.pop()
        return f"slope {1 if slope is None else slope:g}, intercept {intercept or 0:g}"
    slopes, intercepts = zip(*map(_rescale_of, headers), strict=True)
    return (
        f"per slice, slope {min(slopes):g} to {max(slopes):g}, "
        f"intercept {min(intercepts):g} to {max(intercepts):g}"
    )


def _notes(headers: Sequence[Header], duplicates: int) -> list[str]:
    frames_of_reference = {header.frame_of_reference_uid for header in headers}
    words = {word.upper() for header in headers for word in header.image_type}
    observed = (
        (duplicates > 0, f"{duplicates} duplicate images dropped."),
        ("" in frames_of_reference, "No frame of reference: not comparable with other series by position."),
        (
            len(frames_of_reference) > 1,
            "The frame of reference differs between slices; taken as one, as positions agree.",
        ),
        (any(h.lossy for h in headers), "Lossy compression, or a syntax that allows it."),
        (bool(words & REFORMAT_WORDS), "Reformatted from other images."),
        (
            any(h.photometric == "MONOCHROME1" for h in headers),
            "MONOCHROME1: meant to be shown inverted; the values are as measured.",
        ),
        (
            headers[0].modality == "CT" and any(h.slope is None or h.intercept is None for h in headers),
            "CT without complete rescale attributes: values may not be HU.",
        ),
        (
            len({(h.contrast or "", h.acquisition_number) for h in headers}) > 1 and _alternates(headers),
            "Acquisition number or contrast medium alternates from slice to slice: perhaps two scans in one.",
        ),
    )
    return [words_for_people for seen, words_for_people in observed if seen]


def _alternates(ordered: Sequence[Header]) -> bool:
    """Whether slices of two acquisitions lie between each other, not one block beside the other."""
    keys = [(h.contrast or "", h.acquisition_number) for h in ordered]
    changes = sum(a != b for a, b in pairwise(keys))
    return 2 * len(set(keys)) <= changes and max(map(keys.count, set(keys))) > 2


def _place(header: Header) -> str:
    return header.file_name if header.frame is None else f"Frame {header.frame + 1} of {header.file_name}"
