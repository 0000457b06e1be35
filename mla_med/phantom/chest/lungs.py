"""Space -> pleural cavities, diaphragm, lobes and fissures, and the trees inside. Knows no HU.

Surfaces are given in reference mm (frame.py). Fissures after Hayashi et al., AJR 2001;177:1451, the
bronchi after Boyden, Segmental Anatomy of the Lungs, 1955, and Horsfield, Clin Chest Med 1986.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mla_med.phantom.chest.frame import ANGLES, HEIGHTS, Habitus
from mla_med.phantom.chest.space import Space
from mla_med.phantom.chest.tree import EXPONENT, Branch, Grown, Tubes, grow
from mla_med.phantom.lattice import smooth_max
from mla_med.types import Side

Place = tuple[Side, str]
LOBES: tuple[Place, ...] = (
    (Side.RIGHT, "upper_lobe"),
    (Side.RIGHT, "middle_lobe"),
    (Side.RIGHT, "lower_lobe"),
    (Side.LEFT, "upper_lobe"),
    (Side.LEFT, "lower_lobe"),
)
"""The order of the indices that `Fissures.lobe` gives."""

APEX_REF = (116.0, 114.0)
"""z of the right and the left lung apex."""


@dataclass(frozen=True)
class Fissures:
    """Where the lobes meet, in reference mm: oblique z = a - b * y, both bent; horizontal on the right."""

    right: tuple[float, float]
    left: tuple[float, float]
    horizontal: float
    wave: tuple[float, float, float]
    """Amplitude in mm and phases of their undulation."""

    @classmethod
    def make(cls, rng: np.random.Generator) -> Fissures:
        return cls(
            (float(rng.normal(-20, 4)), float(rng.normal(0.90, 0.05))),
            (float(rng.normal(-16, 4)), float(rng.normal(1.0, 0.05))),
            float(rng.normal(6, 5)),
            (float(rng.uniform(3, 7)), float(rng.uniform(0, 6.3)), float(rng.uniform(0, 6.3))),
        )

    def oblique(self, x, y, z):
        """Distance above the oblique fissure of the side of x, reference mm."""
        size, first, second = self.wave
        wave = (
            np.float32(size)
            * np.sin(x * np.float32(0.045) + np.float32(first))
            * np.sin(y * np.float32(0.03) + np.float32(second))
        )
        a = np.where(x > 0, np.float32(self.right[0]), np.float32(self.left[0]))
        b = np.where(x > 0, np.float32(self.right[1]), np.float32(self.left[1]))
        # it turns outwards and up beside the spine, and flattens towards the front
        bent = a - b * y - np.float32(0.0022) * np.square(y + 10) * np.sign(-y) * np.float32(0.5)
        bent += np.float32(0.06) * (np.abs(x) - 60)
        return (z - bent - wave) * np.float32(1 / np.hypot(1, 0.95))

    def level(self, x, y, z):
        """Distance above the horizontal fissure, reference mm."""
        size, _, second = self.wave
        dome = np.float32(self.horizontal) - np.float32(0.0012) * (np.square(x - 70) + np.square(y - 30))
        wave = np.float32(0.6 * size) * np.sin(
            x * np.float32(0.05) + y * np.float32(0.03) + np.float32(second)
        )
        return z - dome - wave

    def lobe(self, x, y, z) -> np.ndarray:
        """Index into LOBES of reference points."""
        below = self.oblique(x, y, z) < 0
        under = self.level(x, y, z) < 0
        right = np.where(below, 2, np.where(under, 1, 0))
        return np.where(x > 0, right, np.where(below, 4, 3))

    def distance(self, x, y, z) -> np.ndarray:
        """To the nearest fissure, reference mm."""
        oblique = self.oblique(x, y, z)
        level = np.where((x > 0) & (oblique > 0), np.abs(self.level(x, y, z)), np.float32(1e3))
        return np.minimum(np.abs(oblique), level)


def diaphragm(space: Space, habitus: Habitus) -> np.ndarray:
    """Signed distance to the diaphragm on the lattice, mm, positive above it (in the chest)."""
    x, y, z = space.ref
    depth, flat = space.wall
    low = z < 40
    k = int(np.flatnonzero(low.any(axis=(0, 1)))[-1]) + 1
    x, y, z, depth, flat = x[..., :k], y[..., :k], z[..., :k], depth[..., :k], flat[..., :k]
    row = ANGLES.astype(np.float32)
    # the recess reaches lowest at the back and the side
    lowest = np.interp(row, [0, 25, 60, 95, 150, 180], [-62, -72, -112, -140, -158, -150]).astype(np.float32)
    right, left = habitus.dome_mm
    deeper = 0.35 * (min(right, left) + 58)
    recess = np.take(lowest + np.float32(deeper), flat // len(HEIGHTS))
    paraboloids = (
        right - 0.0024 * np.square(x - 62) - 0.0019 * np.square(y - 4),
        left - 0.0026 * np.square(x + 66) - 0.0019 * np.square(y - 4),
    )
    crown = smooth_max(*paraboloids, 14.0)
    inward = np.clip(-depth / space.size * np.float32(1 / 56), 0, 1)
    arc = np.sqrt(np.maximum(1 - np.square(1 - inward), 0))
    surface = recess + (crown - recess) * arc
    f = z - surface
    step = np.asarray(space.lattice.grid.spacing_mm)
    steep = np.sqrt(sum(np.square(g) for g in np.gradient(f, *step)))
    f /= np.maximum(steep, np.float32(0.7))
    out = np.full(space.ref[0].shape, 60.0, np.float32)
    out[..., :k] = np.clip(f, -60, 60)
    return out


def pleural_cavities(
    space: Space, floor: np.ndarray, mediastinum: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances of the right and the left pleural cavity on the whole lattice, mm."""
    x, y, z = space.ref
    depth, _ = space.wall
    common = smooth_max(depth + np.float32(0.8), -np.minimum(mediastinum, 60), 7.0)
    common = smooth_max(common, -floor, 3.0)
    out = []
    for sign, apex in ((1.0, APEX_REF[0]), (-1.0, APEX_REF[1])):
        top = apex - 0.013 * np.minimum(np.square(np.abs(x) - 40) + np.square(y + 34), 1600)
        cap = (z - top) * (0.8 * space.size)
        cavity = smooth_max(common, cap.astype(np.float32), 6.0)
        out.append(np.maximum(cavity, np.float32(-sign) * x * space.size).astype(np.float32))
    return out[0], out[1]


# Main and lobar bronchi in reference mm: start, end, lumen radius at both.
CARINA = (3.0, -32.0, 45.0)
TRACHEA = (
    ((0, -25, 175), 8.4),
    ((1, -27, 120), 8.6),
    ((5, -31, 84), 8.4),
    ((5, -32, 64), 8.3),
    (CARINA, 8.3),
)
MAIN = {
    Side.RIGHT: ((CARINA, 7.2), ((13, -34, 35), 6.9), ((24, -36, 27), 6.6)),
    Side.LEFT: ((CARINA, 6.6), ((-12, -33, 35), 6.2), ((-26, -34, 23), 5.9), ((-39, -36, 14), 5.6)),
}
INTERMEDIUS = (((24, -36, 27), 5.7), ((31, -36, 12), 5.3), ((34, -34, -2), 5.0))
LOBAR: dict[Place, tuple] = {
    (Side.RIGHT, "upper_lobe"): (((24, -36, 27), 5.0), ((34, -36, 33), 4.7), ((45, -34, 37), 4.4)),
    (Side.RIGHT, "middle_lobe"): (((34, -34, -2), 3.7), ((43, -20, -10), 3.5), ((52, -6, -16), 3.2)),
    (Side.RIGHT, "lower_lobe"): (((34, -34, -2), 4.7), ((38, -40, -14), 4.5), ((42, -46, -26), 4.2)),
    (Side.LEFT, "upper_lobe"): (((-39, -36, 14), 4.7), ((-48, -31, 16), 4.5), ((-56, -24, 18), 4.2)),
    (Side.LEFT, "lower_lobe"): (((-39, -36, 14), 4.8), ((-43, -41, 0), 4.6), ((-46, -48, -16), 4.3)),
}
ARTERY_ROOTS: dict[Place, tuple] = {
    (Side.RIGHT, "upper_lobe"): (((28, -17, 30), 5.2), ((38, -24, 40), 4.6)),
    (Side.RIGHT, "middle_lobe"): (((44, -24, 8), 4.0), ((50, -12, -4), 3.4)),
    (Side.RIGHT, "lower_lobe"): (((40, -19, 24), 7.4), ((47, -26, 10), 6.4), ((48, -36, -8), 5.3)),
    (Side.LEFT, "upper_lobe"): (((-40, -24, 40), 5.6), ((-52, -18, 30), 4.6)),
    (Side.LEFT, "lower_lobe"): (((-42, -32, 40), 7.6), ((-52, -44, 22), 6.6), ((-54, -50, 2), 5.3)),
}
VEIN_ROOTS: dict[Place, tuple] = {
    (Side.RIGHT, "upper_lobe"): (((29, -22, 8), 6.4), ((42, -12, 14), 5.2), ((52, -6, 24), 4.4)),
    (Side.RIGHT, "middle_lobe"): (((32, -22, 4), 4.4), ((46, -6, -2), 3.5)),
    (Side.RIGHT, "lower_lobe"): (((22, -32, -12), 6.2), ((31, -46, -28), 5.2)),
    (Side.LEFT, "upper_lobe"): (((-30, -24, 12), 6.4), ((-46, -10, 16), 5.2), ((-54, -2, 22), 4.4)),
    (Side.LEFT, "lower_lobe"): (((-30, -33, -6), 6.2), ((-43, -46, -18), 5.0)),
}
POINTS_PER_ML = 1.1
"""Of lung, for arteries and veins each half: one end of a vessel for about 2 ml, as many as can be seen."""
SHOWN_MM = 0.7
"""Lumen of the smallest bronchus that is drawn (Webb et al., HRCT of the Lung: 2 mm of diameter are seen)."""
NAMED_MM = 0.75
"""Radius of the smallest vessel that is given as a Branch; smaller ones are only drawn."""


@dataclass(frozen=True, eq=False)
class Trees:
    airways: tuple[Branch, ...]
    arteries: tuple[Branch, ...]
    veins: tuple[Branch, ...]
    tubes: dict[str, Tubes]
    """arteries, veins, airways and walls, each as "stems" (outside the lung too) and "twigs"."""


@dataclass(frozen=True, eq=False)
class _Bent:
    """Branches of one tree as arrays: bent once in the middle; points (N, 3, 3), radii (N, 3)."""

    points: np.ndarray
    radii: np.ndarray
    generation: np.ndarray

    def pick(self, which: np.ndarray) -> _Bent:
        return _Bent(self.points[which], self.radii[which], self.generation[which])

    def tubes(self) -> Tubes:
        p, r = self.points, self.radii
        return Tubes(p[:, :2].reshape(-1, 3), p[:, 1:].reshape(-1, 3), r[:, :2].ravel(), r[:, 1:].ravel())

    def branches(self, place: Place, least_mm: float) -> list[Branch]:
        shown = np.flatnonzero(self.radii[:, 1] > least_mm)
        return [Branch(self.points[n], self.radii[n], *place, int(self.generation[n])) for n in shown]


def grow_trees(
    space: Space, cavities: tuple[np.ndarray, np.ndarray], fissures: Fissures, rng: np.random.Generator
) -> Trees:
    """Bronchi and arteries side by side, veins between them, in each lobe."""
    points, lobes = _clouds(space, cavities, fissures, rng)
    named: dict[str, list[Branch]] = {"airways": [*_stems(space)], "arteries": [], "veins": []}
    stems: dict[str, list[Tubes]] = {name: [Tubes.of(branches)] for name, branches in named.items()}
    twigs: dict[str, list[Tubes]] = {name: [] for name in named}
    for number, place in enumerate(LOBES):
        cloud = points[lobes == number]
        if len(cloud) < 8:
            continue
        half = rng.random(len(cloud)) < 0.5
        roots = {}
        for name, table in (("airways", LOBAR), ("arteries", ARTERY_ROOTS), ("veins", VEIN_ROOTS)):
            line, radii = space.line(*knots_of(table[place]), step_mm=5.0)
            named[name].append(Branch(line, radii, *place, 0))
            stems[name].append(Tubes.along(line, radii))
            roots[name] = line, radii
        line, radii = roots["airways"]
        tree = grow(line[-1], _way(line), cloud[half], rng)
        red, red_radii = roots["arteries"]
        bronchi, along = _bundle(tree, line[-1], radii[-1], red[-1], red_radii[-1], rng)
        line, radii = roots["veins"]
        veins = _bent(grow(line[-1], _way(line), cloud[~half], rng), radii[-1], rng)
        bronchi = bronchi.pick(bronchi.radii[:, 2] > SHOWN_MM)
        for name, tree_of in (("airways", bronchi), ("arteries", along), ("veins", veins)):
            named[name] += tree_of.branches(place, 0.0 if name == "airways" else NAMED_MM)
            first = (tree_of.generation <= 1) & (name != "airways")
            stems[name].append(tree_of.pick(first).tubes())
            twigs[name].append(tree_of.pick(~first).tubes())
    tubes = {f"{name} stems": Tubes.join(parts) for name, parts in stems.items()}
    tubes |= {f"{name} twigs": Tubes.join(parts) for name, parts in twigs.items()}
    small = tubes["airways twigs"]
    # the wall: about a fifth of the lumen's diameter (Nakano et al., AJRCCM 2000;162:1102)
    tubes["walls twigs"] = Tubes(small.a, small.b, small.ra * 1.22 + 0.30, small.rb * 1.22 + 0.30)
    tubes["walls stems"] = tubes["airways stems"].grown(1.5)
    return Trees(tuple(named["airways"]), tuple(named["arteries"]), tuple(named["veins"]), tubes)


def knots_of(knots) -> tuple[list, list]:
    """((point, radius), ...) -> points and radii."""
    return [k[0] for k in knots], [k[1] for k in knots]


def _way(line: np.ndarray) -> np.ndarray:
    v = line[-1] - line[-2]
    return v / np.linalg.norm(v)


def _stems(space: Space):
    line, radii = space.line(*knots_of(TRACHEA), step_mm=8.0)
    yield Branch(line, radii, Side.BILATERAL, "", 0)
    for side, knots in MAIN.items():
        line, radii = space.line(*knots_of(knots), step_mm=5.0)
        yield Branch(line, radii, side, "", 0)
    line, radii = space.line(*knots_of(INTERMEDIUS), step_mm=5.0)
    yield Branch(line, radii, Side.RIGHT, "", 0)


def _clouds(space: Space, cavities, fissures: Fissures, rng) -> tuple[np.ndarray, np.ndarray]:
    """Points spread evenly through both lungs, (N, 3) patient mm, and the lobe of each."""
    lung = np.minimum(*cavities) < -1.5
    where = np.flatnonzero(lung)
    grid = space.lattice.grid
    ml = len(where) * float(np.prod(grid.spacing_mm)) / 1000
    chosen = where[rng.random(len(where)) < ml * 2 * POINTS_PER_ML / len(where)]
    index = np.stack(np.unravel_index(chosen, lung.shape), axis=1)
    jitter = rng.uniform(-0.5, 0.5, index.shape)
    points = (index + jitter) * grid.spacing_mm + grid.origin_mm
    ref = [v.ravel()[chosen] for v in space.ref]
    return points, fissures.lobe(*ref)


def _bundle(tree: Grown, end_of_bronchus, lumen: float, root, calibre: float, rng) -> tuple[_Bent, _Bent]:
    """A tree as bronchi and as the arteries that run beside them."""
    air = _calibres(tree, lumen, 0.3, 2.35)
    red = _calibres(tree, calibre, 0.33)
    ways = tree.end - tree.start
    ways /= np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-6)
    gap = (air[:, 1] * 1.18 + red[:, 1] + 0.35)[:, None]
    # an artery keeps the side of the bronchus on which it came
    beside = np.zeros_like(ways)
    start = tree.start + (root - end_of_bronchus)
    first = rng.normal(0, 1, 3)
    for generation in range(1, int(tree.generation.max()) + 1):
        rows = np.flatnonzero(tree.generation == generation)
        mother = tree.parent[rows]
        side = first if generation == 1 else beside[mother]
        side = side - np.sum(side * ways[rows], axis=1, keepdims=True) * ways[rows]
        beside[rows] = side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-6)
        if generation > 1:
            start[rows] = tree.start[rows] + beside[mother] * gap[mother]
    middle = _middles(tree, rng)
    bronchi = np.stack([tree.start, middle, tree.end], axis=1)
    along = np.stack([start, middle + beside * gap, tree.end + beside * gap], axis=1)
    return _Bent(bronchi, air, tree.generation), _Bent(along, red, tree.generation)


def _bent(tree: Grown, calibre: float, rng) -> _Bent:
    points = np.stack([tree.start, _middles(tree, rng), tree.end], axis=1)
    return _Bent(points, _calibres(tree, calibre, 0.33), tree.generation)


def _middles(tree: Grown, rng) -> np.ndarray:
    length = np.linalg.norm(tree.end - tree.start, axis=1, keepdims=True)
    return (tree.start + tree.end) / 2 + rng.normal(0, 0.06, tree.start.shape) * length


def _calibres(tree: Grown, root_mm: float, least_mm: float, exponent: float = EXPONENT) -> np.ndarray:
    """Radii at the beginning, the middle and the end of each branch (N, 3): each begins nearly as wide as
    its mother ends."""
    radius = np.maximum(root_mm * tree.share ** (1 / exponent), least_mm)
    before = np.where(tree.parent >= 0, radius[tree.parent], root_mm)
    return np.stack([np.minimum(before, 1.15 * radius), radius, radius * 0.94], axis=1)
