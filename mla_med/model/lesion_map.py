"""The finest level -> for each finding where it would be, cell by cell, before any attention.

A lesion of 6 mm is lost in the mean of a stride-8 cell; here it is a cell of its own. The finding heads read
the strongest cell of each finding: how strong, where, and what it looks like (as the heat maps of CenterNet,
Zhou et al., arXiv:1904.07850, and the dense heads of nnDetection, Baumgartner et al., MICCAI 2021).
"""

# B batch, F findings, N cells of the stride-4 grid, H features of a cell

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_med.model.image_encoder import Frame, Level, cell_positions
from mla_med.model.seen import LesionMap as LesionMap

WIDTH = 48
"""Features H of a cell: there are eight times as many cells as at stride 8."""
RARE = -4.0
"""Logit of every cell at first."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """The strongest cell of each finding."""

    logit_BF: Tensor
    features_BFH: Tensor
    position_BF3: Tensor
    cells_BF: Tensor
    """Logarithm of 1 + how many cells speak of the finding in all: how much of it there is."""


class LesionMapper(nn.Module):
    """Stride-4 features, and what stride 8 knows around them, to a LesionMap."""

    def __init__(self, fine: int, middle: int, place: int, findings: int):
        super().__init__()
        self.look = nn.Conv3d(fine, WIDTH, 3, padding=1)
        self.around = nn.Conv3d(middle, WIDTH, 1, bias=False)
        self.place = nn.Linear(place, WIDTH, bias=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.logits = RareLinear(WIDTH, findings)

    def forward(
        self, fine: Level, around_BDIJK: Tensor, place_BNW: Tensor, frame: Frame, present_B: Tensor
    ) -> LesionMap:
        """`around_BDIJK`: stride 8, its cells repeated to the grid of `fine`; `place_BNW`: of its places."""
        seen = self.look(fine.features_BDIJK) + around_BDIJK
        hidden_BNH = F.leaky_relu(seen.flatten(2).transpose(1, 2) + self.place(place_BNW), 0.1)
        hidden_BNH = hidden_BNH + F.leaky_relu(self.mix(self.norm(hidden_BNH)), 0.1)
        positions_BN3, half_BN3 = cell_positions(fine, frame)
        batch, cells = hidden_BNH.shape[:2]
        return LesionMap(
            self.logits(hidden_BNH).transpose(1, 2),
            hidden_BNH,
            positions_BN3,
            half_BN3.expand(batch, -1, -1),
            present_B[:, None].expand(-1, cells),
        )


class RareLinear(nn.Linear):
    """Says no at first: nearly every cell holds nothing, and a map that began undecided would first have to
    learn that (Lin et al., ICCV 2017, 3.3)."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.bias, RARE)


def peaks_of(lesions: LesionMap) -> Peaks:
    logits_BFN = lesions.seen_BFN()
    logit_BF, index_BF = logits_BFN.max(-1)

    def at_peak(x_BNC: Tensor) -> Tensor:
        return x_BNC.gather(1, index_BF[..., None].expand(-1, -1, x_BNC.shape[-1]))

    cells_BF = torch.log1p(logits_BFN.sigmoid().sum(-1))
    return Peaks(logit_BF, at_peak(lesions.features_BNH), at_peak(lesions.positions_BN3), cells_BF)
