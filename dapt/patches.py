"""Corpus -> patches around small lesions: what teaches the lesion map beside whole images.

A patient has one or two small lesions in a million voxels: of whole images, a network sees a thousand nodules
in an hour. Patches show it as many in a minute (as the detectors of nodules are trained: Setio et al., Med.
Image Anal. 2017;42:1). Every finding is drawn as often as any other. Knows no model.
"""

# B patches, C channels, I J K voxel axes, F findings, L lesions

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mla_med.corpus import Example, from_bytes
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.findings import FindingTargets
from mla_med.model.image_encoder import Frame
from mla_med.types import Modality

ENOUGH = 0.5
"""A lesion is taught where so much of its box lies in the patch; of one with less, nothing is said."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A piece of an image: HU (I, J, K) of a CT, or channels (C, I, J, K)."""

    image: Tensor
    present: Tensor
    affine: np.ndarray
    """Of the piece."""
    example: Example


class PatchSampler:
    """Draws patches of `edge` voxels, each with some lesion that fits into it."""

    def __init__(self, examples: Sequence[Example], settings: Preprocessing, keys: Sequence[str], edge: int):
        self.settings, self.keys, self.edge = settings, tuple(keys), edge
        self.lesions: dict[str, list[tuple[Path, Example, np.ndarray]]] = {}
        for example in examples:
            if example.image is None:
                continue
            for code, boxes in example.boxes_mm.items():
                for box in np.array(boxes, float):
                    if (box[1] - box[0]).max() <= edge * settings.spacing_mm:
                        self.lesions.setdefault(code, []).append((example.image, example, box))

    def draw(self, rng: np.random.Generator) -> Patch:
        codes = sorted(self.lesions)
        some = self.lesions[codes[rng.integers(len(codes))]]
        image, example, box = some[rng.integers(len(some))]
        shape = np.array(self.settings.shape)
        inverse = np.linalg.inv(example.affine)
        middle = inverse[:3, :3] @ box.mean(0) + inverse[:3, 3]
        # anywhere in the patch: were it always in the middle, the network would learn that
        room = (self.edge - (box[1] - box[0]) / self.settings.spacing_mm) / 2
        start = np.rint(middle + rng.uniform(-room, room) - self.edge / 2)
        start = np.clip(start, 0, shape - self.edge).astype(int)
        i, j, k = (slice(a, a + self.edge) for a in start)
        stored = np.load(image, mmap_mode="r")
        ct = self.settings.modality == Modality.CT
        values = stored[i, j, k].astype(np.float32) if ct else from_bytes(stored[:, i, j, k])
        affine = example.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ start
        return Patch(torch.from_numpy(values), torch.tensor(example.present), affine, example)

    def targets(self, patches: Sequence[Patch]) -> FindingTargets:
        """Presence and boxes of the lesions in each patch; NaN where too little of one is in it."""
        presence = torch.zeros(len(patches), len(self.keys))
        most = max([1, *(len(boxes) for p in patches for boxes in p.example.boxes_mm.values())])
        boxes = torch.full((*presence.shape, most, 2, 3), torch.nan)
        for b, patch in enumerate(patches):
            corners = np.array([[-0.5] * 3, [self.edge - 0.5] * 3])
            ends = corners @ patch.affine[:3, :3].T + patch.affine[:3, 3]
            low, high = ends.min(0), ends.max(0)
            for code, lesions in patch.example.boxes_mm.items():
                f = self.keys.index(code)
                for number, box in enumerate(np.array(lesions, float)):
                    inside = np.clip(np.minimum(box[1], high) - np.maximum(box[0], low), 0, None)
                    share = float(np.prod(inside / np.maximum(box[1] - box[0], 1e-6)))
                    if share >= ENOUGH and not presence[b, f].isnan():
                        presence[b, f] = 1
                        boxes[b, f, number] = torch.from_numpy(box)
                    elif share > 0:
                        presence[b, f] = torch.nan
        return FindingTargets(presence, lesion_boxes_BFL23=boxes)

    def frames(self, patches: Sequence[Patch]) -> tuple[Tensor, Frame]:
        """Affines of the patches (B, 4, 4), and the frame of the whole images."""
        i, j, k = self.settings.shape
        affines = torch.from_numpy(np.stack([p.affine for p in patches])).float()
        wholes = torch.from_numpy(np.stack([p.example.affine for p in patches])).float()
        return affines, Frame((i, j, k), wholes)
