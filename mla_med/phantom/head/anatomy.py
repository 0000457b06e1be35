"""Patient -> Head: the anatomy of a head as fields in patient mm; Head + Grid -> Tissues (maps of a scan).

Structures are described once, in the reference head of head_brain.py and head_skull.py, and scaled, turned
and warped to the patient. What lesions change (`atrophy`, `ventricle_scale`, `shift_mm`, `pushes`) are fields
of the dataclass: `dataclasses.replace` gives another head, whose distances are derived anew. Coordinates are
patient RAS mm: x to the right, y to the front, z up. Knows no sequence and no scanner.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from mla_med.phantom.head import brain, skull
from mla_med.phantom.head.draw import draw_anatomy
from mla_med.phantom.head.fields import LATTICE, deep_fields, everywhere, hull_fields, pial_depth
from mla_med.phantom.head.tissues import Canvas, Tissue, Tissues
from mla_med.phantom.lattice import Field, Lattice, curve
from mla_med.phantom.lesion import Decoy, Lesion
from mla_med.phantom.patient import Patient
from mla_med.phantom.shapes import Grid
from mla_med.types import Sex, Side

__all__ = ["Canvas", "Head", "Push", "Tissue", "Tissues", "draw_head", "make_head", "training_grid"]

CENTRE = (0.0, -18.0, 3.0)
"""What of the reference head lies at the origin of the patient."""
N_WAVES, WARP_MM = 6, 1.3


@dataclass(frozen=True, slots=True)
class Push:
    """A mass that displaces the brain around it: away from its centre, less with distance, not the skull."""

    centre_mm: tuple[float, float, float]
    radius_mm: float
    push_mm: float
    """How far what now lies at `radius_mm` from the centre was displaced."""


@dataclass(frozen=True, eq=False)
class Head:
    """One head. The first fields are anatomy; from `atrophy` on, what lesions change."""

    patient: Patient
    scale: tuple[float, float, float]
    """Reference mm -> patient mm along x, y, z."""
    pose: np.ndarray
    """(3, 3) rotation of the head in the scanner."""
    waves: np.ndarray
    """(N, 3) wave vectors of the warp, radians per mm."""
    phases: np.ndarray
    gains: np.ndarray
    """(N, 3) amplitudes in mm."""
    skull_mm: float
    """Thickness of the vault."""
    fat_mm: float
    """Thickness of the fat under the scalp."""
    face: skull.Face
    atrophy: float = 0.0
    """0 in a young adult, near 0.45 in a healthy one of 85, 1 severe: widens sulci, ventricles and the fluid
    around the brain, thins the cortex."""
    ventricle_scale: float = 1.0
    """Width of the ventricles beyond what `atrophy` says; 1.7 to 2.5 in hydrocephalus."""
    asymmetry: float = 0.0
    """How much wider the left lateral ventricle is than the right, as a share."""
    shift_mm: float = 0.0
    """Displacement of the septum pellucidum, positive to the patient's right."""
    pushes: tuple[Push, ...] = ()
    dents: tuple[Field, ...] = ()
    """Signed distances (patient mm, negative inside) of what the brain keeps out of, such as collections; its
    surface and its folds follow them."""
    cavum_mm: float = 0.0
    """Width of a cavum septi pellucidi."""
    cisterna_mm: float = 0.0
    """How much farther than usual the cerebellum stands from the occipital bone."""

    # --- coordinates

    @property
    def size(self) -> float:
        """Mean of the three scales."""
        return float(np.mean(self.scale))

    def to_reference(self, points_mm, deformed: bool = True) -> np.ndarray:
        """Patient points (N, 3) -> reference points (N, 3); `deformed`: of the brain, which shifts and masses
        displace, otherwise of the skull."""
        p = np.atleast_2d(np.asarray(points_mm, np.float32))
        x, y, z = self.reference(*p.T)
        if deformed and self._deforms:
            u = self._displacement(p.T, (x, y, z), -skull.cranium_mm(self, x, y, z))
            x, y, z = self.reference(*(c - d for c, d in zip(p.T, u, strict=True)))
        return np.stack([x, y, z], axis=1)

    def to_patient(self, points_ref, deformed: bool = True) -> np.ndarray:
        """Reference points (N, 3) -> patient points (N, 3)."""
        q = np.atleast_2d(np.asarray(points_ref, float))
        p = (q - CENTRE) * self.scale @ self.pose.T
        for _ in range(8):
            p = p + (q - self.to_reference(p, deformed)) * self.scale @ self.pose.T * 0.9
        return p

    def roughly(self, points_ref: np.ndarray) -> np.ndarray:
        """Reference points -> patient points without warp and deformation: right to a few mm."""
        return (points_ref - CENTRE) * self.scale @ self.pose.T

    @property
    def _deforms(self) -> bool:
        return bool(self.shift_mm or self.pushes)

    def reference(self, x, y, z) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Patient coordinates that broadcast -> reference coordinates of the skull."""
        r = self.pose.astype(np.float32)
        # the transpose turns back
        u, v, w = (r[0, c] * x + r[1, c] * y + r[2, c] * z for c in range(3))
        out = [u.copy(), v.copy(), w.copy()]
        for (a, b, c), phase, gain in zip(self.waves, self.phases, self.gains, strict=True):
            wave = np.sin(np.float32(a) * u + np.float32(b) * v + np.float32(c) * w + np.float32(phase))
            for t, g in zip(out, gain, strict=True):
                t -= wave * np.float32(g)
        for t, s, c in zip(out, self.scale, CENTRE, strict=True):
            t *= np.float32(1 / s)
            t += np.float32(c)
        return out[0], out[1], out[2]

    def _displacement(self, at_mm, at_ref, depth_mm) -> list[np.ndarray]:
        """How far the brain that now lies at patient points (x, y, z) was displaced (mm)."""
        free = np.clip(depth_mm / np.float32(14), 0, 1)
        out = [np.zeros(np.shape(depth_mm), np.float32) for _ in "xyz"]
        if self.shift_mm:
            out[0] += np.float32(self.shift_mm) * brain.shift_share(*at_ref)
        for push in self.pushes:
            d = [c - np.float32(m) for c, m in zip(at_mm, push.centre_mm, strict=True)]
            r = np.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2) + np.float32(1e-3)
            far = np.exp(-np.maximum(r - push.radius_mm, 0) / np.float32(max(1.3 * push.radius_mm, 10)))
            gain = push.push_mm * np.minimum(r / np.float32(push.radius_mm), 1) * far * free / r
            for t, c in zip(out, d, strict=True):
                t += gain * c
        return out

    # --- fields

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Head) and self._key == other._key

    @cached_property
    def _key(self) -> tuple:
        """What the fields follow from."""
        fluid = (self.atrophy, self.ventricle_scale, self.asymmetry, self.cavum_mm, self.cisterna_mm)
        moved = (self.shift_mm, self.pushes, tuple(id(dent) for dent in self.dents))
        body = (self.pose, self.waves, self.phases, self.gains)
        sizes = (self.scale, self.skull_mm, self.fat_mm, self.face)
        drawn = tuple(values.tobytes() for values in body)
        return self.patient.seed, *sizes, *drawn, *fluid, *moved

    @property
    def bare(self) -> Head:
        """The same skull, before anything changed its brain."""
        return replace(
            self,
            atrophy=0.0,
            ventricle_scale=1.0,
            asymmetry=0.0,
            shift_mm=0.0,
            pushes=(),
            dents=(),
            cavum_mm=0.0,
            cisterna_mm=0.0,
        )

    @property
    def lattice(self) -> Lattice:
        return LATTICE

    @cached_property
    def cranium(self) -> Field:
        """Signed distance to the inner surface of the skull."""
        return _cranium_of(self.bare)[1]

    @cached_property
    def skull_fields(self) -> dict[str, Field]:
        """Signed distances outside the brain (patient mm): skin; the air of maxillary_right, frontal_right
        and left; see head_skull.fields."""
        return _skull_fields_of(self.bare)

    @cached_property
    def fields(self) -> dict[str, Field]:
        """Signed distances of the brain in patient mm, by name: see head_fields.hull_fields and
        deep_fields."""
        return _fields_of(self)

    @cached_property
    def brain_points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reference coordinates of the brain at the points of the lattice."""
        x, y, z = _cranium_of(self.bare)[0]
        if not self._deforms:
            return x, y, z
        axes = self.lattice.grid.axes()
        u = self._displacement(axes, (x, y, z), -self.cranium.values)
        return self.reference(*(c - d for c, d in zip(axes, u, strict=True)))

    @property
    def cortex_mm(self) -> float:
        """Thickness of the cortex."""
        return 2.5 - 0.3 * self.atrophy

    @property
    def gap_mm(self) -> float:
        """Fluid between brain and skull."""
        return 0.9 + 3.0 * self.atrophy

    @property
    def cleft_mm(self) -> float:
        """Half width of a sulcus."""
        return 0.4 + 0.95 * self.atrophy

    @property
    def ventricle_width(self) -> float:
        """Width of the ventricles against those of a young adult."""
        return (1 + 1.3 * self.atrophy) * self.ventricle_scale

    def pial_depth(self, points_mm) -> np.ndarray:
        """How deep points (N, 3) lie below the surface of cerebrum, cerebellum or stem, sulci included; mm,
        negative in the fluid. White matter of the cerebrum begins at `cortex_mm`."""
        values = {name: field.at(points_mm) for name, field in self.fields.items()}
        return np.maximum(np.maximum(pial_depth(self, values), -values["cerebellum"]), -values["stem"])

    def distance(self, name: str, points_mm) -> np.ndarray:
        """Signed distance (mm) of points (N, 3) from a structure: a name of `fields`, or cranium."""
        field = self.cranium if name == "cranium" else self.fields[name]
        return field.at(np.atleast_2d(points_mm))

    # --- places

    def lobe_of(self, point_mm) -> tuple[Side | None, str]:
        """Side and site (as in the schema's BRAIN_MR) of a point in the brain."""
        x, y, z = self.to_reference(point_mm)[0]
        return brain.site_at(float(x), float(y), float(z))

    @cached_property
    def landmarks(self) -> dict[str, np.ndarray]:
        """Points in patient mm: mca_right (its bifurcation), ica_right (its end), maxillary_sinus_right,
        frontal_sinus_right and the same on the left; septum, pineal, sella, basilar_tip."""
        return self._all_to_patient({**brain.LANDMARKS, **skull.landmarks(self.face)})

    @cached_property
    def vessels(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Name -> line (N, 3) in patient mm and radii (mm): mca_right, aca_right, ica_right, pca_right and
        left, basilar; the sinuses and veins: keys of head_brain.VESSELS."""
        lines = self._all_to_patient({name: (p, moves) for name, (p, _, moves) in brain.VESSELS.items()})
        return {
            name: curve(lines[name], np.asarray(radii, float), 5.0)
            for name, (_, radii, _) in brain.VESSELS.items()
        }

    def _all_to_patient(self, points: dict[str, tuple[np.ndarray, bool]]) -> dict[str, np.ndarray]:
        """Reference points by name, and whether they move with the brain -> patient points; a single one
        (3,)."""
        out: dict[str, np.ndarray] = {}
        for deformed in (False, True):
            names = [name for name, (_, moves) in points.items() if moves is deformed]
            at = self.to_patient(np.concatenate([points[name][0] for name in names]), deformed)
            ends = np.cumsum([len(points[name][0]) for name in names])
            out |= dict(zip(names, np.split(at, ends[:-1]), strict=True))
        return {name: p[0] if len(p) == 1 else p for name, p in out.items()}

    def inner_skull(self, direction) -> np.ndarray:
        """Where a ray from the middle of the brain, in this patient direction, meets the inner table."""
        d = np.asarray(direction, float)
        d = d / np.linalg.norm(d)
        start = self.to_patient([(0.0, -18.0, 10.0)], False)[0]
        r = np.arange(20.0, 125.0, 0.5)
        inside = self.cranium.at(start + r[:, None] * d) < 0
        last = int(np.argmin(inside)) if not inside.all() else len(r) - 1
        return start + r[max(last - 1, 0)] * d


def make_head(patient: Patient) -> Head:
    """The head of this patient; the same patient has the same head."""
    rng = np.random.default_rng([patient.seed, 301])
    female = patient.sex is Sex.FEMALE
    # the MNI templates are larger than most; brains of men have 1273 and of women 1131 cm^3 in the mean
    # (Allen et al., Am J Phys Anthropol 2002;118:341)
    size = (0.915 if female else 0.953) * rng.normal(1, 0.022)
    scale = size * rng.normal(1, 0.02, 3)
    turn = np.deg2rad(rng.normal(0, (4.5, 2.0, 3.0)))
    direction = rng.normal(0, 1, (N_WAVES, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    waves = direction * (2 * np.pi / rng.uniform(90, 200, (N_WAVES, 1)))
    old = max(patient.age_years - 25, 0) / 60
    return Head(
        patient=patient,
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        pose=_rotation(*turn),
        waves=waves,
        phases=rng.uniform(0, 2 * np.pi, N_WAVES),
        gains=rng.normal(0, WARP_MM / np.sqrt(N_WAVES / 2), (N_WAVES, 3)),
        skull_mm=float(np.clip(rng.normal(6.8 if female else 6.5, 0.9), 4.8, 9.0)),
        fat_mm=float(np.clip(4.0 + 0.16 * (patient.bmi - 25) + rng.normal(0, 0.7), 2.2, 8.0)),
        face=skull.choose_face(rng),
        atrophy=float(np.clip(0.04 + 0.36 * old**1.4 + rng.normal(0, 0.035), 0, 0.55)),
        asymmetry=float(rng.normal(0.04, 0.06)),
    )


def _rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """About the x axis, then z, then y."""
    cx, sx, cz, sz, cy, sy = (f(t) for t in (pitch, yaw, roll) for f in (np.cos, np.sin))
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return ry @ rz @ rx


def training_grid(spacing_mm: float = 2.0) -> Grid:
    """The grid of training arrays: 96 x 112 x 96 voxels of 2 mm, or as many millimetres in others."""
    i, j, k = (round(extent / spacing_mm) for extent in (192.0, 224.0, 192.0))
    return Grid.centred((i, j, k), (spacing_mm,) * 3)


# Lesions are planted by the fields that are then drawn with: the last few heads' are kept.
@lru_cache(maxsize=2)
def _cranium_of(bare: Head) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Field]:
    """Reference coordinates of the lattice, and the inner surface of the skull."""
    points = bare.reference(*LATTICE.grid.axes())
    return points, everywhere(skull.cranium_mm(bare, *points))


@lru_cache(maxsize=2)
def _skull_fields_of(bare: Head) -> dict[str, Field]:
    return skull.fields(bare)


@lru_cache(maxsize=2)
def _fields_of(head: Head) -> dict[str, Field]:
    return {**hull_fields(head), **deep_fields(head)}


def draw_head(head: Head, lesions: Iterable[Lesion], grid: Grid, decoys: Iterable[Decoy] = ()) -> Tissues:
    """Maps of the head with its lesions on the grid. First all of them change the head, then the anatomy is
    drawn, then they are painted: lesions in their order, then decoys."""
    planted: tuple[Lesion | Decoy, ...] = (*lesions, *decoys)
    for one in planted:
        head = one.change(head)
    maps = draw_anatomy(head, grid)
    canvas = Canvas(head, grid, maps)
    for one in planted:
        one.paint(canvas)
    return maps
