"""Image -> where it has blobs and lines, bright and dark: a measure that needs no training.

A nodule differs from a vessel that is cut across by its third dimension alone. What the second derivatives
at a voxel say of that, a network learns only from very many nodules: selective enhancement by the eigenvalues
of the Hessian (Li, Sone, Doi, Med Phys 2003;30:2040; Sato et al., Med Image Anal 1998;2:143), here by its
invariants, which are polynomials. Nothing here is learnt, and no gradient passes.
"""

# B batch, C channels, I J K voxel axes; H maps

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = (1, 3)
"""Times that an image is smoothed before it is looked at; the variance is as many square voxels."""
SHAPES = 4
"""Bright blobs, bright lines, dark blobs, dark lines."""
MAPS = len(SCALES) * SHAPES
"""Of each channel."""
GAIN = 4.0
"""A blob of a tenth of a window comes out at about a tenth."""


@torch.no_grad()
def blobs_and_lines(image_BCIJK: Tensor) -> Tensor:
    """-> (B, MAPS C, I, J, K), float32 and at least 0."""
    x, smoothed = image_BCIJK.float(), 0
    maps: list[Tensor] = []
    for scale in SCALES:
        for _ in range(scale - smoothed):
            x = _smooth(x)
        smoothed = scale
        trace, minors, determinant = (scale**n * GAIN**n * part for n, part in enumerate(_invariants(x), 1))
        for sign in (1, -1):
            maps += _shapes(sign * trace, minors, sign * determinant)
    return torch.stack(maps, 2).flatten(1, 2)


def _shapes(trace: Tensor, minors: Tensor, determinant: Tensor) -> tuple[Tensor, Tensor]:
    """Invariants of the negative Hessian -> blobs and lines: its trace where all, or two, of its eigenvalues
    are positive and about equal. 27 det / tr^3 is 1 of a ball and 0 of a cylinder; 4 m / tr^2, of one that is
    no ball, is 1 of a cylinder and 0 of a plate."""
    bulges = (trace > 0) & (minors > 0)
    trace = trace.clamp(min=1e-6)
    ball = torch.where(bulges, 27 * determinant / trace**3, 0.0).clamp(0, 1)
    cylinder = torch.where(bulges, 4 * minors / trace**2, 0.0).clamp(0, 1)
    return trace * ball, trace * cylinder * (1 - ball)


def _invariants(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Trace, sum of the principal minors and determinant of the negative Hessian, by central differences of
    a voxel."""
    around, (i, j, k) = F.pad(x, (1, 1, 1, 1, 1, 1), mode="replicate"), x.shape[2:]

    def at(a: int, b: int, c: int) -> Tensor:
        return around[:, :, 1 + a : 1 + a + i, 1 + b : 1 + b + j, 1 + c : 1 + c + k]

    twice = 2 * x
    ii, jj, kk = (twice - at(*step) - at(*(-n for n in step)) for step in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    ij = (at(1, -1, 0) + at(-1, 1, 0) - at(1, 1, 0) - at(-1, -1, 0)) / 4
    ik = (at(1, 0, -1) + at(-1, 0, 1) - at(1, 0, 1) - at(-1, 0, -1)) / 4
    jk = (at(0, 1, -1) + at(0, -1, 1) - at(0, 1, 1) - at(0, -1, -1)) / 4
    jj_kk, ij_kk, ij_jk = jj * kk - jk * jk, ij * kk - jk * ik, ij * jk - jj * ik
    minors = jj_kk + ii * jj - ij * ij + ii * kk - ik * ik
    return ii + jj + kk, minors, ii * jj_kk - ij * ij_kk + ik * ij_jk


def _smooth(x: Tensor) -> Tensor:
    """By the binomial 1 4 6 4 1 along each axis, of variance 1."""
    for axis in (2, 3, 4):
        sides = [0] * 6
        sides[2 * (4 - axis)] = sides[2 * (4 - axis) + 1] = 2
        padded, length = F.pad(x, sides, mode="replicate"), x.shape[axis]
        a, b, c, d, e = (padded.narrow(axis, n, length) for n in range(5))
        x = (a + e + 4 * (b + d) + 6 * c) / 16
    return x
