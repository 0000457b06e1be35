"""Head -> places where a lesion may lie: in which lobe, how deep, clear of walls and of other lesions.

Lesions are planted one after the other into the head as those before them have changed it, so that side and
site hold for the picture. Knows no tissue and no scanner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mla_med.phantom.head import brain as head_brain
from mla_med.phantom.head.anatomy import Head
from mla_med.phantom.head.blobs import Sdf, wall
from mla_med.phantom.lesion import Lesion
from mla_med.types import Side

Where = tuple[Side | None, str]

LOBES = ("frontal_lobe", "parietal_lobe", "temporal_lobe", "occipital_lobe")
NUCLEI = ("caudate", "putamen", "pallidum", "thalamus")

# reference mm: |x|, y, z between which each site lies
_BOXES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    **{"frontal_lobe": ((4, 62), (-40, 66), (-18, 76)), "parietal_lobe": ((4, 64), (-86, -8), (6, 76))},
    **{"temporal_lobe": ((20, 66), (-62, 26), (-44, 8)), "occipital_lobe": ((4, 52), (-102, -62), (-14, 34))},
    **{"basal_ganglia": ((9, 32), (-18, 24), (-10, 14)), "thalamus": ((3, 20), (-32, -4), (-1, 15))},
    **{"cerebellum": ((6, 50), (-90, -38), (-58, -16)), "brainstem": ((0, 14), (-46, -16), (-56, -8))},
}
DEEP = ("thalamus", "basal_ganglia", "brainstem")
TRIES = 160


@dataclass(frozen=True, slots=True)
class Spot:
    """A place for a lesion."""

    centre_mm: np.ndarray
    side: Side | None
    site: str

    @property
    def place(self) -> Where:
        return self.side, self.site


@dataclass
class Room:
    """The head as changed so far, and what is taken of it."""

    head: Head
    rng: np.random.Generator
    taken: list[tuple[np.ndarray, float]] = field(default_factory=list)
    """Centre and radius (mm) of what is planted."""
    lesions: list[Lesion] = field(default_factory=list)

    def add(self, lesions: Iterable[Lesion]) -> None:
        for lesion in lesions:
            self.head = lesion.change(self.head)
            self.lesions.append(lesion)

    def spot(
        self,
        sites: dict[str, float],
        radius_mm: float,
        depth_mm: tuple[float, float] = (4.0, 90.0),
        clear_mm: float = 4.0,
        side: Side | None = None,
    ) -> Spot:
        """A free place for a lesion of this radius. `sites`: how often each is wanted; `depth_mm`: how far
        below the hull of the brain; `clear_mm`: how far from ventricles and from the border of the lobe,
        where there is room for that."""
        names, odds = list(sites), np.array(list(sites.values()), float)
        order = self.rng.choice(len(names), len(names), replace=False, p=odds / odds.sum())
        for ease in (1.0, 0.7, 0.4, 0.0):
            for index in order:
                spot = self._spot_in(names[index], radius_mm, depth_mm, clear_mm, side, ease)
                if spot is not None:
                    return spot
        raise AssertionError(f"no room for {radius_mm} mm in {names} of head {self.head.patient.seed}")

    def _spot_in(self, site: str, radius: float, depth, clear: float, side, ease: float) -> Spot | None:
        ref = self._within(site, side)
        deep = site in DEEP
        low = 2.0 if deep else depth[0] * max(ease, 0.5)
        hull, gap = self._hull_mm(ref, site), self._ventricle_mm(ref)
        good = (hull < -low) & (hull > -depth[1]) & (gap > (1.0 if deep else min(clear, 3.0 + 5 * ease)))
        ref = ref[good]
        if len(ref) == 0:
            return None
        points = self.head.to_patient(ref)
        reach = 1.5 if deep else min(clear, radius)
        for point, q in zip(points, ref, strict=True):
            if any(np.linalg.norm(point - c) < (radius + r + 3) * ease + 0.01 for c, r in self.taken):
                continue
            if all(_site(q + d)[1] == site for d in reach * ease * _AROUND):
                return Spot(point, *self.head.lobe_of(point))
        return None

    def _within(self, site: str, side: Side | None) -> np.ndarray:
        """Random reference points about a site (N, 3)."""
        low, high = np.array(_BOXES[site]).T
        ref = self.rng.uniform(low, high, (TRIES, 3))
        signs = self.rng.choice((-1.0, 1.0), TRIES)
        ref[:, 0] *= signs if side is None else 1.0 if side is Side.RIGHT else -1.0
        return ref

    def _hull_mm(self, ref: np.ndarray, site: str) -> np.ndarray:
        """How far reference points lie outside the hull of cerebrum, cerebellum or brainstem."""
        x, y, z = ref.T.astype(np.float32)
        a = np.abs(x)
        hulls = {"cerebellum": head_brain.cerebellum, "brainstem": head_brain.brainstem}
        return hulls.get(site, head_brain.cerebrum)(a, y, z) * self.head.size + self.head.gap_mm - 1

    def _ventricle_mm(self, ref: np.ndarray) -> np.ndarray:
        """How far reference points lie from the nearest ventricle."""
        head, (x, y, z) = self.head, ref.T.astype(np.float32)
        wide = head.ventricle_width
        lateral = head_brain.ventricle(x, y, z, wide, head.asymmetry)
        third = np.maximum(head_brain.third_ventricle(y, z), np.abs(x) - 1.6 * wide)
        fourth = head_brain.fourth_ventricle(np.abs(x), y, z) - 0.8 * (wide - 1)
        return np.minimum(np.minimum(lateral, third), fourth) * head.size

    def white_points(self, n: int, depth_mm: float, clear_mm: float) -> np.ndarray:
        """Random points in the white matter of the cerebrum, at least `depth_mm` below every sulcus."""
        ref = self.rng.uniform((-60, -85, -10), (60, 55, 65), (n, 3))
        points = self.head.to_patient(ref)
        good = self.head.pial_depth(points) > depth_mm + self.head.cortex_mm
        good &= (self.head.distance("cerebrum", points) < 0) & (self._ventricle_mm(ref) > clear_mm)
        for name in (*NUCLEI, "stem", "cerebellum"):
            good &= self.head.distance(name, points) > 1.5
        good &= np.abs(self.head.distance("middle", points)) > 6
        return points[good]

    def is_clear(self, spot: Spot) -> bool:
        """Whether a place still lies in the brain substance of its side, as the head now is."""
        at = spot.centre_mm
        names = ("ventricle", "fourth", "middle")
        distances = {name: float(self.head.distance(name, at)[0]) for name in names}
        hull = float(self.head.distance(HULLS.get(spot.site, "cerebrum"), at)[0])
        to_the_right = distances["middle"] if spot.side is Side.RIGHT else -distances["middle"]
        on_its_side = spot.side is None or to_the_right > 3
        return hull < -2 and distances["ventricle"] > 2.5 and distances["fourth"] > 2.5 and on_its_side

    def walls(self, spot: Spot, bone_mm: float = 0.5, side: bool = True) -> list[Sdf]:
        """What a lesion of the brain substance does not cross: the surface, ventricles, the middle plane."""
        fields = self.head.fields
        out = [
            wall(fields[HULLS.get(spot.site, "cerebrum")], bone_mm),
            wall(fields["ventricle"], 0.8, outside=True),
            wall(fields["fourth"], 0.8, outside=True),
        ]
        if side and spot.side is not None:
            out.append(wall(fields["middle"], 1.5, outside=spot.side is Side.RIGHT))
        return out


HULLS = {"cerebellum": "cerebellum", "brainstem": "stem"}
"""The hull of a site that is not in the cerebrum."""
_AROUND = np.array([(0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], float)


def _site(ref: np.ndarray) -> Where:
    x, y, z = (float(v) for v in ref)
    return head_brain.site_at(x, y, z)


def commonest(head: Head, points: np.ndarray, allowed: Callable[[Where], bool]) -> Where | None:
    """The place in which most of these points lie, of those that are allowed."""
    counts: dict[Where, int] = {}
    for p in points:
        place = head.lobe_of(p)
        if allowed(place):
            counts[place] = counts.get(place, 0) + 1
    return max(counts, key=lambda place: counts[place]) if counts else None


def pick(rng: np.random.Generator, choices: Sequence[str], odds: Sequence[float]) -> str:
    """One of several words."""
    p = np.asarray(odds, float)
    return choices[int(rng.choice(len(choices), p=p / p.sum()))]
