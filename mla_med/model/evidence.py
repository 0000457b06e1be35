"""Evidence weights over fused tokens -> a box in patient mm, and which slices it crosses."""

# S fused tokens, K slices

from __future__ import annotations

import numpy as np

from mla_med.model.findings import FindingOutputs
from mla_med.model.fusion import Fused
from mla_med.types import Box

FAINT = 0.35
"""Cells with less than this share of the strongest cell's weight do not enlarge the box."""


def evidence_box(fused: Fused, outputs: FindingOutputs, finding: int, patient: int = 0) -> Box | None:
    """The box around the cells that carry the finding, grown from the strongest one through its
    neighbours; None where no located token carries it."""
    weight_S = (outputs.evidence_BFS[patient, finding] * fused.located_BS[patient]).double().cpu().numpy()
    if weight_S.max(initial=0.0) <= 0:
        return None
    centre_S3 = fused.positions_BS3[patient].double().cpu().numpy()
    half_S3 = fused.half_cells_BS3[patient].double().cpu().numpy()
    first = int(weight_S.argmax())
    low, high = centre_S3[first] - half_S3[first], centre_S3[first] + half_S3[first]
    strong = np.flatnonzero(weight_S >= FAINT * weight_S[first])
    # finer cells only: a coarse one would blow the box up to half a lung
    strong = strong[half_S3[strong].max(1) <= half_S3[first].max() + 1e-6]
    while True:
        lows, highs = centre_S3[strong] - half_S3[strong], centre_S3[strong] + half_S3[strong]
        touches = ((lows <= high + 1.0) & (highs >= low - 1.0)).all(1)
        new_low, new_high = np.minimum(lows[touches].min(0), low), np.maximum(highs[touches].max(0), high)
        if (new_low == low).all() and (new_high == high).all():
            return _corner(low), _corner(high)
        low, high = new_low, new_high


def _corner(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def slices_in_box(
    box_mm: Box, affine: np.ndarray, slices: int, centre_ij: tuple[float, float]
) -> tuple[int, ...]:
    """Up to three slices that cross the box: the middle one first, then one on each side."""
    k = np.arange(slices)
    index = np.stack([np.full(slices, centre_ij[0]), np.full(slices, centre_ij[1]), k, np.ones(slices)])
    z_K = (affine @ index)[2]
    inside = np.flatnonzero((z_K >= box_mm[0][2]) & (z_K <= box_mm[1][2]))
    middle = int(np.abs(z_K - (box_mm[0][2] + box_mm[1][2]) / 2).argmin())
    if len(inside) == 0:
        return (middle,)
    quarter = inside[[len(inside) // 4, (3 * len(inside)) // 4]]
    return tuple(dict.fromkeys((middle, *map(int, quarter))))
