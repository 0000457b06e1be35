"""ImageSource -> the array that a corpus keeps of it, on the model's grid; and what that array depends on.

Volumes of DICOM or NIfTI become int16 HU (CT) or one byte a voxel (MR, see mla_med.corpus); a picture becomes
an image of depth 1 with its grey values, in the place of an axial slice: the right of the patient is at the
left of the picture. A volume whose file may hold HU or stored values is looked at: rescaled once, never
twice, and refused where both readings make sense. Runs in a child process (`mla_med.dicom.apart`): one bad
file costs one example. Knows no text.
"""

# I J K voxels to the right, to the front, up; C channels

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from dapt.importers.pair import PICTURE_SUFFIXES, ImageSource, Rescale
from mla_med.archive import open_file
from mla_med.corpus import place, to_bytes
from mla_med.dicom.select import choose_series
from mla_med.dicom.study import check_whole
from mla_med.dicom.volume import check_hu, read_volume
from mla_med.errors import SeriesError
from mla_med.imaging.nifti import is_nifti, read_nifti
from mla_med.imaging.sequences import place_images
from mla_med.imaging.transforms import BRAIN_MR, CHEST_CT, Preprocessing
from mla_med.types import Modality, Study, Volume

PICTURES = Preprocessing(modality=Modality.MR, shape=(256, 256, 1), spacing_mm=1.0, windows_hu=())
"""Grey values have no unit, and pixels of a picture no size: its mm are pixels."""
GRIDS = {"chest_ct": CHEST_CT, "brain_mr": BRAIN_MR, "": PICTURES}
"""By examination; pictures are of any."""
SAME_SPACING = 0.05
"""Share by which the spacing of a table and of a file may differ: tables are rounded."""
AIR_HU, TISSUE_HU = (-1100.0, -700.0), (-200.0, 300.0)
LEAST_SHARE = 0.03
"""Of the voxels of a trunk or a head with what surrounds it, air and tissue each have more."""
MOST_PIXELS = 64 * 2**20
_CODE = (
    *("mla_med.imaging.grid", "mla_med.imaging.fused", "mla_med.imaging.transforms"),
    *(
        "mla_med.imaging.head",
        "mla_med.imaging.lungs",
        "mla_med.imaging.sequences",
        "mla_med.corpus",
        "dapt.placing",
    ),
)
_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises over a damaged file."""


@dataclass(frozen=True, slots=True)
class Placed:
    stored: np.ndarray
    """As a corpus stores it."""
    affine: np.ndarray
    present: tuple[bool, ...]
    note: str = ""


def place_source(source: ImageSource, settings: Preprocessing, examination: str) -> Placed:
    """SeriesError or StudyError, with the code of the reader, where it cannot be trusted."""
    if source.study is not None:
        return _from_volumes(_chosen(source.study, examination), settings)
    path = source.paths.get("", Path())
    if path.suffix.lower() in PICTURE_SUFFIXES:
        if settings.shape[2] != 1:
            raise SeriesError("A picture among volumes. Take --examination pictures.", code="FORM_UNKNOWN")
        return _from_picture(path, settings)
    if not all(is_nifti(one) for one in source.paths.values()):
        raise SeriesError("Neither NIfTI, DICOM nor a picture.", code="FORM_UNKNOWN")
    if settings.shape[2] == 1:
        raise SeriesError("A volume among pictures. Give its examination.", code="EXAMINATION_WANTED")
    if settings.sequences and "" in source.paths:
        raise SeriesError(
            "NIfTI does not say which sequence it is. Give its path in a column named T1, T2, FLAIR ...",
            code="SEQUENCE_UNKNOWN",
        )
    return _from_volumes(
        {role: _volume(one, source, settings) for role, one in source.paths.items()}, settings
    )


def digest_source(source: ImageSource) -> str:
    """Of the bytes of its files, whatever they are called. OSError where one cannot be read."""
    digests = []
    roles = {path: role for role, path in source.paths.items()}
    for path in source.files:
        digest = hashlib.sha256()
        with open_file(path) as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        digests.append(f"{roles.get(path, '')} {digest.hexdigest()}")
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def key_of(source: ImageSource, source_digest: str, settings: Preprocessing, examination: str) -> str:
    """What the file of an image is called: another transform, source or reading of it, another name."""
    stated = source.rescale
    how = None if stated is None else [stated.slope, stated.intercept, stated.values]
    # a spacing makes no voxel, but an image that it would have refused must not come from the cache
    parts = [hash_of_transform(settings), examination, source_digest, how, source.spacing_mm]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def hash_of_transform(settings: Preprocessing) -> str:
    """Of the settings, of the code that places an image, and of the libraries that it calls."""
    stated = json.dumps([settings.to_dict(), _hash_of_code()], sort_keys=True)
    return hashlib.sha256(stated.encode()).hexdigest()


@cache
def _hash_of_code() -> str:
    """A comment or a docstring places no voxel, so it does not count."""
    digest = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in ("monai", "torch")).encode())
    for name in _CODE:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        digest.update(_bare(Path(spec.origin).read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def _bare(source: str) -> str:
    """The code as a tree, without strings that stand alone."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_docstring(s)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _chosen(study: Study, examination: str) -> dict[str, Volume]:
    check_whole(study)
    if not examination:
        raise SeriesError("A study of DICOM among pictures. Give its examination.", code="EXAMINATION_WANTED")
    verdicts = choose_series(study, examination)
    chosen = [v for v in verdicts if v.chosen]
    if not chosen:
        reasons = {v.reason.code: v.reason.words for v in verdicts if v.reason is not None}
        code, words = next(iter(reasons.items()), ("NO_SERIES", "It holds no series."))
        if len(reasons) > 1:
            code, words = "NO_SERIES", f"No series can be read as {examination}: {', '.join(reasons)}."
        raise SeriesError(words, code=code)
    return {v.role: read_volume(v.series) for v in chosen}


def _volume(path: Path, source: ImageSource, settings: Preprocessing) -> Volume:
    if source.rescale is None or settings.modality != Modality.CT:
        volume = read_nifti(path, settings.modality)
    else:
        # as MR: no judgement of values that may not be HU yet
        volume = _in_hu(read_nifti(path, Modality.MR), source.rescale)
    _check_spacing(volume, source.spacing_mm)
    return volume


def _in_hu(volume: Volume, rescale: Rescale) -> Volume:
    """The values rescaled once. What their table says has been done to some of them already."""
    hu = _rescaled(volume.voxels, rescale)
    certificate = check_hu(hu, volume.certificate, "The volume")
    return replace(volume, voxels=hu, certificate=certificate, series=replace(volume.series, modality="CT"))


def _rescaled(stored: np.ndarray, rescale: Rescale) -> np.ndarray:
    once = stored * np.float32(rescale.slope) + np.float32(rescale.intercept)
    if rescale.values != "detect":
        return np.array(stored) if rescale.values == "hu" else once
    if (rescale.slope, rescale.intercept) == (1.0, 0.0):
        return np.array(stored)
    as_it_is, after = looks_like_hu(stored), looks_like_hu(once)
    if as_it_is == after:
        words = "both look" if after else "neither looks"
        raise SeriesError(
            f"Of its values as they are, and rescaled by the slope {rescale.slope:g} and intercept "
            f"{rescale.intercept:g} of the table, {words} like HU. Say what they are: --values hu or stored.",
            code="HU_AMBIGUOUS",
        )
    return np.array(stored) if as_it_is else once


def looks_like_hu(values: np.ndarray) -> bool:
    """There is air, there is tissue, and far below air nothing but padding: a value or two. Never rescaled,
    nothing is where air should be; rescaled twice, air is near -2024 and tissue is where air should be."""
    sample = values.ravel()[:: max(1, values.size // 200_000)]
    padding = sample < AIR_HU[0]
    measured = sample[~padding]
    if measured.size < 0.2 * sample.size or np.unique(sample[padding]).size > 100:
        return False
    air = np.mean((measured > AIR_HU[0]) & (measured < AIR_HU[1]))
    tissue = np.mean((measured > TISSUE_HU[0]) & (measured < TISSUE_HU[1]))
    return bool(air > LEAST_SHARE and tissue > LEAST_SHARE)


def _check_spacing(volume: Volume, stated: tuple[float, float, float] | None) -> None:
    """Axes of the file may be turned: the slices of a table are its third number."""
    if stated is None:
        return
    measured = volume.certificate.spacing_mm
    if not np.allclose(sorted(measured), sorted(stated), rtol=SAME_SPACING):
        shown = [" x ".join(f"{x:.3g}" for x in spacing) for spacing in (measured, stated)]
        raise SeriesError(
            f"The file has voxels of {shown[0]} mm, its table says {shown[1]} mm. One of them is wrong: "
            "convert the volume again, or correct the table.",
            code="SPACING_DIFFERS",
        )


def _from_volumes(volumes: dict[str, Volume], settings: Preprocessing) -> Placed:
    if settings.modality == Modality.CT:
        (volume,) = volumes.values()
        hu, affine, present = place(volume.voxels, volume.affine, {}, settings)
        limits = np.iinfo(np.int16)
        return Placed(hu.clip(limits.min, limits.max).astype(np.int16), affine, tuple(present))
    images = {role: (volume.voxels, volume.affine) for role, volume in volumes.items()}
    channels, present_C, grid = place_images(images, settings)
    return Placed(to_bytes(channels.numpy()), grid.numpy().astype(float), tuple(present_C.tolist()))


def _from_picture(path: Path, settings: Preprocessing) -> Placed:
    """The grey values are the bytes that are stored: black is the lowest value, and so is what is beside."""
    columns, rows, _ = settings.shape
    grey = _grey(path, (columns, rows))
    height, width = grey.shape
    top, left = (rows - height) // 2, (columns - width) // 2
    placed = np.zeros((1, columns, rows, 1), np.uint8)
    # rows of a picture run down, to the back; columns to the left of the patient
    placed[0, left : left + width, top : top + height, 0] = grey[::-1, ::-1].T
    affine = np.eye(4)
    affine[:2, 3] = -(columns - 1) / 2, -(rows - 1) / 2
    return Placed(placed, affine, (True,))


def _grey(path: Path, largest: tuple[int, int]) -> np.ndarray:
    """Grey values (rows, columns) of 8 bits, shrunk or grown until the picture fits."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise SeriesError(
                    f"A picture of {picture.width} x {picture.height} pixels.", code="TOO_LARGE"
                )
            deep = picture.mode.startswith(("I", "F"))
            grey = picture.convert("F") if deep else picture.convert("L").convert("F")
    except _IMAGE_ERRORS as error:
        raise SeriesError("A picture that cannot be read. Copy it again.", code="PICTURE_DAMAGED") from error
    scale = min(largest[0] / grey.width, largest[1] / grey.height)
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    if size != grey.size:
        grey = grey.resize(size, Image.Resampling.BILINEAR)
    values = np.array(grey, np.float32)
    low, high = float(values.min()), float(values.max())
    if not low < high:
        raise SeriesError("A picture of one value.", code="PICTURE_EMPTY")
    if deep:  # 16 bits of whatever unit: from the darkest to the brightest
        values = (values - low) * (255 / (high - low))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
