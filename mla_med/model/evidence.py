"""The map of a finding (without one, its evidence weights over fused tokens) -> a box in patient mm, a heat
map, and which slices the box crosses; box + image -> how much the finding depends on what is in the box.

The map is finer than the tokens and part of the finding's logit; attention alone is a claim, not a proof:
what a network attends to need not be what it answers by (Jain, Wallace, NAACL 2019). So the box is masked and
the network asked again (occlusion: Zeiler, Fergus, ECCV 2014; deletion tests: Samek et al., IEEE Trans.
Neural Netw. Learn. Syst. 2017;28:2660).
"""

# S cells (of the map, or fused tokens), K slices, C channels, I J K voxel axes

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mla_med.model.network import Network
from mla_med.model.seen import FindingOutputs, Fused, like, map_logits_N, sigmoid, to_numpy
from mla_med.types import Box, HeatCell

FAINT = 0.1
"""Cells with less than this share of the strongest cell's weight do not enlarge the box."""
VISIBLE = 0.05
"""Cells with less than this share of it are not in the heat map."""
HEAT_CELLS = 64
"""So many at most."""
REGIONS = 8
"""How many random regions a box is compared with."""
BATCH = 4
"""Images in one forward pass."""
MARGIN_MM = 12.0
"""Regions are masked with so much around them, half a cell: the background begins where the lesion, which
no box of cells frames exactly, has ended."""

SHELL = 4
"""Voxels around a region that its background is drawn from."""

Voxels = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What masking did to the logit of one finding."""

    fall: float
    """Of the cited box."""
    random_falls: tuple[float, ...]
    """Of each random region."""

    @property
    def rank(self) -> float | None:
        """Share of the random regions whose masking lowers the logit less; ties count half. None where
        the body had no room for another region."""
        if not self.random_falls:
            return None
        other = np.array(self.random_falls)
        return float(((other < self.fall) + 0.5 * (other == self.fall)).mean())


@dataclass(frozen=True, slots=True)
class Cells:
    """How much each cell speaks of a finding, and where it lies in patient mm."""

    weight_S: np.ndarray
    centre_S3: np.ndarray
    half_S3: np.ndarray


def cells_of(fused: Fused, outputs: FindingOutputs, finding: int, patient: int = 0) -> Cells:
    lesions = fused.lesions
    if lesions is None:
        weight_S = to_numpy(outputs.evidence_BFS[patient, finding] * fused.located_BS[patient])
        places = fused.positions_BS3[patient], fused.half_cells_BS3[patient]
    else:
        weight_S = sigmoid(map_logits_N(lesions, finding, patient))
        places = lesions.positions_BN3[patient], lesions.half_cells_BN3[patient]
    return Cells(*(x.astype(np.float64) for x in (weight_S, *map(to_numpy, places))))


def evidence_box(
    fused: Fused, outputs: FindingOutputs, finding: int, patient: int = 0, size_mm: float | None = None
) -> Box | None:
    """The box around the cells that carry the finding, grown from the strongest one through its
    neighbours, and to the size of what is in it where that is known; None where no located cell
    carries it."""
    cells = cells_of(fused, outputs, finding, patient)
    weight_S, centre_S3, half_S3 = cells.weight_S, cells.centre_S3, cells.half_S3
    if weight_S.max(initial=0.0) <= 0:
        return None
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
            short = np.maximum((size_mm or 0.0) - (high - low), 0) / 2
            return _corner(low - short), _corner(high + short)
        low, high = new_low, new_high


def heat_map(fused: Fused, outputs: FindingOutputs, finding: int, patient: int = 0) -> tuple[HeatCell, ...]:
    """The located cells that carry the finding, the strongest first."""
    cells = cells_of(fused, outputs, finding, patient)
    strongest = cells.weight_S.max(initial=0.0)
    if strongest <= 0:
        return ()
    low_S3, high_S3 = (cells.centre_S3 - cells.half_S3).round(1), (cells.centre_S3 + cells.half_S3).round(1)
    order = np.argsort(-cells.weight_S, kind="stable")[:HEAT_CELLS]
    return tuple(
        HeatCell((_corner(low_S3[s]), _corner(high_S3[s])), round(float(cells.weight_S[s] / strongest), 3))
        for s in order
        if cells.weight_S[s] >= VISIBLE * strongest
    )


def _corner(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def slices_in_box(
    box_mm: Box, affine: np.ndarray, slices: int, centre_ij: tuple[float, float]
) -> tuple[int, ...]:
    """Up to three slices that cross the box: the middle one first, then one on each side. Slices may lie in
    any plane."""
    k = np.arange(slices)
    index = np.stack([np.full(slices, centre_ij[0]), np.full(slices, centre_ij[1]), k, np.ones(slices)])
    # of the slices' planes: those of a tilted stack are not across the way from one to the next
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal = normal / np.linalg.norm(normal)
    low, high = np.array(box_mm)
    middle_mm, reach_mm = normal @ (low + high) / 2, np.abs(normal) @ (high - low) / 2
    # how far along the normal each slice lies from the middle of the box
    from_middle_K = normal @ (affine @ index)[:3] - middle_mm
    inside = np.flatnonzero(np.abs(from_middle_K) <= reach_mm)
    middle = int(np.abs(from_middle_K).argmin())
    if len(inside) == 0:
        return (middle,)
    quarter = inside[[len(inside) // 4, (3 * len(inside)) // 4]]
    return tuple(dict.fromkeys((middle, *map(int, quarter))))


# Does the finding depend on the box?


def measure_faithfulness(
    model: Network,
    image_CIJK: Any,
    affine_44: Any,
    text: str,
    finding: int,
    box_mm: Box,
    body_IJK: np.ndarray,
    logit: float,
    regions: int = REGIONS,
    present_C: Any = None,
) -> Faithfulness:
    """`logit`: of the finding in the image as it is. The random regions have the size of the box, margin
    included, have their centre in the body and do not touch the box; the same ones for the same box."""
    cited = cited_voxels(box_mm, affine_44, image_CIJK.shape[1:])
    others = random_regions(cited, body_IJK, regions)
    logits: list[float] = []
    for some in _in_batches([cited, *others]):
        images = np.stack([to_numpy(masked(image_CIJK, region)) for region in some])
        affines = np.repeat(to_numpy(affine_44)[None], len(some), 0)
        present = None if present_C is None else np.repeat(to_numpy(present_C)[None], len(some), 0)
        with model.looking():
            outputs = model.find(model.encode(images, [text] * len(some), present, affines))
        logits += outputs.presence_logits_BF[:, finding].tolist()
    fall, *random_falls = (logit - after for after in logits)
    return Faithfulness(fall, tuple(random_falls))


def cited_voxels(box_mm: Box, affine_44: Any, shape: Iterable[int]) -> Voxels:
    """Of a box of evidence, with a margin."""
    grown = (_corner(np.array(box_mm[0]) - MARGIN_MM), _corner(np.array(box_mm[1]) + MARGIN_MM))
    return box_voxels(grown, affine_44, shape)


def box_voxels(box_mm: Box, affine_44: Any, shape: Iterable[int]) -> Voxels:
    """The voxels whose centres lie in the box; at least one along each axis."""
    inverse = np.linalg.inv(to_numpy(affine_44).astype(np.float64))
    ends = np.array(box_mm) @ inverse[:3, :3].T + inverse[:3, 3]
    low, high = np.ceil(ends.min(0) - 1e-3).astype(int), np.floor(ends.max(0) + 1e-3).astype(int)
    edges = []
    for a, b, n in zip(low, high, shape, strict=True):
        first = min(max(int(a), 0), n - 1)
        edges.append(slice(first, max(first + 1, min(int(b) + 1, n))))
    return edges[0], edges[1], edges[2]


def random_regions(cited: Voxels, body_IJK: np.ndarray, count: int) -> list[Voxels]:
    """Up to `count` boxes of the size of the cited one, with their centres in the body, clear of it."""
    size = [s.stop - s.start for s in cited]
    room = np.array([n - width for n, width in zip(body_IJK.shape, size, strict=True)])
    inside = np.flatnonzero(body_IJK)
    rng = np.random.default_rng([s.start for s in cited] + size)
    tried = rng.choice(inside, min(50 * count, len(inside)), replace=False)
    found: list[Voxels] = []
    for centre in np.stack(np.unravel_index(tried, body_IJK.shape), -1):
        if len(found) == count:
            break
        start = np.clip(centre - np.array(size) // 2, 0, room)
        apart = [a + n <= s.start or a >= s.stop for a, n, s in zip(start, size, cited, strict=True)]
        if any(apart):
            i, j, k = (slice(int(a), int(a) + n) for a, n in zip(start, size, strict=True))
            found.append((i, j, k))
    return found


def masked(image_CIJK: Any, region: Voxels) -> Any:
    """The image with every voxel of the region replaced by one drawn from the shell around it: the
    densities of the background, all channels of a voxel together, and no shape. (A smooth fill between
    the walls of a cavity would draw a mass where the lung was.) Always the same for the same region."""
    around = tuple(
        slice(max(0, s.start - SHELL), min(n, s.stop + SHELL))
        for s, n in zip(region, image_CIJK.shape[1:], strict=True)
    )
    in_shell = np.zeros(image_CIJK.shape[1:], dtype=bool)
    in_shell[around] = True
    in_shell[region] = False
    image, size = to_numpy(image_CIJK).copy(), [s.stop - s.start for s in region]
    shell_CV = image[:, in_shell]
    if shell_CV.shape[1] == 0:  # a region as large as the image has no background
        image[:, region[0], region[1], region[2]] = 0.0
        return like(image, image_CIJK)
    rng = np.random.default_rng([n for s in region for n in (s.start, s.stop)])
    image[:, region[0], region[1], region[2]] = shell_CV[:, rng.integers(shell_CV.shape[1], size=size)]
    return like(image, image_CIJK)


def _in_batches(regions: list[Voxels]) -> Iterator[list[Voxels]]:
    for start in range(0, len(regions), BATCH):
        yield regions[start : start + BATCH]
