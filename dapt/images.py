"""Images of a corpus as a training reads them: from disk each time or, on a GPU, from its memory after the
first time. There, reading, noise and windows would take longer than what is learnt from them."""

# C channels, I J K voxel axes

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mla_med.corpus import BYTE, ZERO, Example, image_of, load_image
from mla_med.imaging.transforms import Preprocessing
from mla_med.types import Modality

FREE = 0.25
"""Share of a GPU's memory that is left to the training: images that find no place are read each time."""


class Images:
    """float32 on `device`: HU (I, J, K) of a CT, standardised values (C, I, J, K) of an MR."""

    def __init__(self, settings: Preprocessing, device: str | torch.device = "cpu"):
        self.settings, self.device = settings, torch.device(device)
        self._kept: dict[Path, Tensor] = {}

    def whole(self, example: Example) -> Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(load_image(example, self.settings))
        return self._values(self._on_device(example))

    def part(self, example: Example, where: tuple[slice, slice, slice]) -> Tensor:
        """What lies in three slices, of every channel; from disk no more is read than that."""
        if self.device.type == "cpu":
            mapped = np.load(image_of(example), mmap_mode="r")
            return self._values(torch.from_numpy(mapped[..., *where].copy()))
        return self._values(self._on_device(example)[..., *where])

    def _on_device(self, example: Example) -> Tensor:
        path = image_of(example)
        if path not in self._kept:
            stored = torch.from_numpy(np.load(path)).to(self.device)
            free, total = torch.cuda.mem_get_info(self.device)
            if free < FREE * total:
                return stored
            self._kept[path] = stored
        return self._kept[path]

    def _values(self, stored: Tensor) -> Tensor:
        return stored.float() if self.settings.modality == Modality.CT else (stored.float() - ZERO) * BYTE
