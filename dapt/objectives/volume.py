"""S1 of images: hidden voxels of the body from those around them (SimMIM: Xie et al., CVPR 2022; in volumes:
Chen et al., Masked Image Modeling Advances 3D Medical Image Analysis, WACV 2023).

The loss is the mean absolute error over hidden voxels of the body alone: air is guessed by anyone.
"""

# B images, C channels, I J K voxel axes

from __future__ import annotations

import torch
from torch import Tensor, nn

from dapt.batches import Batch
from dapt.objectives.objective import Objective, unrecorded
from mla_med.model.config import LEVELS, ModalConfig
from mla_med.model.fusion import enlarge
from mla_med.model.mla import MLAModel

SETTLE = 4
"""Hidden cells are no image: batch statistics are recorded of whole ones, every so many steps."""


class MaskedVolume(Objective):
    def __init__(self, config: ModalConfig, width: int = 32, settle: bool = True):
        """`settle` is False beside an objective that shows whole images anyway."""
        super().__init__()
        self.settle = settle
        self.mask_C = nn.Parameter(torch.zeros(config.channels))
        self.lateral = nn.ModuleList(nn.Conv3d(c, width, 1) for c in tuple(config.widths)[-LEVELS:])
        self.cell = config.cell
        self.out = nn.Sequential(nn.GELU(), nn.Conv3d(width, config.channels * self.cell**3, 1))

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"volume": 0.0 if batch.image_ICIJK is None else float(_asked(batch).sum())}

    def forward(self, model: MLAModel, batch: Batch) -> dict[str, Tensor]:
        if batch.image_ICIJK is None:
            return {}
        assert batch.hidden_IIJK is not None
        assert batch.present_IC is not None
        asked = _asked(batch)
        seen = torch.where(batch.hidden_IIJK[:, None], self.mask_C[:, None, None, None], batch.image_ICIJK)
        with unrecorded(model.image_encoder):
            guessed = self.guess(model, seen, batch.present_IC)
        if self.settle and self.training and batch.step % SETTLE == 0:
            with torch.no_grad():
                model.image_encoder(batch.image_ICIJK, batch.present_IC)
        errors = (guessed - batch.image_ICIJK).abs() * asked
        return {"volume": errors.sum() / asked.sum().clamp(min=1)}

    def guess(self, model: MLAModel, seen_BCIJK: Tensor, present_BC: Tensor) -> Tensor:
        """Three levels, added at the finest, each cell of which says all its voxels."""
        levels = model.image_encoder(seen_BCIJK, present_BC)
        fine, middle, coarse = (
            lateral(level.features_BDIJK) for lateral, level in zip(self.lateral, levels, strict=True)
        )
        cells = self.out(fine + enlarge(middle + enlarge(coarse, middle), fine))
        voxels = cells.unflatten(1, (-1, *(self.cell,) * 3)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        whole = voxels.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        i, j, k = seen_BCIJK.shape[2:]
        return whole[:, :, :i, :j, :k]


def _asked(batch: Batch) -> Tensor:
    """(B, C, I, J, K): hidden, of the body, in a channel that was taken."""
    assert batch.hidden_IIJK is not None
    assert batch.inside_IIJK is not None
    assert batch.present_IC is not None
    hidden = (batch.hidden_IIJK & batch.inside_IIJK)[:, None]
    return hidden & batch.present_IC.bool()[:, :, None, None, None]
