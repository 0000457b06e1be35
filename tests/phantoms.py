"""Findings -> DICOM studies of people who do not exist, small enough for tests.

Everything is as the scanner of site a sends it, only coarser: fewer pixels, thicker slices.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from mla_med.phantom.examine import Examined, examine
from mla_med.phantom.scanning import write_dicom
from mla_med.phantom.sites import Site, site_of

MATRIX = 136
"""Rows and columns of a chest: pixels of 2.4 to 2.9 mm."""
SEEDS = {"chest_ct": 4_000_900_001, "brain_mr": 4_000_900_000}
"""One body for each examination. Nobody trains on patients of cohort 4000, and no bench scores on those from
900,000 on."""


def coarse_site() -> Site:
    site = site_of("a")
    return replace(
        site,
        ct=replace(site.ct, slices_mm=((3.0, 3.0, 1.0),), tilt_odds=0.0),
        mr=replace(site.mr, matrix=144, thickness_mm=((5.0, 0.5, 1.0),), volume_t1=False),
    )


@cache
def patient(*codes: str, examination: str = "chest_ct") -> Examined:
    """The body with these findings, and what follows from them."""
    return examine(SEEDS[examination], examination, coarse_site(), codes=codes)


def write_study(examined: Examined, folder: Path) -> Path:
    """-> the folder of the study, with a folder for each series; beside it the earlier one, if any."""
    write_dicom(examined, folder / examined.examination, matrix=MATRIX)
    return folder / examined.examination / "study"


def volume_series(study: Path) -> Path:
    """The folder of the series with most images: of a CT the axial one."""
    return max(study.iterdir(), key=lambda series: len(list(series.iterdir())))
