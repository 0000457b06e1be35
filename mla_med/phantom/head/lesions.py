"""Head + finding codes -> lesions planted in it, each with its finding, its true box and its picture.

What takes room is planned first and displaces the head; then everything is shaped within the displaced head.
What follows from another finding (mass effect, midline shift, oedema, enhancement) is planted with it.
Knows no scanner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mla_med.phantom.head import diffuse, focal
from mla_med.phantom.head.anatomy import Head
from mla_med.phantom.head.decoys import choose_decoys
from mla_med.phantom.head.room import Room
from mla_med.phantom.lesion import Lesion

__all__ = ["FOLLOWING", "choose_decoys", "plant", "regrow"]

_ORDER = (
    "atrophy", "hydrocephalus", "mass_effect", "midline_shift", "white_matter_hyperintensity",
    "chronic_infarct", "acute_infarct", "oedema", "brain_mass", "abnormal_enhancement", "haemorrhage",
    "microbleeds", "extra_axial_collection", "aneurysm", "sinus_disease",
)  # fmt: skip
"""What changes the head first, then what lies deepest in the picture; the last is painted over the others."""
FOLLOWING = ("mass_effect", "midline_shift", "oedema", "abnormal_enhancement")
"""Codes that another finding brings."""


def plant(head: Head, codes: Iterable[str], rng: np.random.Generator) -> tuple[Lesion, ...]:
    """Lesions for these codes at legal places, in the order in which they are to be painted. A code that
    follows from another finding comes with that; asked for, it brings a mass that causes it."""
    codes = tuple(codes)
    assert set(codes) <= set(_ORDER), f"no lesion for {sorted(set(codes) - set(_ORDER))}"
    following = [code for code in codes if code in FOLLOWING]
    room = Room(head, rng)
    if "atrophy" in codes:
        room.add([diffuse.atrophy(room)])
    if "hydrocephalus" in codes:
        room.add([diffuse.hydrocephalus(room, "atrophy" in codes)])
    artery = diffuse.choose_artery(room) if "aneurysm" in codes else None
    plans = _plan(room, codes, bool(following))
    before = room.head
    room.add(focal.effects(room.head, plans, "midline_shift" in codes))
    for planned in plans:
        if planned.code != "extra_axial_collection":
            room.add(focal.build(room, planned, before))
    if "white_matter_hyperintensity" in codes:
        room.add([diffuse.white_matter(room)])
    if "microbleeds" in codes:
        room.add([diffuse.microbleeds(room)])
    if artery is not None:
        room.add([diffuse.aneurysm(room, *artery)])
    if "sinus_disease" in codes:
        room.add(diffuse.sinus_disease(room))
    lesions = [diffuse.boxed(lesion, room.head) for lesion in room.lesions]
    return tuple(sorted(lesions, key=lambda lesion: _ORDER.index(lesion.finding.code)))


def regrow(lesion: Lesion, factor: float) -> Lesion:
    """The lesion at `factor` times its size at the same place; as it is, where it has no size."""
    return lesion if lesion.regrown is None else lesion.regrown(factor)


def _plan(room: Room, codes: Sequence[str], bringing: bool) -> list[focal.Plan]:
    """What takes room; `bringing`: the first mass has to bring all that can follow from one."""
    plans = []
    if "extra_axial_collection" in codes:
        planned, lesion = diffuse.plan_collection(room, room.head.cranium)
        room.add([lesion])
        plans.append(planned)
    wanted = [
        code for code in ("brain_mass", "haemorrhage", "acute_infarct", "chronic_infarct") if code in codes
    ]
    if bringing:
        plans.append(focal.plan(room, "brain_mass", bringing=True))
        wanted = [code for code in wanted if code != "brain_mass"]
    return plans + [focal.plan(room, code) for code in wanted]
