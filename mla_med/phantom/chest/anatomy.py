"""Patient -> Chest: the anatomy of one thorax, as fields and lines; Chest + Grid -> HU.

A Chest is what is true of a body before any scanner: `draw_chest` puts it on any grid, coarse or fine,
whole or a small cube. Lesions alter it (`change`) before it is drawn and paint on the Canvas after.
Coordinates are patient RAS mm: x to the right, y to the front, z up. Knows no findings and no DICOM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mla_med.phantom.chest import abdomen as chest_abdomen
from mla_med.phantom.chest import heart as chest_heart
from mla_med.phantom.chest import lungs as chest_lungs
from mla_med.phantom.chest import spine as chest_spine
from mla_med.phantom.chest import tissue as t
from mla_med.phantom.chest.body import Body, Line
from mla_med.phantom.chest.canvas import Canvas
from mla_med.phantom.chest.draw import draw_anatomy
from mla_med.phantom.chest.frame import ANGLES, HEIGHTS, Frame, Habitus, choose_habitus
from mla_med.phantom.chest.lungs import LOBES, Fissures, Place, Trees, knots_of
from mla_med.phantom.chest.space import Space
from mla_med.phantom.chest.tree import Branch
from mla_med.phantom.chest.wall import Wall
from mla_med.phantom.lattice import Field
from mla_med.phantom.lesion import Decoy, Lesion
from mla_med.phantom.patient import Patient
from mla_med.phantom.shapes import Grid
from mla_med.types import Side


@dataclass(frozen=True, eq=False)
class Chest:
    """One thorax. Lesions change it with dataclasses.replace; what depends on it is derived anew."""

    patient: Patient
    body: Body = field(repr=False)
    enhanced: bool = False
    """Intravenous contrast medium in vessels and organs."""
    heart_scale: float = 1.0
    """Size of the heart against health; 1.3 is cardiomegaly. The cardiothoracic ratio follows."""
    aorta_scale: float = 1.0
    """Calibre of the ascending aorta against that of this patient in health."""
    pericardial_mm: float = 0.0
    """Thickness of fluid around the heart, more of it behind and below."""
    hernia_mm: float = 0.0
    """Diameter of the part of the stomach above the diaphragm."""
    effusion_mm: tuple[float, float] = (0.0, 0.0)
    """Depth of pleural fluid at the back of the right and the left cavity, patient supine."""
    pneumothorax_mm: tuple[float, float] = (0.0, 0.0)
    """Thickness of air before the right and the left lung, patient supine."""
    emphysema: float = 0.0
    """Loss of lung density everywhere: 1 means 60 HU. Holes are painted by the lesion."""
    lung_offset_hu: float = 0.0
    """Added to all aerated lung."""
    marrow_offset_hu: float = 0.0
    """Added to vertebral trabecular bone."""

    @property
    def healthy(self) -> Chest:
        """The same chest without any change."""
        return Chest(self.patient, self.body)

    def _shared(self, name: str, make: Callable[[], Any], *state: float) -> Any:
        """What depends on this state of the chest only, made once for all chests of the body."""
        shapes = self.body.shapes
        key = (name, *state)
        if key not in shapes:
            shapes[key] = make()
        return shapes[key]

    # -- body ---------------------------------------------------------------------------------

    @property
    def habitus(self) -> Habitus:
        return self.body.frame.habitus

    @property
    def frame(self) -> Frame:
        return self.body.frame

    @property
    def space(self) -> Space:
        return self.body.space

    @property
    def wall(self) -> Wall:
        return self.body.wall

    @property
    def surface(self) -> Field:
        """Signed distance to the skin."""
        return self.body.wall.surface

    @property
    def depth(self) -> Field:
        """Depth from the inside of the chest wall in mm: negative in the cavity, ribs at 1 to 9."""
        return self.body.space.depth

    @property
    def diaphragm(self) -> Field:
        """Signed distance to the diaphragm, positive above it."""
        return self.body.diaphragm

    # -- bones --------------------------------------------------------------------------------

    @property
    def ribs(self) -> dict[tuple[Side, int], np.ndarray]:
        """(side, 1 to 12) -> middle line of the bony rib from back to front, (N, 3)."""
        return self.body.wall.ribs

    @property
    def sternum(self) -> np.ndarray:
        """Middle line from the jugular notch downwards, (N, 3)."""
        return self.body.wall.sternum

    @cached_property
    def vertebrae(self) -> dict[str, np.ndarray]:
        """C7, T1 to T12, L1 to L3 -> middle of the body (3,)."""
        names, ref = zip(*chest_spine.centres().items(), strict=True)
        return dict(zip(names, self.frame.to_patient(np.array(ref)), strict=True))

    # -- heart and vessels --------------------------------------------------------------------

    @property
    def chambers(self) -> dict[str, Field]:
        """left/right ventricle, left/right atrium, base, outflow, root: outer surfaces."""
        return self._shared(
            "chambers",
            lambda: chest_heart.chambers(self.space, self.heart_scale, self.body.floor),
            self.heart_scale,
        )

    @property
    def cardiothoracic_ratio(self) -> float:
        """Greatest width of the heart over that of the lungs, both with what lies between them; above 0.5
        in cardiomegaly (Danzer, Am J Med Sci 1919;157:513)."""

        def width(values: np.ndarray) -> int:
            columns = np.flatnonzero((values < 0).any(axis=(1, 2)))
            return int(columns[-1] - columns[0])

        return width(self.pericardium.values) / width(np.minimum(*self.healthy.cavities))

    @property
    def heart(self) -> Field:
        """The heart itself: all chambers as one shape."""
        return self._shared("heart", lambda: chest_heart.heart(self.chambers), self.heart_scale)

    @property
    def pericardium(self) -> Field:
        """The sac: heart, epicardial fat and what fluid there is."""
        return self._shared(
            "sac",
            lambda: chest_heart.sac(
                self.space, self.chambers, self.pericardial_mm, self.habitus.visceral, self.body.floor
            ),
            self.heart_scale,
            self.pericardial_mm,
        )

    @cached_property
    def aorta_line(self) -> Line:
        """Root, ascending aorta, arch, descending aorta; points and radii (of the wall's outside)."""
        knots = np.array([k[0] for k in chest_heart.AORTA], float)
        radii = np.array([k[1] for k in chest_heart.AORTA], float)
        # grows with age, wider and longer (Agmon 2003)
        radii *= 1 + 0.0035 * (self.patient.age_years - 55) + 0.06 * (self.body.dice[0] - 0.5)
        knots[3:8, 2] += 0.10 * (self.patient.age_years - 50)
        wide = np.interp(np.arange(len(radii)), [0, 1, 2, 3, 5, 7], [1, 1, 1, 0.9, 0.35, 0])
        radii *= 1 + (self.aorta_scale - 1) * wide
        if self.aorta_scale > 1:
            knots[1:4] += np.array((4.0, 4.0, 0.0)) * (self.aorta_scale - 1)
        return self.space.line(knots, radii, 6.0)

    @cached_property
    def ascending_aorta(self) -> Line:
        """The part of `aorta_line` from the root to the arch."""
        points, radii = self.aorta_line
        top = int(np.argmax(points[:, 2]))
        return points[: max(top - 1, 3)], radii[: max(top - 1, 3)]

    @cached_property
    def aorta(self) -> Field:
        return self.space.tube(*self.aorta_line, reach_mm=10.0)

    @property
    def vessels(self) -> dict[str, Line]:
        """Great vessels by name: branches of the arch, veins, pulmonary arteries and veins to the hila."""
        return self.body.vessels

    @cached_property
    def coronaries(self) -> dict[str, np.ndarray]:
        """left main, left anterior descending, circumflex, right -> points (N, 3) in the epicardial fat."""
        anchor = np.array(chest_heart.HEART_ANCHOR)
        lowered = chest_heart.lowered_mm(self.habitus.dome_mm)
        out = {}
        for name, knots in chest_heart.CORONARIES.items():
            ref = anchor + (np.array(knots, float) - anchor) * self.heart_scale
            ref[:, 2] -= lowered * np.clip(-ref[:, 2] / 25, 0, 1)
            points, _ = self.space.line(ref, np.ones(len(ref)), 3.0)
            out[name] = _onto(points, self.heart, 1.6)
        return out

    @property
    def oesophagus(self) -> Line:
        return self.body.oesophagus

    @cached_property
    def hernia(self) -> Line | None:
        """The herniated stomach as a tube upwards from the hiatus, None in health."""
        if self.hernia_mm <= 0:
            return None
        r = self.hernia_mm / 2 / self.frame.size
        x, y, z = chest_heart.HIATUS
        knots = [(x, y, z - 4), (x + 4, y - 3, z + 0.5 * r), (x + 5, y - 5, z + 1.1 * r)]
        return self.space.line(knots, [0.75 * r, 0.96 * r, r], 6.0)

    # -- lungs --------------------------------------------------------------------------------

    @property
    def cavities(self) -> tuple[np.ndarray, np.ndarray]:
        """Signed distances of the right and the left pleural cavity on the whole lattice."""
        state = (self.heart_scale, self.aorta_scale, self.pericardial_mm, self.hernia_mm)
        return self._shared("cavities", self._make_cavities, *state)

    def _make_cavities(self) -> tuple[np.ndarray, np.ndarray]:
        tubes = [self.aorta_line, self.oesophagus, *chest_heart.spine_tubes(self.space)]
        tubes += [self.vessels[name] for name in _BETWEEN_THE_LUNGS]
        tubes += [self.space.line(*knots_of(k), step_mm=8.0) for k in _CENTRAL_AIRWAYS]
        if self.hernia is not None:
            tubes.append(self.hernia)
        middle = chest_heart.mediastinum(self.space, self.pericardium, tubes, 0.5 * self.habitus.visceral)
        return chest_lungs.pleural_cavities(self.space, self.body.floor, middle)

    @property
    def pleura(self) -> dict[Side, Field]:
        """Pleural cavity of each side: lung, and what air or fluid lies beside it."""
        state = (self.heart_scale, self.aorta_scale, self.pericardial_mm, self.hernia_mm)
        return self._shared("pleura", self._make_pleura, *state)

    def _make_pleura(self) -> dict[Side, Field]:
        lattice = self.space.lattice
        return {
            side: lattice.field(values, lattice.everywhere, 8.0)
            for side, values in zip((Side.RIGHT, Side.LEFT), self.cavities, strict=True)
        }

    @cached_property
    def lungs(self) -> dict[Side, Field]:
        """The aerated lung of each side: the cavity less pneumothorax and effusion."""
        out = dict(self.pleura)
        for n, side in enumerate((Side.RIGHT, Side.LEFT)):
            if self.effusion_mm[n] <= 0 and self.pneumothorax_mm[n] <= 0:
                continue
            cavity = self.cavities[n]
            values = cavity
            if self.effusion_mm[n] > 0:
                values = np.maximum(values, -self.fluid_level(n))
            if self.pneumothorax_mm[n] > 0:
                _, y, z = self.space.ref
                front = np.clip((y + 70) / 110, 0.08, 1) * np.clip((z + 130) / 180, 0.5, 1.1)
                values = np.maximum(values, cavity + np.float32(self.pneumothorax_mm[n]) * front)
            out[side] = self.space.lattice.field(
                values.astype(np.float32), self.space.lattice.everywhere, 8.0
            )
        return out

    @cached_property
    def fluid(self) -> dict[Side, Field]:
        """Distance in front of the surface of the pleural fluid of each side that has some, mm."""
        return {
            side: Field(self.space.lattice, self.fluid_level(n), (0, 0, 0))
            for n, side in enumerate((Side.RIGHT, Side.LEFT))
            if self.effusion_mm[n] > 0
        }

    def fluid_level(self, n: int) -> np.ndarray:
        """Distance in front of the surface of the fluid, on the lattice, mm."""
        x, y, z = self.space.ref
        # it climbs at the side by its meniscus and thins out upwards
        back = -104.0 + 0.10 * np.clip(z + 40, 0, 200)
        climb = 0.10 * np.clip(np.abs(x) - 70, 0, 80)
        fall = 0.28 * np.clip(z + 60, 0, 260)
        if self.pneumothorax_mm[n] > 0:
            # under air it is flat
            climb, fall = 0 * climb, 0 * fall
        level = back + self.effusion_mm[n] / self.frame.habitus.scale[1] + climb - fall
        return ((y - level) * self.space.size).astype(np.float32)

    @property
    def fissures(self) -> Fissures:
        return self.body.fissures

    def lobe_of(self, points_mm) -> np.ndarray:
        """Points (N, 3) -> index into chest_lungs.LOBES of the lobe that each lies in, (N,); a point
        outside the lungs gets the lobe of its side that it would lie in."""
        ref = self.frame.to_reference(points_mm)
        return self.fissures.lobe(*ref.T)

    def place_of(self, point_mm) -> Place:
        """(side, site) of one point, as the schema has it."""
        return LOBES[int(self.lobe_of(np.asarray(point_mm, float)[None])[0])]

    def fissure_distance_mm(self, points_mm) -> np.ndarray:
        """Distance of points (N, 3) to the nearest fissure of their lung, (N,)."""
        ref = self.frame.to_reference(points_mm)
        return self.fissures.distance(*ref.T) * self.frame.size

    @property
    def trees(self) -> Trees:
        """Bronchi and vessels, as they grew in the healthy lung."""
        return self._shared("trees", self._grow_trees)

    def _grow_trees(self) -> Trees:
        rng = np.random.default_rng([self.patient.seed, 113])
        return chest_lungs.grow_trees(self.space, self.healthy.cavities, self.fissures, rng)

    @property
    def airways(self) -> tuple[Branch, ...]:
        """Trachea, main, lobar and smaller bronchi; radii of the lumen."""
        return self.trees.airways

    @property
    def arteries(self) -> tuple[Branch, ...]:
        """Pulmonary arteries from the hila outwards, beside the bronchi."""
        return self.trees.arteries

    @property
    def veins(self) -> tuple[Branch, ...]:
        """Pulmonary veins; points run from the hilum outwards too."""
        return self.trees.veins

    # -- below the diaphragm ------------------------------------------------------------------

    @property
    def organs(self) -> dict[str, Field]:
        """liver, spleen, stomach, gallbladder, right/left kidney, colon, pancreas."""
        return self.body.organs

    @property
    def adrenals(self) -> dict[str, list[Line]]:
        """adrenal_right, adrenal_left -> thin tubes."""
        return self.body.adrenals

    @cached_property
    def thyroid(self) -> dict[Side, Line]:
        out = {}
        for side, sign in ((Side.RIGHT, 1.0), (Side.LEFT, -1.0)):
            ref = [(sign * 15, -17, 112), (sign * 18, -19, 124), (sign * 19, -22, 138), (sign * 18, -24, 152)]
            out[side] = self.space.line(ref, [5.5, 8.5, 8.0, 4.0], 5.0)
        return out

    # -- places -------------------------------------------------------------------------------

    @cached_property
    def landmarks(self) -> dict[str, np.ndarray]:
        """carina, hilum_right/left, oesophageal_hiatus, thyroid_right/left, adrenal_right/left,
        axilla_right/left, liver_centre, spleen_centre, apex_right/left, nipple_right/left, heart_centre,
        aortic_root, aortic_arch, dome_right/left, svc, right_atrium, right_ventricle (its apex),
        subclavian_right/left (veins), pectoral_right/left (front of the muscle); each (3,)."""
        right, left = self.habitus.dome_mm
        down = chest_heart.lowered_mm(self.habitus.dome_mm)
        ref = {
            "carina": chest_lungs.CARINA,
            "hilum_right": (42.0, -26.0, 18.0),
            "hilum_left": (-45.0, -30.0, 20.0),
            "oesophageal_hiatus": chest_heart.HIATUS,
            "thyroid_right": (18.0, -20.0, 130.0),
            "thyroid_left": (-18.0, -20.0, 130.0),
            **chest_abdomen.ADRENALS,
            "liver_centre": (62.0, 8.0, right - 45),
            "spleen_centre": (-97.0, -44.0, left - 38),
            "apex_right": (40.0, -34.0, chest_lungs.APEX_REF[0]),
            "apex_left": (-40.0, -34.0, chest_lungs.APEX_REF[1]),
            "heart_centre": (-10.0, 14.0, -28.0 - 0.4 * down),
            "aortic_root": (0.0, 6.0, 4.0),
            "aortic_arch": (-11.0, -13.0, 75.0),
            "dome_right": (62.0, 4.0, right),
            "dome_left": (-66.0, 4.0, left),
            "svc": (35.0, 0.0, 40.0),
            "right_atrium": (27.6, 8.0, -18.0 - 0.35 * down),
            "right_ventricle": (-38.0, 50.0, -50.0 - 0.6 * down),
            "subclavian_right": (66.0, -4.0, 106.0),
            "subclavian_left": (-66.0, -4.0, 106.0),
        }
        points = self.frame.to_patient(np.array(list(ref.values()), float))
        out = dict(zip(ref, points, strict=True))
        for side, sign in ((Side.RIGHT, 1.0), (Side.LEFT, -1.0)):
            out[f"axilla_{side.value}"] = self.frame.on_wall(88.0, 62.0, 26.0, sign)[0]
            out[f"nipple_{side.value}"] = self.wall.nipple(side)
            front = self.frame.maps["pectoralis major>"].reshape(len(ANGLES), len(HEIGHTS))
            depth = float(front[(45 * 2), int(60 - HEIGHTS[0])]) + 4
            out[f"pectoral_{side.value}"] = self.frame.on_wall(45.0, 60.0, depth, sign)[0]
        return out

    @cached_property
    def z_range_mm(self) -> tuple[float, float]:
        """Lowest and highest z of the lungs."""
        inside = (np.minimum(*self.healthy.cavities) < 0).any(axis=(0, 1))
        hits = np.flatnonzero(inside)
        grid = self.space.lattice.grid
        low, high = (grid.origin_mm[2] + grid.spacing_mm[2] * hits[[0, -1]]).tolist()
        return low, high

    @property
    def lung_hu(self) -> float:
        """Aerated lung in the middle of the chest, before texture and vessels."""
        years = self.patient.age_years - 55
        between = 40 * (self.body.dice[8] - 0.5)
        return t.LUNG - 0.25 * years - 60 * self.emphysema + between + self.lung_offset_hu

    @cached_property
    def tissue_hu(self) -> dict[str, float]:
        """fat, muscle, liver, spleen of this patient: they differ between people by 5, 8, 8 and 4 HU, muscle
        falls with age and weight (Aubrey, Acta Physiol 2014;210:489), one liver in seven is fatty."""
        patient, bright = self.patient, 1.0 if self.enhanced else 0.0
        fat, muscle, liver, spleen = (np.sqrt(12) * (self.body.dice[n] - 0.5) for n in (9, 10, 6, 11))
        weak = 0.16 * (patient.age_years - 50) + 0.5 * (patient.bmi - 25)
        fatty = 22.0 if self.body.dice[7] < 0.15 else 0.0
        return {
            "fat": t.FAT + 5.0 * fat,
            "muscle": t.MUSCLE + float(np.clip(7.0 * muscle - weak, -26, 14)) + 8 * bright,
            "liver": t.LIVER + 5.0 * liver + 3.0 * spleen - fatty + 50 * bright,
            "spleen": t.SPLEEN + 4.0 * spleen + 70 * bright,
        }

    @cached_property
    def blood_hu(self) -> dict[str, float]:
        """HU of blood: arteries, veins (systemic), cava (superior), pulmonary, left (heart)."""
        dice = self.body.dice
        plain = t.BLOOD + 8 * (dice[1] - 0.5)
        if not self.enhanced:
            return dict.fromkeys(("arteries", "veins", "cava", "pulmonary", "left"), plain)
        # from a pulmonary to a late venous phase
        early = dice[2]
        return {
            "arteries": 165 + 120 * early + 40 * dice[3],
            "left": 170 + 120 * early + 40 * dice[3],
            "pulmonary": 170 + 190 * early + 40 * dice[4],
            "cava": 180 + 330 * early,
            "veins": 60 + 90 * (1 - early),
        }


_BETWEEN_THE_LUNGS = (
    "superior vena cava", "right brachiocephalic vein", "brachiocephalic artery", "pulmonary trunk",
    "right pulmonary artery", "left pulmonary artery", "inferior vena cava", "azygos vein",
    "left brachiocephalic vein", "left carotid artery", "left subclavian artery",
)  # fmt: skip
_CENTRAL_AIRWAYS = (
    chest_lungs.TRACHEA,
    *chest_lungs.MAIN.values(),
    chest_lungs.INTERMEDIUS,
)


def _onto(points: np.ndarray, surface: Field, above_mm: float) -> np.ndarray:
    """Points moved along the gradient of a field to `above_mm` outside of it."""
    step = 2.0
    for _ in range(3):
        d = surface.at(points)
        grad = np.stack(
            [surface.at(points + step * e) - surface.at(points - step * e) for e in np.eye(3)], axis=1
        )
        norm = np.linalg.norm(grad, axis=1, keepdims=True)
        grad = grad / np.maximum(norm, 1e-3)
        points = points - np.clip(d - above_mm, -8, 8)[:, None] * grad
    return points


def make_chest(patient: Patient) -> Chest:
    """The healthy chest of a patient; the same seed gives the same chest."""
    rng = np.random.default_rng([patient.seed, 111])
    habitus = choose_habitus(patient, rng)
    frame = Frame.make(habitus, rng)
    body = Body(patient, frame, Fissures.make(rng), rng.random(64))
    hyperinflated = 0.35 if "copd" in patient.history else 0.0
    return Chest(patient, body, enhanced=bool(rng.random() < 0.3), emphysema=hyperinflated)


def draw_chest(
    chest: Chest, lesions: Sequence[Lesion], grid: Grid, decoys: Sequence[Decoy] = ()
) -> np.ndarray:
    """-> HU float32 (I, J, K) of the body in air: changes first, then the anatomy, then what is painted."""
    everything: tuple[Lesion | Decoy, ...] = (*lesions, *decoys)
    for planted in everything:
        chest = planted.change(chest)
    hu = draw_anatomy(chest, grid)
    canvas = Canvas(hu, grid, chest)
    for planted in everything:
        planted.paint(canvas)
    return hu
