"""Room -> focal lesions of the brain: infarcts, haemorrhage, mass and what these bring with them.

Lesions that take room are planned first, then the head is displaced by all of them together, then each is
shaped within the displaced head. What a lesion brings (oedema, enhancement, mass effect, midline shift) is a
lesion of its own, with its own finding and its own share of the picture. Knows no scanner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from mla_med.phantom.head.anatomy import Canvas, Head, Push, Tissue
from mla_med.phantom.head.blobs import Blob, Shape, Waves, Wedge, ball, cut, fit, grow, lumpy, turned
from mla_med.phantom.head.room import LOBES, Room, Spot, commonest, pick
from mla_med.phantom.head.tissues import TISSUES
from mla_med.phantom.lattice import Slices, Texture
from mla_med.phantom.lesion import Lesion, Paint
from mla_med.phantom.shapes import point, soft
from mla_med.types import Box, Finding, Side

# Signal of blood by age: Bradley, Radiology 1993;189:15.
ACUTE_BLOOD = Tissue(pd=0.82, t1_ms=1350, t2_ms=40, t2star_ms=9, adc=0.55, chi=1.0)
EARLY_BLOOD = Tissue(pd=0.82, t1_ms=430, t2_ms=44, t2star_ms=9, adc=0.6, chi=1.0)
LATE_BLOOD = Tissue(pd=0.92, t1_ms=400, t2_ms=210, t2star_ms=32, adc=0.75, chi=0.6)
HAEMOSIDERIN = Tissue(pd=0.6, t1_ms=1100, t2_ms=36, t2star_ms=6, adc=0.7, chi=1.0)
CSF = Tissue(water=1.0)

SOLID = Tissue(pd=0.86, t1_ms=1450, t2_ms=130, t2star_ms=55, adc=1.0)
CELLULAR = Tissue(pd=0.82, t1_ms=1350, t2_ms=96, t2star_ms=50, adc=0.58)
NECROSIS = Tissue(pd=0.96, t1_ms=2600, t2_ms=340, t2star_ms=90, adc=2.1)
PUS = Tissue(pd=0.95, t1_ms=2200, t2_ms=260, t2star_ms=80, adc=0.42)
LOW_GRADE = Tissue(pd=0.90, t1_ms=1650, t2_ms=200, t2star_ms=70, adc=1.4)


@dataclass(frozen=True, slots=True)
class Plan:
    """A lesion that takes room, before it has a shape."""

    code: str
    kind: str
    spot: Spot
    size_mm: float

    @property
    def shift_mm(self) -> float:
        """How far it would shift the midline, positive to the right: away from its side."""
        start, share = _SHIFTS[self.code]
        if self.spot.side is None or self.spot.site == "cerebellum":
            return 0.0
        sign = -1 if self.spot.side is Side.RIGHT else 1
        return sign * share * max(0.0, self.size_mm - start)


_SHIFTS = {
    **{"acute_infarct": (48.0, 0.15), "haemorrhage": (24.0, 0.22), "brain_mass": (24.0, 0.25)},
    **{"extra_axial_collection": (7.0, 0.55), "chronic_infarct": (1e3, 0.0)},
}
"""Size from which a lesion shifts the midline, and mm of shift for each mm beyond it."""
_PUSHES = {"acute_infarct": 55.0, "haemorrhage": 28.0, "brain_mass": 28.0}
"""Size from which a lesion has a mass effect."""
SHIFTED_MM = 3.0
"""A smaller shift is not planted."""
PERIFOCAL = frozenset((*LOBES, "cerebellum"))
"""Where the schema lets oedema be."""


def plan(room: Room, code: str, bringing: bool = False) -> Plan:
    """Kind, place and size of a focal lesion. `bringing`: so large, and such, that it brings all that a mass
    can bring."""
    for _ in range(8):
        planned, middle, radius = _planned(room, code, bringing)
        if all(np.linalg.norm(middle - c) > 0.9 * (radius + r) for c, r in room.taken):
            break
    room.taken.append((middle, radius))
    return planned


def _planned(room: Room, code: str, bringing: bool) -> tuple[Plan, np.ndarray, float]:
    """-> the plan, and the ball that it takes up."""
    kind, sites, (low, high) = _CHOICES[code](room)
    if bringing:
        kind, sites, low, high = "ring", _LOBAR, 44, 56
    size = float(room.rng.integers(low, high + 1))
    surface = kind in ("territory", "cortical")
    depth = (2.5, 9.0) if surface else (min(size / 3, 14.0) + 2, 90.0)
    clear = float(np.clip(size / 4, 3, 9))
    spot = room.spot(sites, size / 2 * (0.5 if surface else 1.0), depth, clear)
    size = min(size, float(_MOST.get(spot.site, 99)))
    planned = Plan(code, kind, spot, size)
    if kind == "territory":
        # it hangs below the surface
        return planned, spot.centre_mm - size / 2 * _outwards(room, spot), 0.42 * size
    return planned, spot.centre_mm, size / 2


_MOST = {"brainstem": 18, "thalamus": 26, "basal_ganglia": 42, "cerebellum": 42}
"""Largest lesion of a small site (mm)."""
_LOBAR = dict(zip(LOBES, (0.36, 0.26, 0.24, 0.14), strict=True))


def _choose_infarct(room: Room) -> tuple[str, dict[str, float], tuple[int, int]]:
    kind = pick(room.rng, ("territory", "cortical", "lacune"), (0.45, 0.2, 0.35))
    if kind == "lacune":
        sites = {"basal_ganglia": 0.36, "thalamus": 0.24, "brainstem": 0.2, "parietal_lobe": 0.1}
        return kind, sites | {"frontal_lobe": 0.1}, (6, 14)
    sites = {name: 0.85 * share for name, share in _LOBAR.items()} | {"cerebellum": 0.15}
    return kind, sites, (28, 74) if kind == "territory" else (12, 28)


def _choose_haemorrhage(room: Room) -> tuple[str, dict[str, float], tuple[int, int]]:
    """Hypertensive haemorrhage lies deep, others in a lobe."""
    kind = pick(room.rng, ("acute", "early", "late"), (0.4, 0.3, 0.3))
    deep = {"basal_ganglia": 0.42, "thalamus": 0.2, "cerebellum": 0.1, "brainstem": 0.08}
    share = 0.25 if "hypertension" in room.head.patient.history else 1.4
    return kind, deep | {name: share * odds for name, odds in _LOBAR.items()}, (10, 56)


def _choose_mass(room: Room) -> tuple[str, dict[str, float], tuple[int, int]]:
    known, rng = room.head.patient.history, room.rng
    if "infection" in known and rng.random() < 0.6:
        kind = "abscess"
    elif "cancer" in known:
        kind = pick(rng, ("ring", "solid"), (0.55, 0.45))
    else:
        kind = pick(rng, ("glioblastoma", "low_grade", "lymphoma", "ring"), (0.45, 0.25, 0.12, 0.18))
    sizes = {"abscess": (14, 40), "ring": (12, 44), "solid": (8, 30), "glioblastoma": (26, 64)}
    sites = _LOBAR | {"cerebellum": 0.2 if kind in ("ring", "solid") else 0.04}
    if kind in ("glioblastoma", "lymphoma", "low_grade"):
        sites |= {"basal_ganglia": 0.1, "thalamus": 0.08}
    if kind == "low_grade":
        sites |= {"brainstem": 0.08}
    return kind, sites, sizes.get(kind, (16, 50))


_CHOICES = {
    "acute_infarct": _choose_infarct,
    "chronic_infarct": _choose_infarct,
    "haemorrhage": _choose_haemorrhage,
    "brain_mass": _choose_mass,
}

# --- what they do to the head


def effects(head: Head, plans: Sequence[Plan], shifting: bool = False) -> list[Lesion]:
    """Mass effect and midline shift of all of them together; `shifting`: the midline has to be shifted."""
    pushing = [p for p in plans if p.size_mm >= _PUSHES.get(p.code, 1e3) and p.spot.side is not None]
    shift = float(np.clip(round(sum(p.shift_mm for p in plans)), -14, 14))
    if shifting and abs(shift) < SHIFTED_MM:
        shift = float(np.copysign(SHIFTED_MM, next(p.shift_mm for p in plans if p.shift_mm)))
    thick = [p for p in plans if p.code == "extra_axial_collection" and p.size_mm >= 10]
    out = []
    if pushing or thick or abs(shift) >= SHIFTED_MM:
        start = head
        out.append(_mass_effect(pushing or thick or plans, pushing))
        head = out[0].change(head)
        # a mass near the middle displaces it by itself
        alone = round(float((head.landmarks["septum"] - start.landmarks["septum"])[0]))
        shift = max(shift, float(alone), key=abs)
    if abs(shift) >= SHIFTED_MM:
        out.append(_midline_shift(head, shift))
    return out


def _mass_effect(plans: Sequence[Plan], pushing: Sequence[Plan]) -> Lesion:
    pushes = tuple(
        Push(point(p.spot.centre_mm), p.size_mm / 2, float(np.clip(0.16 * p.size_mm, 3, 7))) for p in pushing
    )
    low = np.min([p.spot.centre_mm - p.size_mm / 2 - 6 for p in plans], axis=0)
    high = np.max([p.spot.centre_mm + p.size_mm / 2 + 6 for p in plans], axis=0)

    def change(head: Head) -> Head:
        return replace(head, pushes=(*head.pushes, *pushes))

    return Lesion(Finding("mass_effect"), (point(low), point(high)), change=change)


def _midline_shift(head: Head, shift_mm: float) -> Lesion:
    """`head`: with every mass effect; together with those, the septum pellucidum moves by what is stated."""
    start = replace(head, pushes=(), dents=()).landmarks["septum"]
    value = shift_mm
    for _ in range(4):
        value += shift_mm - float((replace(head, shift_mm=value).landmarks["septum"] - start)[0])
    # septum and third ventricle, from the middle of the head to where they have gone
    low = np.add(start, (min(shift_mm, 0.0) - 4, -34.0, -22.0))
    high = np.add(start, (max(shift_mm, 0.0) + 4, 26.0, 16.0))

    def change(changed: Head) -> Head:
        return replace(changed, shift_mm=value)

    def regrown(factor: float) -> Lesion:
        return _midline_shift(head, float(np.copysign(max(1.0, round(abs(shift_mm) * factor)), shift_mm)))

    side = Side.RIGHT if shift_mm > 0 else Side.LEFT
    finding = Finding("midline_shift", side=side, size_mm=abs(shift_mm))
    return Lesion(finding, (point(low), point(high)), change=change, regrown=regrown)


# --- their shapes


def build(room: Room, planned: Plan, before: Head) -> list[Lesion]:
    """The lesion in the head as all of them have displaced it, and what it brings with it. `before`: the head
    in which it was planned."""
    return _BUILDERS[planned.code](room, replace(planned, spot=_settled(room, planned, before)))


def _settled(room: Room, planned: Plan, before: Head) -> Spot:
    """What displaces the brain stays where it is, the rest goes with the brain; where no room is left, it
    lies elsewhere in the same lobe."""
    spot = planned.spot
    moved = room.head.to_patient(before.to_reference(spot.centre_mm))[0]
    with_brain = replace(spot, centre_mm=moved)
    stays = planned.size_mm >= _PUSHES.get(planned.code, 1e3)
    for candidate in (spot, with_brain) if stays else (with_brain, spot):
        if room.is_clear(candidate):
            return candidate
    return room.spot({spot.site: 1.0}, planned.size_mm / 4, (2.5, 90.0), 3.0, spot.side)


def _infarct(room: Room, planned: Plan) -> list[Lesion]:
    rng, spot = room.rng, planned.spot
    waves = Waves.make(rng, 9, 5.0)
    if planned.kind == "territory":
        slope, flat = float(np.tan(np.radians(rng.uniform(20, 29)))), float(rng.uniform(0.75, 1.2))
        territory = Wedge(spot.centre_mm, _outwards(room, spot), slope, waves, 0.05, flat)
        shape: Shape = territory
        around: Callable[[float], Box] = territory.around
    else:
        slim = (float(rng.uniform(0.6, 0.9)), float(rng.uniform(0.55, 0.8)))
        shape, around = lumpy(spot.centre_mm, slim, turned(rng), waves, 0.10), ball(spot.centre_mm, 1.4)
    seed = int(rng.integers(2**31))
    tissue = _acute if planned.code == "acute_infarct" else _chronic
    shape = cut(shape, room.walls(spot))
    return [_grown(room, planned, shape, around, lambda blob: tissue(blob, seed))[0]]


def _grown(
    room: Room,
    planned: Plan,
    shape: Shape,
    around: Callable[[float], Box],
    paint: Callable[[Blob], Paint],
) -> tuple[Lesion, Blob]:
    """Stated where most of it lies. It can be regrown within the same head, at the same place."""
    first = fit(shape, planned.size_mm, around)
    assert first is not None, f"nothing of {planned} is left"
    place = commonest(room.head, first.points(40), lambda _: True)
    side, site = place or planned.spot.place

    def lesion(blob: Blob) -> Lesion:
        size = round(blob.size_mm, 1)
        finding = Finding(planned.code, side=side, site=site, size_mm=size)
        return Lesion(
            finding, blob.box_mm, paint(blob), regrown=lambda factor: regrown(max(2.0, size * factor))
        )

    def regrown(size: float) -> Lesion:
        blob = fit(shape, round(size), around)
        assert blob is not None, f"nothing of {size} mm is left of {planned}"
        return lesion(blob)

    return lesion(first), first


def _acute(blob: Blob, seed: int) -> Paint:
    """Water moves into the cells: diffusion falls at once, T2 rises within hours, and sulci narrow."""
    noise = np.random.default_rng(seed)
    adc, t2 = float(noise.uniform(0.46, 0.60)), float(noise.uniform(1.3, 1.7))
    texture = Texture.make(noise, 3.0, 32, 1.0)
    swollen = 0.75 if blob.size_mm > 25 else 0.0

    def paint(canvas: Canvas) -> None:
        box = blob.window(canvas.grid)
        if box is None:
            return
        ragged = np.float32(min(1.2, 0.04 * blob.size_mm)) * texture.on(canvas.grid, box)
        inside = soft(blob.distance(canvas.grid, box) + np.abs(ragged), canvas.grid.edge_mm + 0.8)
        _swell(canvas, box, inside * np.float32(swollen))
        for name, gain in (("adc", adc), ("t2_ms", t2), ("t1_ms", 1.25), ("pd", 1.05)):
            getattr(canvas.maps, name)[box] *= 1 + np.float32(gain - 1) * inside

    return paint


def _swell(canvas: Canvas, box: Slices, share: np.ndarray) -> None:
    """Tissue takes this share of the fluid in the sulci."""
    near = ndimage.uniform_filter(
        canvas.maps.brain[box], [max(1, round(5 / s)) for s in canvas.grid.spacing_mm]
    )
    canvas.paint(box, share * canvas.maps.water[box] * np.clip(2.5 * near, 0, 1), TISSUES["grey"])


def _chronic(blob: Blob, seed: int) -> Paint:
    """A cavity of fluid in a rim of scar; what of the territory is left is scarred too."""
    texture = Texture.make(np.random.default_rng(seed), 3.0, 32, 1.2)
    rim = float(np.clip(0.14 * blob.size_mm, 0.9, 3.2))

    def paint(canvas: Canvas) -> None:
        box = blob.window(canvas.grid)
        if box is None:
            return
        edge = canvas.grid.edge_mm
        distance = blob.distance(canvas.grid, box)
        inside = soft(distance, edge)
        brain = np.clip(canvas.maps.brain[box] * 1.3, 0, 1)
        canvas.alter(box, inside, t2_ms=200.0, t1_ms=1400.0, adc=1.3)
        ragged = distance + np.float32(rim) * (1 + np.float32(0.35) * texture.on(canvas.grid, box))
        canvas.paint(box, soft(ragged, edge) * brain, CSF)

    return paint


def _haemorrhage(room: Room, planned: Plan) -> list[Lesion]:
    rng, spot = room.rng, planned.spot
    slim = (float(rng.uniform(0.65, 0.9)), float(rng.uniform(0.55, 0.8)))
    shape = lumpy(spot.centre_mm, slim, turned(rng, (0.2, 1, 0.3)), Waves.make(rng), 0.09)
    shape = cut(shape, room.walls(spot))
    around = ball(spot.centre_mm, 1.4)
    bleed, _ = _grown(room, planned, shape, around, lambda blob: _blood(blob, planned.kind))
    return [*_oedema(room, planned, float(rng.uniform(4, 9)), 15), bleed]


def _blood(blob: Blob, kind: str) -> Paint:
    """Oxygen goes first, then methaemoglobin forms from the rim inwards, then cells break down and iron stays
    at the rim."""

    def paint(canvas: Canvas) -> None:
        box = blob.window(canvas.grid)
        if box is None:
            return
        edge = canvas.grid.edge_mm
        distance = blob.distance(canvas.grid, box)
        inside = soft(distance, edge)
        if kind == "acute":
            canvas.paint(box, inside, ACUTE_BLOOD)
        elif kind == "early":
            canvas.paint(box, inside, EARLY_BLOOD)
            core = np.float32(0.16 * blob.size_mm)
            canvas.paint(box, soft(distance + core, edge + 3), ACUTE_BLOOD)
        else:
            canvas.paint(box, inside, HAEMOSIDERIN)
            canvas.paint(box, soft(distance + 1.5, edge), LATE_BLOOD)

    return paint


def _mass(room: Room, planned: Plan) -> list[Lesion]:
    rng, spot, kind = room.rng, planned.spot, planned.kind
    rough = {"glioblastoma": 0.14, "low_grade": 0.12, "lymphoma": 0.1}.get(kind, 0.05)
    slim = (float(rng.uniform(0.7, 0.95)), float(rng.uniform(0.65, 0.9)))
    shape = cut(lumpy(spot.centre_mm, slim, turned(rng), Waves.make(rng), rough), room.walls(spot))
    around = ball(spot.centre_mm, 1.45)
    seed = int(rng.integers(2**31))
    rings = {"glioblastoma": (4.0, 8.0), "ring": (2.5, 5.0), "abscess": (2.0, 3.0)}
    ring = float(rng.uniform(*rings[kind])) if kind in rings and planned.size_mm >= 12 else None
    mass, blob = _grown(room, planned, shape, around, lambda blob: _tumour(blob, kind, ring, seed))
    out = [mass]
    if kind != "low_grade":
        finding = replace(mass.finding, code="abnormal_enhancement", size_mm=None)
        out.append(Lesion(finding, mass.box_mm, _enhancement(blob, ring, seed)))
    widths = {"low_grade": (0, 0), "lymphoma": (4, 10), "glioblastoma": (6, 15), "abscess": (8, 15)}
    width = float(rng.uniform(*widths.get(kind, (7, 18))))
    return [*_oedema(room, planned, width, 8), *out]


def _tumour(blob: Blob, kind: str, ring_mm: float | None, seed: int) -> Paint:
    tissue = {"low_grade": LOW_GRADE, "lymphoma": CELLULAR, "solid": CELLULAR}.get(kind, SOLID)
    texture = Texture.make(np.random.default_rng(seed), 3.5, 32, 1.2)

    def paint(canvas: Canvas) -> None:
        box = blob.window(canvas.grid)
        if box is None:
            return
        edge = canvas.grid.edge_mm
        distance = blob.distance(canvas.grid, box)
        inside = soft(distance, edge + (1.5 if kind == "low_grade" else 0))
        canvas.paint(box, inside, tissue)
        grain = texture.on(canvas.grid, box)
        for name, gain in (("t2_ms", 0.10), ("t1_ms", 0.05), ("adc", 0.07)):
            getattr(canvas.maps, name)[box] *= 1 + np.float32(gain) * grain * inside
        if ring_mm is not None:
            canvas.paint(box, _core(distance, ring_mm, grain, edge), PUS if kind == "abscess" else NECROSIS)

    return paint


def _core(distance: np.ndarray, ring_mm: float, grain: np.ndarray, edge: float) -> np.ndarray:
    """What lies within a ring of uneven thickness."""
    return soft(distance + np.float32(ring_mm) * (1 + np.float32(0.22) * grain), edge)


def _enhancement(blob: Blob, ring_mm: float | None, seed: int) -> Paint:
    texture = Texture.make(np.random.default_rng(seed), 3.5, 32, 1.2)

    def paint(canvas: Canvas) -> None:
        box = blob.window(canvas.grid)
        if box is None:
            return
        edge = canvas.grid.edge_mm
        distance = blob.distance(canvas.grid, box)
        weight = soft(distance, edge)
        if ring_mm is not None:
            weight = weight * (1 - _core(distance, ring_mm, texture.on(canvas.grid, box), edge))
        canvas.alter(box, weight, uptake=0.95)

    return paint


def wet(canvas: Canvas, box: Slices, weight: np.ndarray, **values: float) -> None:
    """More water in the tissue: relaxation and diffusion move towards these values, protons become more."""
    canvas.alter(box, weight, **values)
    canvas.maps.pd[box] *= 1 + np.float32(0.14) * weight


def _oedema(room: Room, planned: Plan, width_mm: float, least_mm: float) -> list[Lesion]:
    """Vasogenic oedema around a lesion: it follows the white matter and spares the cortex."""
    rng, spot = room.rng, planned.spot
    waves, slim = Waves.make(rng), (float(rng.uniform(0.8, 1.0)), float(rng.uniform(0.75, 1.0)))
    shape = lumpy(spot.centre_mm, slim, turned(rng), waves, 0.16)
    half = planned.size_mm / 2 + width_mm
    if width_mm < 2 or planned.size_mm < least_mm or spot.site == "brainstem":
        return []
    sdf = cut(shape, room.walls(spot, bone_mm=2.0))(half)
    blob = grow(sdf, spot.centre_mm - 1.5 * half, spot.centre_mm + 1.5 * half, 2.0)
    if blob is None:
        return []
    place = commonest(
        room.head, blob.points(60), lambda where: where[1] in PERIFOCAL and where[0] is spot.side
    )
    if place is None:
        return []

    def paint(canvas: Canvas) -> None:
        box = blob.window(canvas.grid)
        if box is None:
            return
        white = canvas.maps.white[box]
        white = white / np.maximum(canvas.maps.brain[box], np.float32(0.05))
        weight = blob.inside(canvas.grid, box, 3.0) * np.clip(1.5 * white - 0.3, 0, 1)
        wet(canvas, box, weight, t2_ms=190.0, t1_ms=1380.0, adc=1.45)

    return [Lesion(Finding("oedema", side=place[0], site=place[1]), blob.box_mm, paint)]


def _outwards(room: Room, spot: Spot) -> np.ndarray:
    """From the deep white matter towards a point of the surface."""
    sign = 1.0 if spot.side is Side.RIGHT else -1.0
    deep = (22.0 * sign, -62.0, -36.0) if spot.site == "cerebellum" else (20.0 * sign, -16.0, 14.0)
    axis = spot.centre_mm - room.head.to_patient([deep])[0]
    return axis / np.linalg.norm(axis)


_BUILDERS: dict[str, Callable[[Room, Plan], list[Lesion]]] = {
    "acute_infarct": _infarct,
    "chronic_infarct": _infarct,
    "haemorrhage": _haemorrhage,
    "brain_mass": _mass,
}
