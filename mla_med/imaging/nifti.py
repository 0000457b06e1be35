"""NIfTI file <-> Volume, for research data that was converted from DICOM before it came here.

Knows what a NIfTI header promises: the grid in mm, its place in the patient, how values are stored.
Knows nothing of what conversion lost: who was examined, which slices were there, how the scanner was
tilted, whether the images were compressed with loss.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import BinaryIO, cast
from uuid import UUID

import numpy as np
from nibabel import Nifti1Image
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from mla_med.dicom.certificate import MAX_VOXELS, NOTABLE_TILT_DEG, orientation_of
from mla_med.dicom.group import MIN_SLICES
from mla_med.dicom.volume import check_hu
from mla_med.errors import ConfigError, OutputError, SeriesError
from mla_med.types import Certificate, Instance, Modality, Series, Volume

SAME_PLACE_MM = 1e-3
"""Two forms of one header agree if no corner of the volume lies further apart."""
SPACING_MM = (0.01, 100.0)
"""Between these lie the voxels of people; outside, the unit of the header is wrong."""
MAX_HEADER_BYTES = 16 * 2**20
"""Where voxels begin at the latest: between lie extensions, which are not read."""
GZIP_MAGIC = b"\x1f\x8b"
GZIP_RATIO = 1032
"""Deflate cannot shrink a file further (RFC 1951: 258 bytes of output from 2 bits)."""
ABSURD = 1e9
"""Larger numbers in an affine, even in microns, are no place."""
UNIT_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1e3, "micron": 1e-3}
FORMS = ("unknown", "scanner", "aligned", "Talairach", "MNI 152", "other template")
"""NIfTI-1 xform codes 0 to 5. From 3 on, mm are those of a template and not of the patient."""
FIRST_TEMPLATE_FORM = 3
SINGLE_SUFFIXES = (".nii", ".nii.gz")

Header = Nifti1Header | Nifti2Header


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where one 3-D volume lies in a file, and how its stored values become numbers."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    part: str

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def read_nifti(
    path: Path,
    modality: Modality | str = "CT",
    *,
    volume: int | None = None,
    spacing_only: bool = False,
) -> Volume:
    """The volume in a .nii, .nii.gz or .hdr/.img pair: float32 (I, J, K) as stored, affine in RAS mm.

    `volume` names one of several, from 0. `spacing_only` takes a file that states no place in the
    patient; left and right are then guessed, and the certificate says so.

    Values are scl_slope * stored + scl_inter, once. Nothing else may be multiplied afterwards: the
    second release of CT-RATE holds HU while its table of metadata still lists the slope and intercept
    of the DICOM files, and a script that applies these again makes air -2024 HU (CT-CLIP, issue 50).
    CT whose values look rescaled twice, or never, is refused as by read_volume (HU_IMPLAUSIBLE).

    NIfTI has no UIDs. The series UID is 2.25. and a hash of modality, grid and voxels, so that equal
    volumes have equal UIDs whatever their files are called; slice k along the third axis is frame k of
    the file, with a UID from that hash and k. These UIDs point to nothing in a PACS.

    Raises SeriesError: PATH_MISSING, NOT_NIFTI, FILE_DAMAGED, TRUNCATED_PIXELS, UNSUPPORTED_PIXELS,
    TOO_LARGE, TOO_FEW_SLICES, SEVERAL_VOLUMES, NO_SUCH_VOLUME, NO_GEOMETRY, SPACING_IMPLAUSIBLE,
    UNKNOWN_UNIT, NOT_FINITE, HU_IMPLAUSIBLE. ConfigError if the modality is neither CT nor MR.

    NIfTI-1: https://nifti.nimh.nih.gov/nifti-1; NIfTI-2: https://nifti.nimh.nih.gov/nifti-2.
    """
    modality = _to_modality(modality)
    path = Path(path)
    header_path, data_path = _files(path)
    header = _read_header(header_path, single=header_path == data_path)
    layout = _layout(header, header_path, volume)
    affine, notes = _affine(header, layout.shape, path.name, spacing_only)
    certificate = _certificate(affine, layout, notes, path.name)
    voxels = _read_voxels(data_path, layout)
    if modality == Modality.CT:
        certificate = check_hu(voxels, certificate, path.name)
    return Volume(
        voxels=voxels,
        affine=affine,
        series=_series(path, modality, voxels, affine, layout.part),
        certificate=certificate,
    )


def write_nifti(volume: Volume, path: Path) -> None:
    """Writes the volume as NIfTI-1 in mm, scanner coordinates; the file is there whole or not at all.

    int16 where that holds every value, else float32; never scaled. The affine is stored as float32,
    exact to a ten-millionth of each number; a qform, which cannot hold shear, only where it agrees.
    Nothing of the header names anybody. Raises OutputError (UNKNOWN_SUFFIX unless .nii or .nii.gz).
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(SINGLE_SUFFIXES):
        raise OutputError(
            f"Cannot write {path}: give a name that ends in .nii or .nii.gz.", code="UNKNOWN_SUFFIX"
        )
    image = _image(volume)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            if name.endswith(".gz"):
                # Neither name nor time in the stream: the same volume makes the same bytes.
                with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                    image.to_stream(packed)
            else:
                image.to_stream(file)
        part.replace(path)
    except OSError as error:
        words = error.strerror or "input or output error"
        raise OutputError(f"Cannot write {path}: {words}. Free some space and run it again.") from error
    finally:
        part.unlink(missing_ok=True)


def _to_modality(modality: Modality | str) -> Modality:
    try:
        return Modality(modality.upper())
    except ValueError as error:
        raise ConfigError(
            f"No modality {modality!r}. NIfTI does not state it: give CT or MR.", code="UNKNOWN_MODALITY"
        ) from error


def is_nifti(path: Path) -> bool:
    """By its name, as every NIfTI reader tells."""
    return bool(re.search(r"\.(nii|hdr|img)(\.gz)?$", path.name, re.IGNORECASE)) and not path.is_dir()


def _files(path: Path) -> tuple[Path, Path]:
    """Where the header is, and where the voxels are."""
    pair = re.fullmatch(r"(.*)\.(hdr|img)(\.gz)?", path.name, re.IGNORECASE)
    header_path = data_path = path
    if pair:
        header_path, data_path = (
            path.with_name(f"{pair[1]}.{half}{pair[3] or ''}") for half in ("hdr", "img")
        )
    for part in (header_path, data_path):
        if not part.is_file():
            raise SeriesError(
                f"No file {part.name} in {part.parent}. Give a .nii or .nii.gz file, or both of a pair.",
                code="PATH_MISSING",
            )
    return header_path, data_path


def _read_header(path: Path, *, single: bool) -> Header:
    """The fixed part of the header; its extensions, which may hold a whole DICOM header, stay unread."""
    with _open(path) as file:
        block = file.read(Nifti2Header.template_dtype.itemsize)
    for kind in (Nifti2Header, Nifti1Header):
        if kind.may_contain_header(block):
            header = kind(block[: kind.template_dtype.itemsize], check=False)
            if bytes(header["magic"])[:2] == (b"n+" if single else b"ni"):
                return header
    raise SeriesError(
        f"{path.name} has no NIfTI header, or one for voxels in another file. ANALYZE 7.5 does not say "
        "where left is and is not read. Convert the DICOM files again.",
        code="NOT_NIFTI",
    )


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The file, unpacked; what goes wrong while it is read becomes a SeriesError."""
    try:
        with path.open("rb") as file:
            if file.read(2) == GZIP_MAGIC:
                file.seek(0)
                with gzip.open(file) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                file.seek(0)
                yield file
    except EOFError as error:
        raise _truncated(path) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SeriesError(
            f"{path.name} is damaged: its checksum or compression is wrong. Copy it again.",
            code="FILE_DAMAGED",
        ) from error
    except OSError as error:
        raise SeriesError(
            f"{path.name} cannot be read: {error.strerror or 'input error'}. Copy it again.",
            code="FILE_DAMAGED",
        ) from error


def _truncated(path: Path) -> SeriesError:
    return SeriesError(
        f"{path.name} ends before its voxels do. Was it copied completely?", code="TRUNCATED_PIXELS"
    )


def _layout(header: Header, path: Path, volume: int | None) -> _Layout:
    """Everything that is promised is checked before any of it is allocated."""
    try:
        stated, dtype = header.get_data_shape(), header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except (HeaderDataError, KeyError, ValueError) as error:
        raise _damaged_header(path, "shape, data type or scaling") from error
    offset = float(header["vox_offset"])
    first = header.template_dtype.itemsize if bytes(header["magic"])[:2] == b"n+" else 0
    if min(stated, default=0) < 1 or not first <= offset <= MAX_HEADER_BYTES:
        raise _damaged_header(path, "shape or data offset")
    # numpy's own: complex and colour measure nothing here, long double differs between machines.
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise SeriesError(
            f"{path.name} stores {dtype} voxels; only whole and real numbers are read. "
            "Convert the DICOM files again.",
            code="UNSUPPORTED_PIXELS",
        )
    shape, volumes = _shape(stated, path.name)
    index = _index(volume, volumes, path.name)
    one = prod(shape) * dtype.itemsize
    return _Layout(
        shape=shape,
        dtype=dtype,
        offset=int(offset) + index * one,
        slope=1.0 if slope is None else slope,
        intercept=intercept or 0.0,
        part=f"volume {index} of {volumes}, from 0" if volumes > 1 else "",
    )


def _damaged_header(path: Path, what: str) -> SeriesError:
    return SeriesError(
        f"The header of {path.name} is damaged: its {what} makes no sense. Copy it again.",
        code="FILE_DAMAGED",
    )


def _shape(stated: tuple[int, ...], name: str) -> tuple[tuple[int, int, int], int]:
    """I, J, K, and how many such volumes there are."""
    padded = (*(int(n) for n in stated), 1, 1, 1)
    shape, volumes = padded[:3], prod(padded[3:])
    words = " x ".join(str(n) for n in shape)
    if prod(shape) > MAX_VOXELS:
        raise SeriesError(
            f"{name} claims {words} voxels, more than the {MAX_VOXELS:,} that are read. "
            "Is its header damaged?",
            code="TOO_LARGE",
        )
    if min(shape) < MIN_SLICES:
        raise SeriesError(
            f"{name} has {words} voxels; a volume needs at least {MIN_SLICES} along each axis. "
            "Give the whole volume.",
            code="TOO_FEW_SLICES",
        )
    return (shape[0], shape[1], shape[2]), volumes


def _index(volume: int | None, volumes: int, name: str) -> int:
    if volume is None and volumes > 1:
        raise SeriesError(
            f"{name} holds {volumes} volumes, of time points, echoes or b-values. "
            f"Give one of them, volume=0 to volume={volumes - 1}.",
            code="SEVERAL_VOLUMES",
        )
    index = volume or 0
    if not 0 <= index < volumes:
        raise SeriesError(
            f"{name} has no volume {index}; it holds {volumes}, counted from 0.", code="NO_SUCH_VOLUME"
        )
    return index


def _affine(
    header: Header, shape: tuple[int, int, int], name: str, spacing_only: bool
) -> tuple[np.ndarray, list[str]]:
    """The form of the header that places the voxels in the patient, in RAS mm, and what is odd about it."""
    factor, notes = _unit(header, name)
    forms = {"sform": _sform(header), "qform": _qform(header)}
    codes = {kind: int(header[f"{kind}_code"]) for kind in forms}
    valid = {kind: form for kind, form in forms.items() if codes[kind] > 0 and _is_regular(form)}
    scaled = {kind: _in_mm(form, factor) for kind, form in valid.items()}
    if not valid:
        words = "Place and orientation are not stated: left and right are guessed, the middle is the origin."
        return _in_mm(_unplaced(header, name, codes, spacing_only), factor), [*notes, words]
    # A template's mm are not the patient's: the form that is the scanner's goes first, then the sform.
    kind = min(valid, key=lambda one: codes[one] >= FIRST_TEMPLATE_FORM)
    if codes[kind] >= FIRST_TEMPLATE_FORM:
        notes.append(f"Coordinates of {_form_name(codes[kind])} space: mm are not those of the patient.")
    for other in forms:
        if codes[other] > 0 and other not in valid:
            notes.append(f"The {other} is not a usable affine; the {kind} is used.")
    if len(valid) == 2:
        apart_mm = _largest_distance_mm(scaled["sform"], scaled["qform"], shape)
        if apart_mm > SAME_PLACE_MM:
            notes.append(
                f"The sform ({_form_name(codes['sform'])}) and the qform ({_form_name(codes['qform'])}) "
                f"differ by up to {apart_mm:.3f} mm; the {kind} is used."
            )
    if "qform" not in valid:
        notes.extend(_pixdim_notes(header, scaled[kind], factor))
    return scaled[kind], notes


def _pixdim_notes(header: Header, affine: np.ndarray, factor: float) -> list[str]:
    """The qform is built on the pixdim; where there is none, nobody compared it with the sform."""
    pixdim_mm = np.abs(header["pixdim"][1:4]) * factor
    if np.allclose(pixdim_mm, np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-3, atol=0):
        return []
    words = " x ".join(f"{size:.4g}" for size in pixdim_mm)
    return [f"The pixdim says {words} mm, the sform otherwise; the sform is used."]


def _unit(header: Header, name: str) -> tuple[float, list[str]]:
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError as error:
        raise SeriesError(
            f"{name} measures in a unit that NIfTI does not know ({int(header['xyzt_units']) & 7}). "
            "Set xyzt_units to mm if that is what they are.",
            code="UNKNOWN_UNIT",
        ) from error
    if unit == "mm":
        return 1.0, []
    stated = unit != "unknown"
    return UNIT_MM[unit], [
        f"Converted from {unit}s." if stated else "The unit of length is not stated; taken as mm."
    ]


def _sform(header: Header) -> np.ndarray:
    return np.asarray(header.get_sform(), dtype=np.float64)


def _qform(header: Header) -> np.ndarray | None:
    """None if the quaternion is none. A qfac of 0 means 1, as the standard has it."""
    copy = header.copy()
    pixdim = copy["pixdim"]
    pixdim[0] = -1.0 if pixdim[0] < 0 else 1.0
    try:
        with np.errstate(invalid="ignore"):
            return np.asarray(copy.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None


def _is_regular(form: np.ndarray | None) -> bool:
    """Of sane numbers, and a box of voxels has a volume."""
    if form is None or not (np.abs(form) < ABSURD).all():
        return False
    lengths = np.linalg.norm(form[:3, :3], axis=0)
    return bool(lengths.min() > 0 and abs(np.linalg.det(form[:3, :3] / lengths)) > 0.01)


def _in_mm(form: np.ndarray | None, factor: float) -> np.ndarray:
    assert form is not None
    return np.diag([factor, factor, factor, 1.0]) @ form


def _unplaced(header: Header, name: str, codes: dict[str, int], spacing_only: bool) -> np.ndarray:
    """Spacing alone, by the habit of ANALYZE: the first axis runs to the left, the middle is the origin."""
    base = np.asarray(header.get_base_affine(), dtype=np.float64)
    if any(codes.values()) or not _is_regular(base):
        raise SeriesError(
            f"{name} has no usable sform, qform or spacing, so its place in the patient is unknown. "
            "Convert the DICOM files again.",
            code="NO_GEOMETRY",
        )
    if not spacing_only:
        raise SeriesError(
            f"{name} states its spacing but not its orientation (sform_code and qform_code are 0), so left "
            "and right are unknown. Convert the DICOM files again, or give spacing_only=True.",
            code="NO_GEOMETRY",
        )
    return base


def _form_name(code: int) -> str:
    return FORMS[code] if code < len(FORMS) else f"code {code}"


def _largest_distance_mm(one: np.ndarray, other: np.ndarray, shape: tuple[int, int, int]) -> float:
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in shape))])
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())


def _certificate(affine: np.ndarray, layout: _Layout, notes: list[str], name: str) -> Certificate:
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = SPACING_MM
    if spacing_mm.min() < low or spacing_mm.max() > high:
        raise SeriesError(
            f"{name} has voxels of {' x '.join(f'{s:.4g}' for s in spacing_mm)} mm; those of people have "
            f"{low:g} to {high:g} mm. Is the unit in its header wrong?",
            code="SPACING_IMPLAUSIBLE",
        )
    i, j, k = (affine[:3, :3] / spacing_mm).T
    normal = np.cross(i, j) / np.linalg.norm(np.cross(i, j))
    tilt_deg = _degrees(abs(normal @ k))
    skew_deg = 90 - _degrees(abs(i @ j))
    if tilt_deg > NOTABLE_TILT_DEG:
        notes = [*notes, f"Slices tilted by {tilt_deg:.1f} degrees, kept as shear in the affine."]
    if skew_deg > NOTABLE_TILT_DEG:
        notes = [
            *notes,
            f"Rows and columns are sheared by {skew_deg:.1f} degrees: registered, not as scanned.",
        ]
    return Certificate(
        shape=layout.shape,
        spacing_mm=(float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])),
        affine=tuple((r[0], r[1], r[2], r[3]) for r in affine.tolist()),
        orientation=orientation_of(normal),
        tilt_deg=tilt_deg,
        largest_spacing_error=0.0,
        duplicates_dropped=0,
        rescale=f"slope {layout.slope:g}, intercept {layout.intercept:g}",
        transfer_syntax_uid="",
        lossy=False,
        notes=tuple(notes),
    )


def _degrees(cosine: float) -> float:
    return round(float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), 2)


def _read_voxels(path: Path, layout: _Layout) -> np.ndarray:
    """As many bytes as the header promises, a slice at a time: what else a packed file holds stays packed."""
    _check_size(path, layout)
    voxels = np.empty(layout.shape, dtype=np.float32, order="F")
    finite = 0
    with _open(path) as file:
        file.seek(layout.offset)
        for k in range(layout.shape[2]):
            voxels[:, :, k] = _read_slice(file, path, layout)
            finite += int(np.count_nonzero(np.isfinite(voxels[:, :, k])))
        # The checksum of a packed file is looked at where the file ends.
        file.read(1)
    if finite < voxels.size:
        raise SeriesError(
            f"{voxels.size - finite:,} of {voxels.size:,} voxels of {path.name} are not finite numbers. "
            "Was it resampled beyond its edge? Write air there (CT -1024 HU, MR 0).",
            code="NOT_FINITE",
        )
    return voxels


def _check_size(path: Path, layout: _Layout) -> None:
    """A file too small for what its header promises is refused before memory is asked for."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
        size = file.seek(0, os.SEEK_END)
    if size * (GZIP_RATIO if packed else 1) < layout.offset + layout.bytes:
        raise _truncated(path)


def _read_slice(file: BinaryIO, path: Path, layout: _Layout) -> np.ndarray:
    size = layout.bytes // layout.shape[2]
    stored = file.read(size)
    if len(stored) < size:
        raise _truncated(path)
    slice_IJ = np.frombuffer(stored, layout.dtype).reshape(layout.shape[:2], order="F")
    # in float64, as nibabel does: a 32-bit integer does not fit into a float32
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is counted as not finite
        return (slice_IJ.astype(np.float64) * layout.slope + layout.intercept).astype(np.float32)


def _series(path: Path, modality: Modality, voxels: np.ndarray, affine: np.ndarray, part: str) -> Series:
    digest = hashlib.sha256(f"{modality} {voxels.shape} {affine.tolist()}".encode())
    digest.update(voxels.T.astype("<f4", copy=False).data)
    content = digest.digest()
    instances = (
        Instance(_uid(content + k.to_bytes(4, "little")), "", path, frame=k) for k in range(voxels.shape[2])
    )
    return Series(
        series_uid=_uid(content),
        modality=modality,
        description="",
        body_part="",
        image_type=(),
        instances=tuple(instances),
        part=part,
    )


def _uid(content: bytes) -> str:
    """A UID derived from a UUID (DICOM PS3.5 B.2), that from a hash (RFC 9562, a name-based UUID)."""
    return f"2.25.{UUID(bytes=hashlib.sha256(content).digest()[:16], version=5).int}"


def _image(volume: Volume) -> Nifti1Image:
    image = Nifti1Image(_smallest(volume.voxels), volume.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code="scanner")
    image.set_qform(volume.affine, code="scanner")
    if _largest_distance_mm(image.get_qform(), volume.affine, volume.certificate.shape) > SAME_PLACE_MM:
        image.set_qform(None, code="unknown")
    return image


def _smallest(voxels: np.ndarray) -> np.ndarray:
    """int16 where it holds every value."""
    limits = np.iinfo(np.int16)
    if voxels.min() < limits.min or voxels.max() > limits.max:
        return voxels
    whole = voxels.astype(np.int16)
    return whole if np.array_equal(whole, voxels) else voxels
