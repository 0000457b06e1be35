"""Path of a study -> its volume for MONAI's LoadImage, certified before any transform sees it.

    LoadImaged(keys="image", reader=StudyReader(examination="chest_ct"))

MONAI's own DICOM readers stack whatever lies in a folder; this one reads one series, in the order of
its slices, or refuses with a SeriesError or StudyError and its code. Knows MONAI's readers; knows
nothing of transforms, networks or reports.

Inside `Compose` MONAI wraps every error: the refusal is then the `__cause__` of its RuntimeError.
From a worker of a DataLoader only the text of an error returns, so the code stands in it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.image_reader import ImageReader, is_dicom_path
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from mla_med.dicom.certificate import certify
from mla_med.dicom.select import EXAMINATIONS, choose_series
from mla_med.dicom.study import check_whole, read_study
from mla_med.dicom.volume import read_volume
from mla_med.errors import ConfigError, MlaMedError, SeriesError
from mla_med.types import Certificate, Reason, Series, SeriesVerdict, Study, Volume

SAME_PLACE_MM = 1e-3
"""Volumes are channels of one image if no corner of theirs lies further apart."""
STATED = {None: "not stated", True: "yes", False: "no"}

Paths = Sequence[str | PathLike] | str | PathLike


@dataclass(frozen=True, slots=True)
class _Unread:
    """What `read` returns: the paths, for `get_data` to read."""

    paths: tuple[Path, ...]


class StudyReader(ImageReader):
    """Reads what read_study takes: a folder, a file, a DICOMDIR or a ZIP archive of one study.

    The array is float32 (I, J, K), HU for CT, and the affine maps its indices to patient RAS mm, both
    as read_volume gives them. Several paths in one item become channels, (C, I, J, K), if they belong
    to one study and no corner of their grids differs by more than 0.001 mm.

    Metadata beside MONAI's own keys, a list with one entry for each channel where there are several:
    `study_uid`, `series_uid`, `modality`, `certificate` (the Certificate as a dict of words and
    numbers that any batch can collate; NaN where a number was not measured) and `refused`, the codes
    of the series that were looked at and refused. No description, name or ID.

    Raises SeriesError and StudyError with their codes, among them NO_SERIES, NO_SUCH_SERIES,
    SEVERAL_SERIES, SEVERAL_STUDIES, GEOMETRY_DIFFERS and DAMAGED_FILE.
    """

    def __init__(
        self,
        examination: str | None = None,
        *,
        role: str | None = None,
        series_uid: str | None = None,
        part: str | None = None,
    ):
        """`examination`: a key of EXAMINATIONS, for which choose_series chooses; `role`, where it chooses
        several: the one that is chosen as that, "FLAIR". Or `series_uid`, `part` or both: the series
        with this UID, the volume that is this part of it, "b 1000". With none of them, the only
        series that can be read as a volume. Raises ConfigError."""
        super().__init__()
        if examination is None and role is not None:
            raise ConfigError(
                f"The role {role!r} needs an examination that has it. Give both.",
                code="ROLE_WITHOUT_EXAMINATION",
            )
        if examination is not None and (series_uid, part) != (None, None):
            raise ConfigError(
                "StudyReader takes an examination, or a series_uid and part. Leave out the one or the other.",
                code="EXAMINATION_AND_SERIES",
            )
        if examination is not None and examination not in EXAMINATIONS:
            raise ConfigError(
                f"No examination {examination!r}. Known are {', '.join(EXAMINATIONS)}.",
                code="UNKNOWN_EXAMINATION",
            )
        self.examination = examination
        self.role = role
        self.series_uid = series_uid
        self.part = part

    def verify_suffix(self, filename: Paths) -> bool:
        """True for folders, DICOM files and ZIP archives. Asked only where MONAI chooses the reader."""
        return all(_looks_like_dicom(Path(name)) for name in ensure_tuple(filename))

    def read(self, data: Paths, **kwargs: Any) -> _Unread:
        """Keeps the paths; `get_data` reads them. LoadImage takes any error raised here as a reason to
        try its other readers, which would return without a word what was refused."""
        return _Unread(tuple(Path(name) for name in ensure_tuple(data)))

    def get_data(self, img: _Unread) -> tuple[np.ndarray, dict[str, Any]]:
        """-> the voxels and their metadata, or a SeriesError or StudyError."""
        try:
            found = [self._read_one(path) for path in img.paths]
            _check_one_grid(found)
        except MlaMedError as error:
            error.add_note(f"Refused with code {error.code}.")
            raise
        volume = found[0].volume
        # No arrays: with them MONAI's PersistentDataset cannot load what it cached.
        metadata = {
            str(MetaKeys.AFFINE): torch.tensor(volume.affine),
            str(MetaKeys.ORIGINAL_AFFINE): torch.tensor(volume.affine),
            str(MetaKeys.SPACE): SpaceKeys.RAS,
            str(MetaKeys.SPATIAL_SHAPE): volume.voxels.shape,
        }
        described = [_describe(one) for one in found]
        if len(found) == 1:
            # NaN is MONAI's word for: there is no channel dimension yet.
            metadata |= {str(MetaKeys.ORIGINAL_CHANNEL_DIM): float("nan"), **described[0]}
            return np.array(volume.voxels, order="C"), metadata
        listed = {key: [one[key] for one in described] for key in described[0]}
        metadata |= {str(MetaKeys.ORIGINAL_CHANNEL_DIM): 0, **listed}
        return np.stack([one.volume.voxels for one in found]), metadata

    def _read_one(self, path: Path) -> _Found:
        study = read_study(path)
        check_whole(study)
        verdicts = self._verdicts(study)
        verdict = self._choose(verdicts, path)
        refused = {v.reason.code: None for v in verdicts if v.reason is not None and not v.accepted}
        return _Found(study.study_uid, ", ".join(refused), read_volume(verdict.series))

    def _verdicts(self, study: Study) -> tuple[SeriesVerdict, ...]:
        if self.examination is not None:
            return choose_series(study, self.examination)
        wanted = [
            s for s in study.series if self.series_uid in (None, s.series_uid) and self.part in (None, s.part)
        ]
        if not wanted:
            named = " ".join(repr(word) for word in (self.series_uid, self.part) if word is not None)
            raise SeriesError(
                f"No series {named} in study {study.study_uid}. There are: {_listed(study.series)}.",
                code="NO_SUCH_SERIES",
            )
        return tuple(_judge(series) for series in wanted)

    def _choose(self, verdicts: Sequence[SeriesVerdict], path: Path) -> SeriesVerdict:
        usable = [v for v in verdicts if self._is_usable(v)]
        if len(usable) == 1:
            return usable[0]
        if usable:
            raise SeriesError(
                f"{path} holds {len(usable)} series that can be read: {_listed([v.series for v in usable])}. "
                "Give StudyReader an examination and role, or a series_uid and part.",
                code="SEVERAL_SERIES",
            )
        reasons = {v.reason.code: v.reason for v in verdicts if v.reason is not None}
        if len(reasons) == 1:
            (reason,) = reasons.values()
            raise SeriesError(reason.words, code=reason.code)
        why = " ".join(f"{reason.code}: {reason.words}" for reason in reasons.values())
        as_what = f" as {self.role}" if self.role else ""
        raise SeriesError(f"No series in {path} can be read{as_what}. {why}".strip(), code="NO_SERIES")

    def _is_usable(self, verdict: SeriesVerdict) -> bool:
        if self.examination is None:
            return verdict.accepted
        return verdict.chosen and self.role in (None, verdict.role)


@dataclass(frozen=True, slots=True)
class _Found:
    study_uid: str
    refused: str
    volume: Volume


def _looks_like_dicom(path: Path) -> bool:
    return any(part.lower().endswith(".zip") for part in path.parts) or is_dicom_path(path)


def _judge(series: Series) -> SeriesVerdict:
    try:
        return SeriesVerdict(series, certify(series), None)
    except SeriesError as error:
        return SeriesVerdict(series, None, Reason(error.code, str(error)))


def _listed(series: Sequence[Series]) -> str:
    """1 "Axial 2.0 mm" (CT, 120 images, 1.2.840...); ..."""
    return "; ".join(
        f'{number} "{" ".join(filter(None, (s.description, s.part)))}" '
        f"({s.modality}, {len(s.instances)} images, {s.series_uid})"
        for number, s in enumerate(series, start=1)
    )


def _check_one_grid(found: Sequence[_Found]) -> None:
    """Channels of one image lie on one grid, in one study: the same numbers elsewhere mean nothing."""
    first = found[0]
    for number, other in enumerate(found[1:], start=2):
        place = f"Channel {number} of {len(found)}, series {other.volume.series.series_uid},"
        if other.study_uid != first.study_uid:
            raise SeriesError(
                f"{place} belongs to study {other.study_uid}, the first to {first.study_uid}. "
                "Stack the series of one study.",
                code="SEVERAL_STUDIES",
            )
        shapes = [one.volume.certificate.shape for one in (first, other)]
        if shapes[0] != shapes[1]:
            raise SeriesError(
                f"{place} has {_times(shapes[1])} voxels, the first {_times(shapes[0])}. "
                "Load them under two keys and resample one to the other.",
                code="GEOMETRY_DIFFERS",
            )
        apart_mm = _largest_distance_mm(first.volume, other.volume)
        if apart_mm > SAME_PLACE_MM:
            raise SeriesError(
                f"{place} lies up to {apart_mm:.3f} mm away from the first. "
                "Load them under two keys and resample one to the other.",
                code="GEOMETRY_DIFFERS",
            )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def _largest_distance_mm(one: Volume, other: Volume) -> float:
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in one.certificate.shape))])
    return float(np.linalg.norm(corners @ (one.affine - other.affine).T, axis=1).max())


def _describe(found: _Found) -> dict[str, Any]:
    volume = found.volume
    return {
        "study_uid": found.study_uid,
        "series_uid": volume.series.series_uid,
        "modality": str(volume.series.modality),
        "certificate": _plain(volume.certificate),
        "refused": found.refused,
    }


def _plain(certificate: Certificate) -> dict[str, Any]:
    """Every field has one type and one length in all certificates, or a batch would not collate."""
    fields = {name: float("nan") if value is None else value for name, value in asdict(certificate).items()}
    del fields["affine"]  # MONAI's own key holds it
    return fields | {
        "notes": " ".join(certificate.notes),
        "contrast_header": STATED[certificate.contrast_header],
        "contrast_pixels": STATED[certificate.contrast_pixels],
    }
