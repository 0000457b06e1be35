"""Folder of a series -> the NIfTI files beside it that say what should come out.

Three ways in which test data lay them: `001_ground_truth.nii.gz` beside `001`, a folder `x_ref`
beside `x`, and `Ref` beside `In`. A JSON file of the same name may state the series number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from evaluation.peers.compare import Grid, to_grids
from evaluation.peers.facts import SeriesFacts

SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True)
class Reference:
    """One NIfTI file, and the series that it is of, as far as its neighbours say."""

    path: Path
    series_number: int | None

    @property
    def stem(self) -> str:
        return self.path.name.removesuffix(".gz").removesuffix(".nii")

    def grids(self) -> list[Grid]:
        """Its volumes; none if it is in colour, which cannot be compared."""
        image: Any = nibabel.load(self.path)
        if image.get_data_dtype().names:
            return []
        return to_grids(np.asarray(image.get_fdata(dtype=np.float32)), image.affine)


def find_references(folder: Path) -> tuple[Reference, ...]:
    parent, name = folder.parent, folder.name
    truths = [parent / f"{name}_ground_truth{suffix}" for suffix in SUFFIXES]
    folders = [parent / f"{name}_ref", *([parent / "Ref"] if name == "In" else [])]
    files = [path for path in truths if path.is_file()]
    files += [path for place in folders for path in _nifti_files(place)]
    return tuple(Reference(path, _series_number(path)) for path in files)


def references_of(facts: SeriesFacts, references: Sequence[Reference]) -> tuple[Reference, ...]:
    """Those that may be of this series: by its number, else by a file's name, else all."""
    numbered = [r for r in references if r.series_number is not None]
    same = [r for r in numbered if r.series_number == facts.first.series_number]
    named = [r for r in references if r.stem in {image.file for image in facts.images}]
    unnumbered = [r for r in references if r.series_number is None]
    return tuple(named or same or unnumbered)


def _nifti_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))


def _series_number(path: Path) -> int | None:
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    try:
        return int(json.loads(sidecar.read_text())["SeriesNumber"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
