"""Phantoms that no training may use -> what a checkpoint sees of each, beside the truth.

Scanned at the model's own spacing, which gives the same logits as a finer series that is averaged on the way
(within a few hundredths), in a quarter of the time. Knows the plain phantom only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai.data import MetaTensor

from mla_med.imaging.transforms import Preprocessing, place_transform, window_channels
from mla_med.looking import Prepared, Seen, see
from mla_med.model.checkpoint import Checkpoint
from mla_med.phantom.plain.cohort import Phantom, make_phantom
from mla_med.phantom.plain.scanner import random_scan, scan_person
from mla_med.report.context import context_text

TEST_SEEDS = range(900_000, 920_000)
"""Behind those of the acceptance test, which are the first 200."""


@dataclass(frozen=True, slots=True)
class SeenPhantom:
    phantom: Phantom
    hu: np.ndarray
    """On the model's grid."""
    seen: Seen

    @property
    def present(self) -> dict[str, float | None]:
        """Code -> size of what was planted."""
        return {lesion.finding.code: lesion.finding.size_mm for lesion in self.phantom.lesions}


def see_phantoms(checkpoint: Checkpoint, seeds: Iterable[int]) -> Iterator[SeenPhantom]:
    for seed in seeds:
        yield see_phantom(checkpoint, make_phantom(seed))


def see_phantom(checkpoint: Checkpoint, phantom: Phantom, scan_number: int = 0) -> SeenPhantom:
    """`scan_number`: another one is another scan of the same person: position, range, kernel, noise."""
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    rng = np.random.default_rng([phantom.person.seed, 6 + scan_number])
    scan = random_scan(rng, (settings.spacing_mm,) * 3, int(max(settings.shape) * 1.06))
    # what slab averaging leaves of the noise of a finer scan
    scan = replace(scan, noise_hu=0.4 * scan.noise_hu)
    hu, grid = scan_person(phantom.person, phantom.lesions, scan, rng)
    image = MetaTensor(torch.from_numpy(hu.astype(np.float32))[None], affine=torch.tensor(grid.affine))
    placed = place_transform(settings)({"image": image})["image"]
    on_grid = placed.as_tensor()[0]
    windows = window_channels(on_grid, settings.windows_hu)
    affine, context = placed.affine.to(torch.float32), context_text(phantom.context)
    return SeenPhantom(
        phantom,
        on_grid.numpy(),
        see(Prepared.whole(windows, affine), context, checkpoint.model),
    )
