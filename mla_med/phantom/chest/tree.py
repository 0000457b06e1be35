"""Lobes as clouds of points -> bronchi, pulmonary arteries and veins that fill them; tubes -> coverage.

A branch serves a cloud of points; at its end the cloud is cut in two along its widest direction and each
half gets a branch towards its middle (after Tawhai et al., Ann Biomed Eng 2000;28:793). Its calibre
follows the share of the cloud by a power law: Murray's cube (PNAS 1926;12:207), as measured on pulmonary
arteries 2.6 (Huang et al., J Appl Physiol 1996;81:2123). All branches of a generation grow at once.
Knows no HU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mla_med.phantom.lattice import Slices
from mla_med.phantom.shapes import Grid
from mla_med.types import Side

EXPONENT = 2.6


@dataclass(frozen=True, eq=False)
class Branch:
    """A piece of an airway or a vessel between two forks."""

    points: np.ndarray
    """(N, 3) patient mm, from the hilum outwards."""
    radii: np.ndarray
    """(N,) mm; of an airway that of the lumen."""
    side: Side
    site: str
    """Lobe, a key of report.schema.SITES; empty before the lobes."""
    generation: int
    """0 for what leads to the lobe, then counted at each fork."""


@dataclass(frozen=True, eq=False)
class Tubes:
    """Many straight pieces at once: ends (N, 3), radii (N,) at both ends, mm."""

    a: np.ndarray
    b: np.ndarray
    ra: np.ndarray
    rb: np.ndarray

    @classmethod
    def of(cls, branches: Sequence[Branch], grow_mm: float = 0.0) -> Tubes:
        if not branches:
            empty = np.zeros((0, 3))
            return cls(empty, empty, np.zeros(0), np.zeros(0))
        return cls(
            np.concatenate([b.points[:-1] for b in branches]),
            np.concatenate([b.points[1:] for b in branches]),
            np.concatenate([b.radii[:-1] for b in branches]) + grow_mm,
            np.concatenate([b.radii[1:] for b in branches]) + grow_mm,
        )

    @classmethod
    def along(cls, points: np.ndarray, radii: np.ndarray) -> Tubes:
        """One line (N, 3) with radii (N,)."""
        return cls(points[:-1], points[1:], radii[:-1], radii[1:])

    @classmethod
    def join(cls, parts: Sequence[Tubes]) -> Tubes:
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("a", "b", "ra", "rb")))

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        r = np.maximum(self.ra, self.rb)[:, None]
        return np.minimum(self.a, self.b) - r, np.maximum(self.a, self.b) + r

    def pick(self, which: np.ndarray) -> Tubes:
        return Tubes(self.a[which], self.b[which], self.ra[which], self.rb[which])

    def grown(self, mm: float) -> Tubes:
        return Tubes(self.a, self.b, self.ra + mm, self.rb + mm)

    def within(self, grid: Grid, box: Slices) -> Tubes:
        """Those that come near the voxels of `box`."""
        low, high = self.bounds
        o, s = np.asarray(grid.origin_mm), np.asarray(grid.spacing_mm)
        first = o + s * np.array([b.start for b in box]) - 2 * s
        last = o + s * np.array([b.stop for b in box]) + 2 * s
        return self.pick(np.all((high >= first) & (low <= last), axis=1))


def cover(tubes: Tubes, grid: Grid, box: Slices) -> np.ndarray:
    """How much of each voxel of `box` lies inside the tubes, float32.

    Tubes wider than a voxel have a soft edge; thinner ones leave their volume to the voxels that they
    pass, so that a vessel fades as a scanner would show it.
    """
    out = np.zeros(tuple(s.stop - s.start for s in box), np.float32)
    near = tubes.within(grid, box)
    if len(near.a) == 0:
        return out
    thin = np.maximum(near.ra, near.rb) < 0.8 * grid.edge_mm
    if thin.any():
        _splat(out, near.pick(thin), grid, box)
    wide = near.pick(~thin)
    edge, first = np.float32(1 / grid.edge_mm), np.array([b.start for b in box])
    spacing, shape = np.asarray(grid.spacing_mm), np.array(out.shape)
    axes = [a.ravel() for a in grid.axes(box)]
    low, high = wide.bounds
    start = np.clip(np.floor((low - grid.origin_mm) / spacing).astype(int) - 1 - first, 0, shape)
    stop = np.clip(np.ceil((high - grid.origin_mm) / spacing).astype(int) + 2 - first, 0, shape)
    for n in np.flatnonzero(np.all(stop > start, axis=1)):
        (i, j, k), (l, m, o) = start[n], stop[n]
        inside = _capsule_cover(
            axes[0][i:l, None, None], axes[1][None, j:m, None], axes[2][None, None, k:o],
            wide.a[n], wide.b[n], wide.ra[n], wide.rb[n], edge,
        )  # fmt: skip
        part = out[i:l, j:m, k:o]
        np.maximum(part, inside, out=part)
    return out


def _capsule_cover(x, y, z, a, b, ra, rb, per_edge) -> np.ndarray:
    ax, ay, az = (np.float32(v) for v in b - a)
    long2 = float(ax * ax + ay * ay + az * az)
    u, v, w = x - np.float32(a[0]), y - np.float32(a[1]), z - np.float32(a[2])
    t = np.clip((u * ax + v * ay + w * az) / np.float32(max(long2, 1e-6)), 0, 1)
    d = (u - t * ax) ** 2
    d += (v - t * ay) ** 2
    d += (w - t * az) ** 2
    np.sqrt(d, out=d)
    t *= np.float32(rb - ra)
    t += np.float32(ra)
    t -= d
    t *= per_edge
    t += np.float32(0.5)
    return np.clip(t, 0, 1, out=t)


def _splat(out: np.ndarray, tubes: Tubes, grid: Grid, box: Slices) -> None:
    spacing = np.asarray(grid.spacing_mm)
    length = np.linalg.norm(tubes.b - tubes.a, axis=1)
    number = np.maximum(1, np.ceil(length / (0.5 * grid.edge_mm)).astype(int))
    which = np.repeat(np.arange(len(number)), number)
    t = (np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number) + 0.5) / number[which]
    p = tubes.a[which] + t[:, None] * (tubes.b - tubes.a)[which]
    r = tubes.ra[which] + t * (tubes.rb - tubes.ra)[which]
    share = np.pi * r * r * (length / number)[which] / spacing.prod()
    index = (p - grid.origin_mm) / spacing - np.array([b.start for b in box])
    low = np.floor(index).astype(int)
    part = index - low
    shape = out.shape
    flat, weights = [], []
    for corner in np.ndindex(2, 2, 2):
        at = low + corner
        inside = np.all((at >= 0) & (at < shape), axis=1)
        weight = np.prod(np.where(corner, part, 1 - part), axis=1) * share
        flat.append(np.ravel_multi_index(tuple(at[inside].T), shape))
        weights.append(weight[inside])
    summed = np.bincount(np.concatenate(flat), np.concatenate(weights), minlength=out.size)
    np.minimum(summed, 1, out=summed)
    np.maximum(out, summed.reshape(shape), out=out)


@dataclass(frozen=True, eq=False)
class Grown:
    """A tree as arrays: one row for each branch."""

    start: np.ndarray
    end: np.ndarray
    parent: np.ndarray
    """-1 for the root."""
    share: np.ndarray
    """Of the cloud, 1 for the root."""
    generation: np.ndarray


def grow(root, direction, cloud: np.ndarray, rng: np.random.Generator, least: int = 2) -> Grown:
    """Branches from `root` into a cloud of points (N, 3), patient mm."""
    starts, ends, parents, shares, generations = [], [], [], [], []
    owner = np.zeros(len(cloud), int)
    tips = np.asarray(root, float).reshape(1, 3)
    headings = np.asarray(direction, float).reshape(1, 3)
    headings = headings / float(np.linalg.norm(headings))
    lines = np.array([-1])
    alive = np.arange(len(cloud))
    number = 0
    for generation in range(1, 24):
        if len(alive) == 0:
            break
        points, own = cloud[alive], owner[alive]
        count = np.bincount(own, minlength=len(tips))
        half = _halves(points, own, count, headings, rng)
        child = 2 * own + half
        many = np.bincount(child, minlength=2 * len(tips))
        middle = np.stack([np.bincount(child, p, 2 * len(tips)) for p in points.T], 1)
        middle = middle / np.maximum(many, 1).astype(float)[:, None]
        born = np.flatnonzero(many)
        tip, old = tips[born // 2], headings[born // 2]
        way = middle[born] - tip
        far = np.linalg.norm(way, axis=1, keepdims=True)
        # a branch starts a little in the direction of its mother and does not reach the middle
        bent = way / np.maximum(far, 1e-6) + 0.42 * old + rng.normal(0, 0.05, way.shape)
        bent /= np.linalg.norm(bent, axis=1, keepdims=True)
        end = tip + bent * np.minimum(far * rng.uniform(0.40, 0.56, far.shape), 38)
        last = many[born] <= least
        end[last] = tip[last] + 0.9 * way[last]
        starts.append(tip)
        ends.append(end)
        parents.append(lines[born // 2])
        shares.append(many[born] / len(cloud))
        generations.append(np.full(len(born), generation))
        lines = number + np.arange(len(born))
        number += len(born)
        renumber = np.full(2 * len(tips), -1)
        renumber[born] = np.arange(len(born))
        going = many[child] > least
        alive, new_owner = alive[going], renumber[child[going]]
        owner[alive] = new_owner
        tips, headings = end, bent
    return Grown(
        np.concatenate(starts), np.concatenate(ends), np.concatenate(parents),
        np.concatenate(shares), np.concatenate(generations),
    )  # fmt: skip


def _halves(points, own, count, headings, rng) -> np.ndarray:
    """0 or 1 for each point: which side of a cut through the middle of its cloud, along the widest
    direction across the way the mother came."""
    n = len(count)
    safe = np.maximum(count, 1)[:, None]
    middle = np.stack([np.bincount(own, p, n) for p in points.T], 1) / safe
    q = points - middle[own]
    across = q - np.einsum("nk,nk->n", q, headings[own])[:, None] * headings[own] * 0.8
    spread = np.zeros((n, 3, 3))
    for r in range(3):
        for c in range(r, 3):
            spread[:, r, c] = spread[:, c, r] = np.bincount(own, across[:, r] * across[:, c], n)
    widest = np.linalg.eigh(spread)[1][:, :, 2]
    along = np.einsum("nk,nk->n", q, widest[own])
    # forks are uneven: the cut lies up to a third of the spread off the middle
    deviation = np.sqrt(np.bincount(own, along**2, n) / safe[:, 0])
    return (along > (rng.uniform(-0.45, 0.45, n) * deviation)[own]).astype(int)
