"""Head -> decoys: normal variants and artefacts that look like a finding and are none.

Each has a kind, a box and a picture, and no finding: a report does not speak of it. Knows no scanner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mla_med.phantom.head.anatomy import Canvas, Head, Tissue
from mla_med.phantom.head.blobs import Waves, grow, lumpy, turned
from mla_med.phantom.head.diffuse import ventricle_box
from mla_med.phantom.head.room import Room
from mla_med.phantom.lesion import Decoy
from mla_med.phantom.shapes import Tube, point, soft

CSF = Tissue(water=1.0)
CYST = Tissue(pd=0.97, t1_ms=2500, t2_ms=500, t2star_ms=150, adc=1.3)
PINEAL_CYST = Tissue(pd=0.98, t1_ms=3000, t2_ms=800, t2star_ms=200, adc=2.4)
INFLOW = Tissue(pd=0.95, t1_ms=1200, t2_ms=260, t2star_ms=60, adc=3.0)
"""Fluid that came in after the inversion pulse: bright on FLAIR."""
_UP = np.array([0.0, 0.0, 1.0])


def choose_decoys(head: Head, rng: np.random.Generator) -> tuple[Decoy, ...]:
    """None to three, each kind once."""
    n = int(rng.choice(4, p=(0.2, 0.4, 0.3, 0.1)))
    kinds = rng.choice(len(KINDS), n, replace=False)
    return tuple(make_decoy(head, KINDS[int(k)], rng) for k in sorted(kinds))


def make_decoy(head: Head, kind: str, rng: np.random.Generator) -> Decoy:
    """A decoy of one of KINDS."""
    return _MAKERS[kind](head, rng)


def _perivascular_spaces(head: Head, rng: np.random.Generator) -> Decoy:
    """Virchow-Robin spaces below the putamen and in the centrum semiovale: fluid everywhere, no rim."""
    tubes: list[Tube] = []
    basal = head.to_patient(
        [(s * (20 + rng.uniform(-4, 6)), rng.uniform(-4, 8), -8.0) for s in (-1, 1) for _ in "abcd"]
    )
    for p in basal:
        tubes.append(
            Tube(point(p - 3 * _UP), point(p + rng.uniform(2, 6) * _UP), float(rng.uniform(0.7, 1.6)))
        )
    for p in Room(head, rng).white_points(400, 4.0, 6.0)[: int(rng.integers(10, 26))]:
        if p[2] > 20:
            along = np.array([np.sign(p[0]) * 0.6, 0.1, 1.0]) * rng.uniform(2, 5)
            tubes.append(Tube(point(p - along), point(p + along), float(rng.uniform(0.4, 0.8))))

    def paint(canvas: Canvas) -> None:
        for tube in tubes:
            _tube(canvas, tube, CSF)

    ends = np.array([(t.start_mm, t.end_mm) for t in tubes]).reshape(-1, 3)
    return Decoy("perivascular_spaces", (point(ends.min(0) - 2), point(ends.max(0) + 2)), paint)


def _tube(canvas: Canvas, tube: Tube, tissue: Tissue) -> None:
    a, b = np.asarray(tube.start_mm), np.asarray(tube.end_mm)
    box = canvas.box((a + b) / 2, np.abs(b - a) / 2 + tube.radius_mm)
    x, y, z = canvas.axes(box)
    axis = (b - a).astype(np.float32)
    t = ((x - a[0]) * axis[0] + (y - a[1]) * axis[1] + (z - a[2]) * axis[2]) / float(axis @ axis)
    t = np.clip(t, 0, 1)
    away = np.sqrt(sum((c - o - t * d) ** 2 for c, o, d in zip((x, y, z), a, axis, strict=True)))
    edge = canvas.grid.edge_mm
    inside = soft(away.astype(np.float32) - tube.radius_mm, edge) * min(1.0, (2 * tube.radius_mm / edge) ** 2)
    canvas.paint(box, inside * np.clip(2 * canvas.maps.brain[box], 0, 1), tissue)


def _ellipsoid(kind: str, centre, radii, tissue: Tissue, brain_only: bool = False) -> Decoy:
    c, r = np.asarray(centre, float), np.broadcast_to(np.asarray(radii, float), 3)

    def paint(canvas: Canvas) -> None:
        box = canvas.box(c, r)
        x, y, z = canvas.axes(box)
        near = np.sqrt(sum(((v - m) / s) ** 2 for v, m, s in zip((x, y, z), c, r, strict=True)))
        inside = soft(((near - 1) * r.min()).astype(np.float32), canvas.grid.edge_mm)
        canvas.paint(
            box, inside * np.clip(2 * canvas.maps.brain[box], 0, 1) if brain_only else inside, tissue
        )

    return Decoy(kind, (point(c - r), point(c + r)), paint)


def _cavum_septi_pellucidi(head: Head, rng: np.random.Generator) -> Decoy:
    """Fluid between the leaves of the septum; nearly all newborns and some adults have it."""
    wide = float(rng.uniform(3.0, 7.0))

    def change(changed: Head) -> Head:
        return replace(changed, cavum_mm=wide)

    # the frontal horns give way
    (x0, y0, z0), (x1, y1, z1) = ventricle_box(head)
    return Decoy("cavum_septi_pellucidi", ((x0 - 3, y0 - 3, z0 - 3), (x1 + 3, y1 + 3, z1 + 3)), change=change)


def _flow_artefact(head: Head, rng: np.random.Generator) -> Decoy:
    """Fluid that flows into the slice escapes the inversion: bright on FLAIR, in ventricles and cisterns."""
    ref = [(0.0, -10.0, -2.0), (0.0, -10.0, -30.0), (0.0, -42.0, -32.0)][int(rng.integers(3))]
    centre = head.to_patient([ref])[0]
    radii = (float(rng.uniform(3, 5)), float(rng.uniform(3, 7)), float(rng.uniform(5, 9)))
    share = float(rng.uniform(0.4, 0.7))

    def paint(canvas: Canvas) -> None:
        box = canvas.box(centre, radii)
        x, y, z = canvas.axes(box)
        near = sum(((v - m) / s) ** 2 for v, m, s in zip((x, y, z), centre, radii, strict=True))
        canvas.paint(
            box,
            np.clip(1 - near, 0, 1).astype(np.float32) * np.float32(share) * canvas.maps.water[box],
            INFLOW,
        )

    c, r = np.asarray(centre), np.asarray(radii)
    return Decoy("flow_artefact", (point(c - r), point(c + r)), paint)


def _susceptibility(head: Head, rng: np.random.Generator) -> Decoy:
    """Above the air of the sphenoid, the ears or the frontal sinus, diffusion images pile up signal."""
    sign = float(rng.choice((-1, 1)))
    ref = [(0.0 + 8 * sign, 30.0, -18.0), (44.0 * sign, -22.0, -28.0), (38.0 * sign, 14.0, -38.0)][
        int(rng.integers(3))
    ]
    centre = head.to_patient([ref], False)[0]
    radii = np.array([rng.uniform(9, 14), rng.uniform(8, 14), rng.uniform(7, 11)])
    thick = float(rng.uniform(2.0, 4.0))

    def paint(canvas: Canvas) -> None:
        box = canvas.box(centre, radii)
        x, y, z = canvas.axes(box)
        near = sum(((v - m) / s) ** 2 for v, m, s in zip((x, y, z), centre, radii, strict=True))
        skull = canvas.head.cranium.on(canvas.grid, box)
        sheet = np.clip(1 - near, 0, 1) * soft(-skull - 3 - thick, canvas.grid.edge_mm + 1)
        canvas.alter(box, (np.clip(2 * sheet, 0, 1) * canvas.maps.brain[box]).astype(np.float32), adc=0.40)

    return Decoy("susceptibility", (point(centre - radii), point(centre + radii)), paint)


def _choroid_plexus_cyst(head: Head, rng: np.random.Generator) -> Decoy:
    """Xanthogranuloma in the atrium, often on both sides: bright on FLAIR and on diffusion."""
    sides = (-1, 1) if rng.random() < 0.7 else (int(rng.choice((-1, 1))),)
    parts = [
        _ellipsoid("", head.to_patient([(s * 23.0, -39.0, 10.0)])[0], rng.uniform(2.5, 5, 3), CYST)
        for s in sides
    ]

    def paint(canvas: Canvas) -> None:
        for part in parts:
            part.paint(canvas)

    boxes = np.asarray([part.box_mm for part in parts])
    return Decoy("choroid_plexus_cyst", (point(boxes[:, 0].min(0)), point(boxes[:, 1].max(0))), paint)


def _pineal_cyst(head: Head, rng: np.random.Generator) -> Decoy:
    return _ellipsoid("pineal_cyst", head.landmarks["pineal"], rng.uniform(2.5, 5.0, 3), PINEAL_CYST)


def _asymmetric_ventricles(head: Head, rng: np.random.Generator) -> Decoy:
    value = float(rng.choice((-1, 1)) * rng.uniform(0.22, 0.38))

    def change(changed: Head) -> Head:
        return replace(changed, asymmetry=value)

    return Decoy("asymmetric_ventricles", ventricle_box(change(head)), change=change)


def _prominent_cisterna_magna(head: Head, rng: np.random.Generator) -> Decoy:
    """More fluid behind the cerebellum than in most; the cerebellum itself is whole."""
    deep = float(rng.uniform(8, 15))
    corners = head.to_patient([(x, y, z) for x in (-45, 45) for y in (-98, -70) for z in (-64, -18)], False)
    box = (point(corners.min(0)), point(corners.max(0)))
    return Decoy("prominent_cisterna_magna", box, change=lambda changed: replace(changed, cisterna_mm=deep))


def _tentorial_partial_volume(head: Head, rng: np.random.Generator) -> Decoy:
    """A slice that cuts the tentorium obliquely shows a grey band in the temporal or occipital lobe."""
    sign = float(rng.choice((-1, 1)))
    centre = head.to_patient([(sign * rng.uniform(24, 36), rng.uniform(-66, -46), rng.uniform(-13, -9))])[0]
    shape = lumpy(centre, (0.7, 0.3), turned(rng, (sign, -0.6, 0.2)), Waves.make(rng, 4), 0.1)
    blob = grow(shape(8.0), centre - 12, centre + 12, 1.5)
    assert blob is not None

    def paint(canvas: Canvas) -> None:
        box = blob.window(canvas.grid)
        if box is not None:
            weight = np.float32(0.6) * blob.inside(canvas.grid, box, 3.0)
            canvas.alter(box, weight, t2_ms=102.0, t1_ms=1350.0, adc=0.95)

    return Decoy("tentorial_partial_volume", blob.box_mm, paint)


def _periventricular_caps(head: Head, rng: np.random.Generator) -> Decoy:
    """Thin bright caps of the frontal horns, up to 5 mm (ependymitis granularis): normal at every age."""
    width = float(rng.uniform(3, 5))
    parts = [head.to_patient([(s * 12.0, 33.0, 4.0)])[0] for s in (-1, 1)]

    def paint(canvas: Canvas) -> None:
        for c in parts:
            box = canvas.box(c, 9.0)
            x, y, z = canvas.axes(box)
            away = np.sqrt((x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2)
            from_horn = canvas.head.fields["ventricle"].on(canvas.grid, box)
            weight = (
                np.clip(1.3 - from_horn / width, 0, 1)
                * np.clip(1.5 - away / 6, 0, 1)
                * canvas.maps.white[box]
            )
            canvas.alter(box, weight.astype(np.float32), t2_ms=112.0, t1_ms=1150.0)

    corners = np.asarray(parts)
    return Decoy("periventricular_caps", (point(corners.min(0) - 8), point(corners.max(0) + 8)), paint)


_MAKERS: dict[str, Callable[[Head, np.random.Generator], Decoy]] = {
    "perivascular_spaces": _perivascular_spaces,
    "cavum_septi_pellucidi": _cavum_septi_pellucidi,
    "flow_artefact": _flow_artefact,
    "susceptibility": _susceptibility,
    "choroid_plexus_cyst": _choroid_plexus_cyst,
    "pineal_cyst": _pineal_cyst,
    "asymmetric_ventricles": _asymmetric_ventricles,
    "prominent_cisterna_magna": _prominent_cisterna_magna,
    "tentorial_partial_volume": _tentorial_partial_volume,
    "periventricular_caps": _periventricular_caps,
}
KINDS = tuple(_MAKERS)
