"""Corpus -> patches around small lesions: what teaches the lesion map beside whole images.

A patient has one or two small lesions in a million voxels: of whole images, a network sees a thousand nodules
in an hour. Patches show it as many in a minute (as the detectors of nodules are trained: Setio et al., Med.
Image Anal. 2017;42:1). Findings that are named badly are drawn more often; beside a lesion stands the same
place of a patient without it, or else a network would learn that hearts have calcified arteries. Knows no
model.
"""

# B patches, C channels, I J K voxel axes, F findings, L lesions

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dapt.images import Images
from mla_med.corpus import Example
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.findings import FindingTargets
from mla_med.model.image_encoder import Frame

ENOUGH = 0.5
"""A lesion is taught where so much of its box lies in the patch; of one with less, nothing is said."""
WITHOUT = 0.4
"""Share of the patches that show a lesion's place in a patient who does not have it."""
UNKNOWN, LEAST = 0.5, 0.1
"""How hard a finding is of which nothing is known yet, and at least."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A piece of an image: HU (I, J, K) of a CT, or channels (C, I, J, K)."""

    image: Tensor
    present: Tensor
    affine: np.ndarray
    """Of the piece."""
    example: Example
    code: str
    """The finding it was drawn for; whether it is there, the targets say."""


class PatchSampler:
    """Draws patches of `edge` voxels around lesions that fit into them, and around the same places without.
    `hard`: of each finding, how often a place with it looks less like it than one without, 0 to 1; a finding
    is drawn as often as the square of it: what is nearly learnt needs few patches, what is not begun many."""

    def __init__(
        self,
        examples: Sequence[Example],
        settings: Preprocessing,
        keys: Sequence[str],
        edge: int,
        hard: Mapping[str, float] | None = None,
        images: Images | None = None,
    ):
        self.images = images or Images(settings)
        self.settings, self.keys, self.edge = settings, tuple(keys), edge
        self.lesions: dict[str, list[tuple[Example, np.ndarray]]] = {}
        self.without: dict[str, list[Example]] = {}
        pictured = [example for example in examples if example.image is not None]
        for example in pictured:
            for code, boxes in example.parts_mm.items():
                for box in np.array(boxes, float):
                    if (box[1] - box[0]).max() <= edge * settings.spacing_mm:
                        self.lesions.setdefault(code, []).append((example, box))
        for code in self.lesions:
            self.without[code] = [example for example in pictured if code not in example.boxes_mm]
        odds = np.array([max((hard or {}).get(code, UNKNOWN), LEAST) for code in sorted(self.lesions)])
        self.odds = odds**2 / (odds**2).sum()

    def draw(self, rng: np.random.Generator) -> Patch:
        code = sorted(self.lesions)[rng.choice(len(self.odds), p=self.odds)]
        example, box = self.lesions[code][rng.integers(len(self.lesions[code]))]
        inverse = np.linalg.inv(example.affine)
        middle = inverse[:3, :3] @ box.mean(0) + inverse[:3, 3]
        if self.without[code] and rng.random() < WITHOUT:
            # bodies lie in the middle of their images, so the same voxel is about the same place
            example = self.without[code][rng.integers(len(self.without[code]))]
        # anywhere in the patch: were it always in the middle, the network would learn that
        room = (self.edge - (box[1] - box[0]) / self.settings.spacing_mm) / 2
        start = np.rint(middle + rng.uniform(-room, room) - self.edge / 2)
        start = np.clip(start, 0, np.array(self.settings.shape) - self.edge).astype(int)
        return self._turned(self._cut(example, start, code), rng)

    def _cut(self, example: Example, start: np.ndarray, code: str) -> Patch:
        i, j, k = (slice(a, a + self.edge) for a in start)
        values = self.images.part(example, (i, j, k))
        affine = example.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ start
        return Patch(values, torch.tensor(example.present), affine, example, code)

    def _turned(self, patch: Patch, rng: np.random.Generator) -> Patch:
        """The same voxels at the same places in mm, some axes stored from the other end: a lesion looks the
        same from every side, and what is left is told by the place."""
        image, affine = patch.image, patch.affine.copy()
        axes = [axis for axis in range(3) if rng.random() < 0.5]
        for axis in axes:
            affine[:3, 3] += affine[:3, axis] * (self.edge - 1)
            affine[:3, axis] *= -1
        return replace(patch, image=image.flip([axis - 3 for axis in axes]), affine=affine)

    def targets(self, patches: Sequence[Patch]) -> FindingTargets:
        """Presence and boxes of the lesions in each patch; NaN where too little of one is all there is."""
        presence = torch.zeros(len(patches), len(self.keys))
        # what fits into no patch would be taught as absent alone, and be forgotten
        presence[:, [f for f, key in enumerate(self.keys) if key not in self.lesions]] = torch.nan
        most = max([1, *(len(boxes) for p in patches for boxes in p.example.parts_mm.values())])
        boxes = torch.full((*presence.shape, most, 2, 3), torch.nan)
        for b, patch in enumerate(patches):
            corners = np.array([[-0.5] * 3, [self.edge - 0.5] * 3])
            ends = corners @ patch.affine[:3, :3].T + patch.affine[:3, 3]
            low, high = ends.min(0), ends.max(0)
            for code, lesions in patch.example.parts_mm.items():
                if code not in self.lesions:
                    continue
                f, lesions_L23 = self.keys.index(code), np.array(lesions, float)
                seen_L23 = np.clip(lesions_L23, low, high)
                whole_L3 = np.maximum(np.ptp(lesions_L23, axis=1), 1e-6)
                share_L = np.prod(np.ptp(seen_L23, axis=1) / whole_L3, -1)
                if (share_L >= ENOUGH).any():
                    presence[b, f] = 1
                    # of what is cut off, what is seen of it: of that alone nothing would be said
                    shown_L23 = np.where((share_L >= ENOUGH)[:, None, None], lesions_L23, seen_L23)
                    boxes[b, f, : (share_L > 0).sum()] = torch.from_numpy(shown_L23[share_L > 0])
                elif (share_L > 0).any():
                    presence[b, f] = torch.nan
        return FindingTargets(presence, lesion_boxes_BFL23=boxes)

    def frames(self, patches: Sequence[Patch]) -> tuple[Tensor, Frame]:
        """Affines of the patches (B, 4, 4), and the frame of the whole images."""
        i, j, k = self.settings.shape
        affines = torch.from_numpy(np.stack([p.affine for p in patches])).float()
        wholes = torch.from_numpy(np.stack([p.example.affine for p in patches])).float()
        return affines, Frame((i, j, k), wholes)
