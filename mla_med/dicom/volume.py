"""Series -> Volume: voxels in HU (CT) or MR units, affine in patient RAS mm.

Certifies first, then decodes each slice once into one array. Knows DICOM pixels; knows nothing of
networks, windows or reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
from pydicom.pixels import iter_pixels
from pydicom.uid import RLELossless

from mla_med.dicom.certificate import order_slices, truncated
from mla_med.dicom.header import MALFORMED, Header, quiet_pydicom
from mla_med.errors import SeriesError
from mla_med.types import Certificate, Instance, Series, Volume

PADDING_HU = -1024.0
"""What voxels outside the field of view become."""
AIR_HU = (-1100.0, -850.0)
"""Where the darkest voxels of a CT lie, if there is air in it."""
UNDECLARED_PADDING_HU = -1500.0
"""Nothing in a patient is darker; scanners fill the corners with such values."""
MAX_SAMPLED_VOXELS = 2**21
"""The HU check looks at every n-th voxel of a larger volume."""

# What decoders raise on damaged pixels: theirs are RuntimeErrors.
UNDECODABLE = (*MALFORMED, RuntimeError, OSError)


def read_volume(series: Series) -> Volume:
    """The volume of a series in slice order, or a SeriesError that says why not."""
    headers, certificate = order_slices(series)
    with quiet_pydicom():
        voxels, padded = _read_voxels(headers, certificate)
    if headers[0].modality == "CT":
        certificate = _check_hu(voxels, certificate, series.series_uid)
    if padded:
        note = f"{padded} padding voxels set to {PADDING_HU:.0f} HU."
        certificate = replace(certificate, notes=(*certificate.notes, note))
    instances = tuple(Instance(h.sop_instance_uid, h.sop_class_uid, h.path, h.frame) for h in headers)
    return Volume(
        voxels=voxels,
        affine=np.array(certificate.affine),
        series=replace(series, instances=instances),
        certificate=certificate,
    )


def _read_voxels(headers: Sequence[Header], certificate: Certificate) -> tuple[np.ndarray, int]:
    # Fortran order: a stored slice is then one contiguous block, and no transposition is needed.
    voxels = np.empty(certificate.shape, dtype=np.float32, order="F")
    padded = 0
    for k, stored in _stored_slices(headers):
        slice_IJ = voxels[:, :, k]
        slice_IJ[...] = stored.T
        _rescale(slice_IJ, headers[k])
        padded += _fill_padding(slice_IJ, stored.T, headers[k])
    return voxels, padded


def _stored_slices(headers: Sequence[Header]) -> Iterator[tuple[int, np.ndarray]]:
    """(slice number, rows x columns of stored values); each file is opened once."""
    numbered = sorted(enumerate(headers), key=lambda item: (str(item[1].path), item[1].frame or 0))
    for path, group in groupby(numbered, key=lambda item: item[1].path):
        slices = list(group)
        frames = [header.frame for _, header in slices if header.frame is not None]
        # The Rust decoder of RLE panics on damaged data, past every `except`; pydicom's own raises.
        plugin = "pydicom" if slices[0][1].transfer_syntax_uid == RLELossless else ""
        arrays = iter_pixels(path, indices=frames or None, raw=True, decoding_plugin=plugin)
        for k, header in slices:
            yield k, _decode(arrays, header, k, len(headers))


def _decode(arrays: Iterator[np.ndarray], header: Header, k: int, n: int) -> np.ndarray:
    try:
        stored = next(arrays, None)
    except EOFError as error:
        raise truncated(header, k, n) from error
    except UNDECODABLE as error:
        raise _unreadable(header, k, n, type(error).__name__) from error
    if stored is None or stored.shape != (header.rows, header.columns):
        raise _unreadable(header, k, n, "wrong size")
    return stored


def _unreadable(header: Header, k: int, n: int, why: str) -> SeriesError:
    return SeriesError(
        f"The pixels of {header.path.name}, slice {k + 1} of {n}, cannot be decoded from transfer syntax "
        f"{header.transfer_syntax_uid} ({why}). Send series {header.series_uid} again.",
        code="UNREADABLE_PIXELS",
    )


def _rescale(slice_IJ: np.ndarray, header: Header) -> None:
    if header.slope not in (None, 1.0):
        slice_IJ *= np.float32(header.slope)
    if header.intercept not in (None, 0.0):
        slice_IJ += np.float32(header.intercept)


def _fill_padding(slice_IJ: np.ndarray, stored_IJ: np.ndarray, header: Header) -> int:
    """CT: declared padding becomes air. Returns how many voxels changed."""
    if header.modality != "CT" or header.padding is None:
        return 0
    low, high = header.padding
    # Some scanners declare 0 as padding while 0 is water; only what is darker than tissue is believed.
    if high * (header.slope or 1.0) + (header.intercept or 0.0) > AIR_HU[1]:
        return 0
    mask = (stored_IJ >= low) & (stored_IJ <= high) & (slice_IJ != PADDING_HU)
    slice_IJ[mask] = PADDING_HU
    return int(np.count_nonzero(mask))


def _check_hu(voxels: np.ndarray, certificate: Certificate, series_uid: str) -> Certificate:
    """Measure air; refuse values that no CT in HU has, and note what merely looks odd."""
    sample = _sample(voxels)
    darkest, dense = np.percentile(sample, (1.0, 99.0))
    if darkest < UNDECLARED_PADDING_HU and dense < 200 and _is_measured(sample):
        raise _implausible(series_uid, darkest, dense, "looks rescaled twice")
    if sample.min() > -50 and dense > 800:
        raise _implausible(series_uid, darkest, dense, "looks as if it was never rescaled")
    measured = sample[sample > UNDECLARED_PADDING_HU]
    air_hu = float(np.median(measured[measured <= np.percentile(measured, 1.0)])) if measured.size else None
    notes = list(certificate.notes)
    if measured.size < sample.size:
        notes.append(
            f"Values below {UNDECLARED_PADDING_HU:.0f} HU: padding that the header does not declare."
        )
    if air_hu is None or not AIR_HU[0] <= air_hu <= AIR_HU[1]:
        notes.append("The darkest voxels are not air: a narrow field of view, or values that are not HU.")
    return replace(certificate, air_hu=air_hu, notes=tuple(notes))


def _is_measured(sample: np.ndarray) -> bool:
    """Padding is a value or two; whatever was measured has noise."""
    return np.unique(sample[sample < UNDECLARED_PADDING_HU]).size > 10


def _sample(voxels: np.ndarray) -> np.ndarray:
    every = max(1, -(-voxels.size // MAX_SAMPLED_VOXELS))
    return voxels.reshape(-1, order="F")[::every]


def _implausible(series_uid: str, darkest: float, dense: float, why: str) -> SeriesError:
    return SeriesError(
        f"Series {series_uid} {why}: 98 % of its values lie between {darkest:.0f} and {dense:.0f}, where CT "
        "in HU has air near -1000 and tissue near 0. Check RescaleSlope and RescaleIntercept.",
        code="HU_IMPLAUSIBLE",
    )
