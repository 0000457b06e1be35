"""Patient + Frame -> Body: what of a chest no lesion changes: wall, spine, diaphragm, organs, vessels.

Everything is derived when it is first asked for, and once. Knows no voxels and no HU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mla_med.phantom.chest import abdomen as chest_abdomen
from mla_med.phantom.chest import heart as chest_heart
from mla_med.phantom.chest import lungs as chest_lungs
from mla_med.phantom.chest.frame import Frame
from mla_med.phantom.chest.lungs import Fissures, knots_of
from mla_med.phantom.chest.space import Space
from mla_med.phantom.chest.wall import Wall
from mla_med.phantom.lattice import Field, Texture
from mla_med.phantom.patient import Patient

Line = tuple[np.ndarray, np.ndarray]
"""Points (N, 3) in patient mm and radii (N,)."""


@dataclass(frozen=True, eq=False)
class Body:
    """What lesions do not change: the frame, the wall, the spine, the trees of the healthy lung."""

    patient: Patient
    frame: Frame
    fissures: Fissures
    dice: np.ndarray
    """(64,) uniform random numbers: small differences between bodies."""

    @cached_property
    def space(self) -> Space:
        return Space.over(self.frame)

    @cached_property
    def wall(self) -> Wall:
        return Wall(self.space)

    @cached_property
    def floor(self) -> np.ndarray:
        """Signed distance above the diaphragm on the lattice."""
        return chest_lungs.diaphragm(self.space, self.frame.habitus)

    @cached_property
    def diaphragm(self) -> Field:
        return Field(self.space.lattice, self.floor, (0, 0, 0))

    @cached_property
    def organs(self) -> dict[str, Field]:
        return chest_abdomen.organs(self.space, self.floor, self.frame.habitus.dome_mm)

    @cached_property
    def shapes(self) -> dict[tuple, Any]:
        """What was derived for each state of heart, aorta and hernia: see Chest._shared."""
        return {}

    @cached_property
    def vessels(self) -> dict[str, Line]:
        groups = (
            chest_heart.ARCH_BRANCHES, chest_heart.VEINS, chest_heart.PULMONARY, chest_heart.PULMONARY_VEINS,
        )  # fmt: skip
        return {
            name: self.space.line(*knots_of(knots), 6.0) for group in groups for name, knots in group.items()
        }

    @cached_property
    def oesophagus(self) -> Line:
        return self.space.line(*knots_of(chest_heart.OESOPHAGUS), 8.0)

    @cached_property
    def adrenals(self) -> dict[str, list[Line]]:
        return chest_abdomen.adrenal_lines(self.space)

    @cached_property
    def crura(self) -> list[Line]:
        return chest_abdomen.crura(self.space)

    @cached_property
    def liver_veins(self) -> list[Line]:
        return chest_abdomen.liver_veins(self.space, self.frame.habitus.dome_mm[0])

    @cached_property
    def nodes(self) -> list[Line]:
        """Normal lymph nodes, short axis below 8 mm, in the mediastinum and the axillae."""
        rng = np.random.default_rng([self.patient.seed, 115])
        middles = self.frame.to_patient(np.array(chest_heart.NODES, float))
        angles, heights = rng.uniform(76, 98, 8), rng.uniform(40, 78, 8)
        axillary = [
            self.frame.on_wall(a, z, d, side)[0]
            for a, z, d, side in zip(angles, heights, rng.uniform(20, 34, 8), (1, -1) * 4, strict=True)
        ]
        out = []
        for middle in (*middles, *axillary):
            if rng.random() < 0.75:
                at = middle + rng.normal(0, 1.5, 3)
                way = rng.normal(0, 1, 3) * (1, 1, 0.5)
                way *= rng.uniform(1.0, 3.0) / np.linalg.norm(way)
                out.append((np.stack([at - way, at + way]), np.full(2, rng.uniform(1.4, 3.4))))
        return out

    @cached_property
    def thymus(self) -> list[Line]:
        return [self.space.line(*knots_of(lobe), 6.0) for lobe in chest_heart.THYMUS]

    @cached_property
    def textures(self) -> dict[str, Texture]:
        rng = np.random.default_rng([self.patient.seed, 114])
        return {
            "fine": Texture.make(rng, 0.8, 64),
            "grain": Texture.make(rng, 2.6, 64),
            "coarse": Texture.make(rng, 9.0, 48),
        }
