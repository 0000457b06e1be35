"""Chest + codes -> lesions planted in it: what a radiologist should say of this chest, and how it is drawn.

Each lesion knows its code, side, site, size and box in patient mm before it is drawn, so the truth is exact.
They come back in the order in which they have to be drawn. Knows no scanner and no report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mla_med.errors import ConfigError
from mla_med.phantom.chest import lesions_body as body
from mla_med.phantom.chest import lesions_diffuse as diffuse
from mla_med.phantom.chest import lesions_heart as heart
from mla_med.phantom.chest import lesions_lung as lung
from mla_med.phantom.chest import lesions_material as material
from mla_med.phantom.chest import lesions_pleura as pleura
from mla_med.phantom.chest.anatomy import Chest
from mla_med.phantom.chest.room import Room
from mla_med.phantom.lesion import Lesion

Maker = Callable[[Room, np.random.Generator], Lesion]

# Changed organs first, so that the rest finds its place in what they leave; then what is everywhere in the
# lung, then what lies in it, then the rest of the body.
MAKERS: dict[str, Maker] = {
    "pulmonary_embolism": heart.pulmonary_embolism,
    "cardiomegaly": heart.cardiomegaly,
    "pericardial_effusion": heart.pericardial_effusion,
    "aortic_aneurysm": heart.aortic_aneurysm,
    "hiatal_hernia": body.hiatal_hernia,
    "pleural_effusion": pleura.pleural_effusion,
    "pneumothorax": pleura.pneumothorax,
    "emphysema": diffuse.emphysema,
    "mosaic_attenuation": diffuse.mosaic,
    "septal_thickening": diffuse.septal_thickening,
    "lung_mass": lung.mass,
    "consolidation": lung.consolidation,
    "ground_glass_opacity": lung.ground_glass,
    "atelectasis": lung.atelectasis,
    "fibrotic_sequela": diffuse.fibrotic_sequela,
    "peribronchial_thickening": diffuse.peribronchial_thickening,
    "bronchiectasis": diffuse.bronchiectasis,
    "lung_nodule": lung.nodule,
    "lymphadenopathy": body.lymphadenopathy,
    "thyroid_nodule": body.thyroid_nodule,
    "adrenal_lesion": body.adrenal_lesion,
    "liver_lesion": body.liver_lesion,
    "fracture": body.fracture,
    "coronary_calcification": heart.coronary_calcification,
    "arterial_wall_calcification": heart.arterial_wall_calcification,
    "medical_material": material.medical_material,
}
"""One for each code of report.schema.CHEST_CT, in the order of drawing."""

CHANGING = (
    "pulmonary_embolism", "cardiomegaly", "pericardial_effusion", "aortic_aneurysm", "hiatal_hernia",
    "pleural_effusion", "pneumothorax",
)  # fmt: skip
"""Codes that change the anatomy."""


def plant(chest: Chest, codes: Sequence[str], rng: np.random.Generator) -> tuple[Lesion, ...]:
    """One lesion for each code, which may repeat, at random legal places that keep apart."""
    unknown = sorted(set(codes) - set(MAKERS))
    if unknown:
        raise ConfigError(
            f"No lesion '{unknown[0]}' in a chest; there are: {', '.join(MAKERS)}.", code="CODE_UNKNOWN"
        )
    order = list(MAKERS)
    lesions: list[Lesion] = []
    room = Room.empty(chest)
    for code in sorted(codes, key=order.index):
        if code not in CHANGING and not len(room.points_mm):
            room = Room.of(room.chest, rng, room.used)
        lesion = MAKERS[code](room, rng)
        room.chest = lesion.change(room.chest)
        lesions.append(lesion)
    return tuple(lesions)


def regrow(lesion: Lesion, factor: float) -> Lesion:
    """The same lesion at its place, `factor` times as large, in whole mm; unchanged if it has no size."""
    return lesion if lesion.regrown is None else lesion.regrown(factor)
