"""Series -> Volume: voxels in HU (CT) or MR units, affine in patient RAS mm.

Certifies first, then decodes each slice once into one array. Knows DICOM pixels; knows nothing of
networks, windows or reports.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.pixels import iter_pixels
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from mla_med.archive import open_file
from mla_med.dicom.certificate import MAX_SPACING_ERROR, NOTABLE_TILT_DEG, order_slices, truncated
from mla_med.dicom.header import MALFORMED, Header, quiet_pydicom
from mla_med.dicom.pixels import read_stored
from mla_med.dicom.terms import disagreements
from mla_med.errors import SeriesError
from mla_med.types import Certificate, Instance, Series, Volume

PADDING_HU = -1024.0
"""What voxels outside the field of view become."""
AIR_HU = (-1100.0, -850.0)
"""Where the darkest voxels of a CT lie, if there is air in it."""
UNDECLARED_PADDING_HU = -1500.0
"""Nothing in a patient is darker; scanners fill the corners with such values."""
BRIGHTEST_HU = 31000.0
"""Of the extended CT scale; no metal is brighter."""
MAX_SAMPLED_VOXELS = 2**16
"""The HU check looks at every n-th voxel of a larger volume."""

# What decoders raise on damaged pixels: theirs are RuntimeErrors.
UNDECODABLE = (*MALFORMED, RuntimeError, OSError)


def read_volume(series: Series, resample: bool = False) -> Volume:
    """The volume of a series in slice order, or a SeriesError that says why not.

    `resample`: uneven slices are interpolated to even ones, and a tilted gantry's shear is taken out;
    instance k is then the one nearest to slice k. Otherwise every voxel is as stored, and uneven slices
    are refused (UNEVEN_SPACING)."""
    headers, certificate = order_slices(series, resample)
    with quiet_pydicom():
        voxels, padded, masked = _read_voxels(headers, certificate)
    certificate = replace(certificate, notes=(*certificate.notes, *_pixel_notes(padded, masked)))
    if headers[0].modality == "CT":
        certificate = check_hu(voxels, certificate, f"Series {series.series_uid}", filled=padded > 0)
    instances = tuple(Instance(h.sop_instance_uid, h.sop_class_uid, h.path, h.frame) for h in headers)
    if resample:
        voxels, certificate, nearest = _resampled(voxels, certificate, headers)
        instances = tuple(instances[k] for k in nearest)
    return Volume(
        voxels=voxels,
        affine=np.array(certificate.affine),
        series=replace(series, instances=instances),
        certificate=certificate,
    )


def read_slices(headers: Sequence[Header], certificate: Certificate) -> np.ndarray:
    """Some slices (I, J, K) as read_volume has them, of a series that was certified before; the others stay
    unread."""
    columns, rows, _ = certificate.shape
    with quiet_pydicom():
        return _read_voxels(headers, replace(certificate, shape=(columns, rows, len(headers))))[0]


def describe(volume: Volume) -> Volume:
    """The same with what its voxels show in the certificate: body part and contrast medium, and where
    they contradict the header. CT only: MR units mean nothing by themselves."""
    certificate = volume.certificate
    if volume.series.modality != "CT":
        return volume
    from mla_med.dicom.content import look  # scipy.ndimage: a quarter of a second that reading can do without

    content = look(volume.voxels, volume.affine)
    contradictions = disagreements(
        certificate.body_part_header, content.body_part, certificate.contrast_header, content.contrast
    )
    certificate = replace(
        certificate,
        body_part_pixels=content.body_part,
        contrast_pixels=content.contrast,
        notes=(*certificate.notes, *contradictions),
    )
    return replace(volume, certificate=certificate)


def certify_pixels(series: Series, resample: bool = False) -> Certificate:
    """The whole certificate: geometry, HU, and what the voxels show. Reads and forgets the volume."""
    return describe(read_volume(series, resample)).certificate


def _pixel_notes(padded: int, masked: int) -> list[str]:
    notes = [f"{padded} padding voxels set to {PADDING_HU:.0f} HU."] if padded else []
    if masked:
        notes.append(f"Bits beside BitsStored in {masked} slices were left out; old overlays are kept there.")
    return notes


def _resampled(
    voxels: np.ndarray, certificate: Certificate, headers: Sequence[Header]
) -> tuple[np.ndarray, Certificate, list[int]]:
    """-> even and upright voxels, their certificate, and the nearest stored slice of each."""
    from mla_med.dicom.resample import evenly, upright

    affine, notes = np.array(certificate.affine), list(certificate.notes)
    nearest = list(range(voxels.shape[2]))
    if certificate.largest_spacing_error > MAX_SPACING_ERROR:
        positions = np.array([header.position_mm for header in headers]) * (-1, -1, 1)
        step = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
        stored = (positions - positions[0]) @ step
        step_mm = float(np.median(np.diff(stored)))
        voxels, wanted = evenly(voxels, stored, step_mm)
        affine[:3, 2] = step * step_mm
        nearest = [int(np.abs(stored - distance).argmin()) for distance in wanted]
        notes.append(f"Resampled: {len(headers)} uneven slices to {len(nearest)}, {step_mm:.3f} mm apart.")
    if certificate.tilt_deg > NOTABLE_TILT_DEG:
        outside = PADDING_HU if headers[0].modality == "CT" else 0.0
        voxels, affine = upright(voxels, affine, outside)
        notes = [note for note in notes if "kept as shear" not in note]
        notes.append(f"Resampled: gantry tilt of {certificate.tilt_deg:.1f} degrees taken out.")
    i, j, k = voxels.shape
    certificate = replace(
        certificate,
        shape=(i, j, k),
        spacing_mm=(*certificate.spacing_mm[:2], float(np.linalg.norm(affine[:3, 2]))),
        affine=tuple((r[0], r[1], r[2], r[3]) for r in affine.tolist()),
        tilt_deg=0.0 if certificate.tilt_deg > NOTABLE_TILT_DEG else certificate.tilt_deg,
        largest_spacing_error=0.0
        if certificate.largest_spacing_error > MAX_SPACING_ERROR
        else certificate.largest_spacing_error,
        notes=tuple(notes),
    )
    return voxels, certificate, nearest


def _read_voxels(headers: Sequence[Header], certificate: Certificate) -> tuple[np.ndarray, int, int]:
    """-> voxels, how many were padding, and in how many slices bits beyond the stored ones were set."""
    # Fortran order: a stored slice is then one contiguous block, and no transposition is needed.
    voxels = np.empty(certificate.shape, dtype=np.float32, order="F")
    own = threading.local()

    def place(k: int, stored: np.ndarray) -> tuple[int, int]:
        header = headers[k]
        stored, masked = _stored_bits(_tile(stored, header), header)
        # (rows, columns), C order: the same memory as voxels[:, :, k]
        slice_JI = voxels[:, :, k].T
        _rescale(stored, slice_JI, header)
        return _fill_padding(slice_JI, stored, header), masked

    def read_fast(slices: list[int]) -> list[tuple[int, int] | None]:
        header = headers[slices[0]]
        if not hasattr(own, "scratch"):
            own.scratch = np.empty(header.stored_rows * header.stored_columns * 4, np.uint8)
        try:
            stored = read_stored(header, own.scratch)
        except OSError as error:
            raise _changed(header) from error
        return [None if stored is None else place(k, stored) for k in slices]

    # Reading, decoding and rescaling leave Python's lock; more threads than cores gain nothing.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        images = _by_image(headers)
        done = dict(
            pair
            for slices, counts in zip(images, pool.map(read_fast, images), strict=True)
            for pair in zip(slices, counts, strict=True)
        )
    slow = [k for k, counts in done.items() if counts is None]
    for k, stored in _stored_slices(headers, slow):
        done[k] = place(k, stored)
    counts = [c for c in done.values() if c is not None]
    return voxels, sum(c[0] for c in counts), sum(c[1] for c in counts)


def _by_image(headers: Sequence[Header]) -> list[list[int]]:
    """The slices of one mosaic together, every other slice alone."""
    images: dict[object, list[int]] = {}
    for k, header in enumerate(headers):
        images.setdefault(header.path if header.tiles else k, []).append(k)
    return list(images.values())


def _stored_slices(headers: Sequence[Header], which: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(slice number, stored values) by pydicom, for what is not plain; each file is opened once."""
    numbered = sorted(
        ((k, headers[k]) for k in which), key=lambda item: (str(item[1].path), item[1].frame or 0)
    )
    for path, group in groupby(numbered, key=lambda item: item[1].path):
        slices = list(group)
        frames = None if slices[0][1].tiles else [h.frame for _, h in slices if h.frame is not None]
        # The Rust decoder of RLE panics on damaged data, past every `except`; pydicom's own raises.
        plugin = "pydicom" if slices[0][1].transfer_syntax_uid == RLELossless else ""
        try:
            file = open_file(path)
        except OSError as error:
            raise _changed(slices[0][1]) from error
        source: Any = file
        if slices[0][1].transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            source = _inflated(file, slices[0][1])  # iter_pixels finds nothing in a deflated file
        pixels = iter_pixels(source, indices=frames or None, raw=True, decoding_plugin=plugin)
        with file, closing(pixels) as arrays:
            stored = None
            for k, header in slices:
                if stored is None or not header.tiles:
                    stored = _decode(arrays, header, k, len(headers))
                yield k, stored


def _inflated(file: BinaryIO, header: Header) -> pydicom.Dataset:
    """The size was checked when the header was read."""
    try:
        return pydicom.dcmread(file)
    except (OSError, *MALFORMED) as error:
        raise _changed(header) from error


def _tile(stored: np.ndarray, header: Header) -> np.ndarray:
    """The slice that a header of a mosaic means; otherwise the image as it is."""
    if not header.tiles:
        return stored
    row, column = divmod(header.frame or 0, header.tile_side)
    rows, columns = header.rows, header.columns
    return stored[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]


def _stored_bits(stored: np.ndarray, header: Header) -> tuple[np.ndarray, int]:
    """Values without what lies beside BitsStored, old overlays mostly (PS3.5 8.1.1); 1 if there was any.

    Signed values that need more bits than stated stay as they are: padding of -3000 under 12 bits is a
    wrong BitsStored, and cut to 12 bits it would look like bone."""
    bits, allocated, shift = (
        header.bits_stored,
        header.bits_allocated,
        header.high_bit + 1 - header.bits_stored,
    )
    if not 0 < bits < allocated or stored.dtype.itemsize * 8 != allocated or shift < 0:
        return stored, 0
    low, high = int(stored.min()), int(stored.max())
    if shift == 0 and header.signed:
        if low < 0 or high < 1 << bits - 1:
            return stored, 0
    elif shift == 0 and high < 1 << bits:
        return stored, 0
    up = allocated - 1 - header.high_bit
    if not 0 <= up < allocated:
        return stored, 0
    # shifted up and down again: the sign comes along
    return (stored << up) >> (allocated - bits), int(not header.signed or high >= 1 << bits)


def _decode(arrays: Iterator[np.ndarray], header: Header, k: int, n: int) -> np.ndarray:
    try:
        stored = next(arrays, None)
    except EOFError as error:
        raise truncated(header, k, n) from error
    except UNDECODABLE as error:
        raise _unreadable(header, k, n, type(error).__name__) from error
    if stored is None or stored.shape != (header.stored_rows, header.stored_columns):
        raise _unreadable(header, k, n, "wrong size")
    return stored


def _unreadable(header: Header, k: int, n: int, why: str) -> SeriesError:
    return SeriesError(
        f"The pixels of {header.file_name}, slice {k + 1} of {n}, cannot be decoded from transfer syntax "
        f"{header.transfer_syntax_uid} ({why}). Send series {header.series_uid} again.",
        code="UNREADABLE_PIXELS",
    )


def _changed(header: Header) -> SeriesError:
    return SeriesError(
        f"{header.file_name} of series {header.series_uid} can no longer be read. Was it moved or changed? "
        "Read the study again.",
        code="FILE_CHANGED",
    )


def _rescale(stored_JI: np.ndarray, slice_JI: np.ndarray, header: Header) -> None:
    slope = np.float32(1.0 if header.slope is None else header.slope)
    intercept = np.float32(header.intercept or 0.0)
    if slope == 1:
        np.add(stored_JI, intercept, out=slice_JI, dtype=np.float32, casting="unsafe")
        return
    np.multiply(stored_JI, slope, out=slice_JI, dtype=np.float32, casting="unsafe")
    if intercept:
        slice_JI += intercept


def _fill_padding(slice_JI: np.ndarray, stored_JI: np.ndarray, header: Header) -> int:
    """CT: declared padding becomes air. Returns how many voxels changed."""
    if header.modality != "CT" or header.padding is None:
        return 0
    low, high = header.padding
    # Some scanners declare 0 as padding while 0 is water; only what no tissue has is believed.
    first, last = (stored * (header.slope or 1.0) + (header.intercept or 0.0) for stored in (low, high))
    if last > AIR_HU[1] and first < BRIGHTEST_HU:
        return 0
    mask = (stored_JI >= low) & (stored_JI <= high) & (slice_JI != PADDING_HU)
    slice_JI[mask] = PADDING_HU
    return int(np.count_nonzero(mask))


def check_hu(voxels: np.ndarray, certificate: Certificate, name: str, filled: bool = False) -> Certificate:
    """Measure air; refuse values that no CT in HU has, and note what merely looks odd. `name` begins the
    error: "Series 1.2.3". `filled`: padding was set to PADDING_HU, which is then no measurement."""
    sample = _sample(voxels)
    if filled:
        sample = sample[sample != PADDING_HU]
    if sample.size == 0:
        raise SeriesError(
            f"{name} holds padding and nothing that was measured. Send it again.", code="HU_IMPLAUSIBLE"
        )
    darkest, dense = np.percentile(sample, (1.0, 99.0))
    if darkest < UNDECLARED_PADDING_HU and dense < 200 and _is_measured(sample):
        raise _implausible(name, darkest, dense, "looks rescaled twice")
    if sample.min() > -50 and dense > 800:
        raise _implausible(name, darkest, dense, "looks as if it was never rescaled")
    measured = sample[sample > UNDECLARED_PADDING_HU]
    air_hu = float(np.median(measured[measured <= np.percentile(measured, 1.0)])) if measured.size else None
    notes = list(certificate.notes)
    if measured.size < sample.size:
        notes.append(
            f"Values below {UNDECLARED_PADDING_HU:.0f} HU: padding that the header does not declare."
        )
    if sample.min() == sample.max():
        notes.append("One value everywhere.")
    if sample.max() > BRIGHTEST_HU:
        notes.append(f"Values above {BRIGHTEST_HU:.0f} HU: padding that the header does not declare.")
    if air_hu is None or not AIR_HU[0] <= air_hu <= AIR_HU[1]:
        notes.append("The darkest voxels are not air: a narrow field of view, or values that are not HU.")
    return replace(certificate, air_hu=air_hu, notes=tuple(notes))


def _is_measured(sample: np.ndarray) -> bool:
    """Padding is a value or two; whatever was measured has noise."""
    return np.unique(sample[sample < UNDECLARED_PADDING_HU]).size > 10


def _sample(voxels: np.ndarray) -> np.ndarray:
    every = max(1, -(-voxels.size // MAX_SAMPLED_VOXELS))
    return np.ascontiguousarray(voxels.reshape(-1, order="F")[::every])


def _implausible(name: str, darkest: float, dense: float, why: str) -> SeriesError:
    return SeriesError(
        f"{name} {why}: 98 % of its values lie between {darkest:.0f} and {dense:.0f}, where CT "
        "in HU has air near -1000 and tissue near 0. Check RescaleSlope and RescaleIntercept.",
        code="HU_IMPLAUSIBLE",
    )
