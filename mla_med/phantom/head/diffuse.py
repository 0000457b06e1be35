"""Room -> lesions beside the focal ones: of volume, ventricles, white matter, coverings, vessels, sinuses.

Knows no scanner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial import KDTree

from mla_med.phantom.head import brain as head_brain
from mla_med.phantom.head.anatomy import Canvas, Head, Tissue
from mla_med.phantom.head.blobs import (
    Blob,
    Waves,
    ball,
    crossings,
    fit,
    grow,
    lumpy,
    turned,
    union,
    wall,
    whole,
)
from mla_med.phantom.head.focal import ACUTE_BLOOD, EARLY_BLOOD, Plan, wet
from mla_med.phantom.head.room import LOBES, Room, Spot, pick
from mla_med.phantom.head.tissues import TISSUES
from mla_med.phantom.lattice import Field, Texture, smooth_max
from mla_med.phantom.lesion import Lesion, Paint, parts_of
from mla_med.phantom.shapes import Grid, point, soft
from mla_med.types import Box, Finding, Side

HYGROMA = Tissue(pd=0.98, t1_ms=2900, t2_ms=800, t2star_ms=200, adc=2.8)
OLD_SUBDURAL = Tissue(pd=0.96, t1_ms=900, t2_ms=260, t2star_ms=80, adc=1.6, chi=0.1)
SECRETION = Tissue(pd=0.97, t1_ms=2300, t2_ms=420, t2star_ms=80, adc=2.2)
MUCOSA = Tissue(pd=0.92, t1_ms=1700, t2_ms=200, t2star_ms=50, adc=1.6, uptake=0.8)
MICROBLEED = Tissue(pd=0.6, t1_ms=1100, t2_ms=42, t2star_ms=5, adc=0.7, chi=1.0)

# --- volume and ventricles


def atrophy(room: Room) -> Lesion:
    """More than age explains: wide sulci, ventricles and cisterns."""
    value = float(np.clip(room.head.atrophy + room.rng.uniform(0.35, 0.55), 0.68, 1.0))

    def change(head: Head) -> Head:
        return replace(head, atrophy=value)

    return Lesion(Finding("atrophy"), cerebrum_box(room.head), change=change)


def hydrocephalus(room: Room, atrophic: bool) -> Lesion:
    """Wide ventricles; sulci are narrow unless the brain is atrophic as well. In half of them fluid seeps
    into the white matter at the horns."""
    rng = room.rng
    scale, seeps = float(rng.uniform(1.75, 2.4)), bool(rng.random() < 0.5)
    scale *= 0.8 if atrophic else 1.0

    def change(head: Head) -> Head:
        return replace(head, ventricle_scale=scale, atrophy=head.atrophy if atrophic else 0.5 * head.atrophy)

    def paint(canvas: Canvas) -> None:
        if not seeps:
            return
        box = whole(canvas.grid)
        distance = canvas.head.fields["ventricle"].on(canvas.grid, box)
        weight = np.clip(1 - distance / np.float32(6), 0, 1) * (distance > 0) * canvas.maps.white
        wet(canvas, box, weight, t2_ms=140.0, t1_ms=1200.0, adc=1.15)

    return Lesion(Finding("hydrocephalus"), ventricle_box(change(room.head)), paint, change)


def boxed(lesion: Lesion, head: Head) -> Lesion:
    """With its box in the head as all lesions have changed it, where the box is that of an organ."""
    boxes = {"atrophy": cerebrum_box, "hydrocephalus": ventricle_box}
    find = boxes.get(lesion.finding.code)
    return lesion if find is None else replace(lesion, box_mm=find(head))


def cerebrum_box(head: Head) -> Box:
    """What the hull of the cerebrum takes up."""
    x, y, z = (v.ravel() for v in np.meshgrid(*(np.arange(*r, 5.0) for r in _SPAN), indexing="ij"))
    inside = np.abs(head_brain.cerebrum(np.abs(x), y, z) + head.gap_mm / head.size) < 4
    return _around(head, np.stack([x, y, z], axis=1)[inside])


def ventricle_box(head: Head) -> Box:
    """What the lateral ventricles take up."""
    spans = ((-48, 48), (-80, 44), (-34, 42))
    x, y, z = (v.ravel() for v in np.meshgrid(*(np.arange(*r, 2.5) for r in spans), indexing="ij"))
    wide = head.ventricle_width
    inside = head_brain.ventricle(x, y, z, wide, head.asymmetry) < 0
    return _around(head, np.stack([x, y, z], axis=1)[inside])


_SPAN = ((-70, 71), (-106, 74), (-50, 82))


def _around(head: Head, ref: np.ndarray) -> Box:
    # only the outermost points decide, and displacing all of them would take long
    outer = np.unique(np.concatenate([np.argsort(ref @ d)[-40:] for d in _DIRECTIONS]))
    points = head.to_patient(ref[outer])
    return point(points.min(0)), point(points.max(0))


_DIRECTIONS = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], float)

# --- white matter


def white_matter(room: Room) -> Lesion:
    """Fazekas 2 to 3 (Fazekas et al., AJR 1987;149:351): a halo about the ventricles and patches in the deep
    white matter. In demyelination ovoid plaques that stand on the ventricles instead."""
    rng = room.rng
    demyelinating = "demyelination" in room.head.patient.history and room.head.patient.age_years < 55
    grade = float(rng.uniform(0, 1))
    blobs: list[Blob] = []
    if demyelinating:
        blobs += _plaques(room, int(rng.integers(8, 22)))
    else:
        halo = _halo(room, 2.5 + 5.5 * grade)
        blobs += [] if halo is None else [halo]
        blobs += _patches(room, int(rng.integers(14, 30) + 30 * grade), (2.2, 5.0 + 5 * grade))
    t2 = float(rng.uniform(145, 175))

    def paint(canvas: Canvas) -> None:
        maps = canvas.maps
        for blob in blobs:
            box = blob.window(canvas.grid)
            if box is None:
                continue
            white = maps.white[box] / np.maximum(maps.brain[box], np.float32(0.05))
            weight = blob.inside(canvas.grid, box, 0.8) * np.clip(1.5 * white - 0.25, 0, 1)
            wet(canvas, box, weight, t2_ms=t2, t1_ms=1180.0, adc=1.05)

    parts = parts_of(blob.box_mm for blob in blobs)
    return Lesion(Finding("white_matter_hyperintensity"), union(blobs), paint, parts_mm=parts)


def _halo(room: Room, width_mm: float) -> Blob | None:
    waves = Texture.make(room.rng, 7.0, 32, 1.4)
    field = room.head.fields["ventricle"]
    third = wall(room.head.fields["thalamus"], 1.0, outside=True)

    def sdf(grid: Grid) -> np.ndarray:
        _, y, z = grid.axes()
        away = field.on(grid, whole(grid))
        # thicker at the frontal and occipital horns
        horns = np.clip(np.abs(y + 14) / 42, 0.35, 1.2)
        edge = away - np.float32(width_mm) * horns * (1 + np.float32(0.35) * waves.on(grid, whole(grid)))
        upper = room_floor - z
        return smooth_max(smooth_max(edge, -away - 1, 1), np.maximum(upper, third(grid)), 2)

    room_floor = float(room.head.to_patient([(0, -20, -2)])[0, 2])
    low, high = ventricle_box(room.head)
    pad = 1.6 * width_mm
    return grow(sdf, np.asarray(low) - pad, np.asarray(high) + pad, 2.0, all_parts=True)


def _inside(field: Field) -> np.ndarray:
    """Lattice points inside a shape (N, 3)."""
    grid = field.lattice.grid
    return (
        np.asarray(grid.origin_mm)
        + (np.argwhere(field.values < 0) + np.asarray(field.first)) * grid.spacing_mm
    )


def _patches(room: Room, n: int, radius_mm: tuple[float, float]) -> list[Blob]:
    rng = room.rng
    points = room.white_points(30 * n, 1.5, 3.0)
    out: list[Blob] = []
    for p in points[:n]:
        radius = float(radius_mm[0] + (radius_mm[1] - radius_mm[0]) * rng.beta(1, 2.5))
        slim = (float(rng.uniform(0.6, 1)), float(rng.uniform(0.6, 1)))
        shape = lumpy(p, slim, turned(rng), Waves.make(rng, 4), 0.15)
        blob = grow(shape(radius), p - 1.5 * radius, p + 1.5 * radius, max(0.5, radius / 4))
        out += [] if blob is None else [blob]
    return out


def _plaques(room: Room, n: int) -> list[Blob]:
    """Along veins that leave the ventricles at a right angle (Dawson's fingers), some below the cortex."""
    rng, out = room.rng, []
    points = room.white_points(60 * n, 0.5, 1.0)
    near = room.head.distance("ventricle", points)
    order = np.argsort(near + rng.uniform(0, 14, len(near)))
    for p in points[order[:n]]:
        half = float(rng.uniform(3, 7.5))
        outwards = (np.sign(p[0]) * 1.0, 0.0, 0.45)
        shape = lumpy(
            p, (float(rng.uniform(0.45, 0.65)),) * 2, turned(rng, outwards), Waves.make(rng, 4), 0.06
        )
        blob = grow(shape(half), p - 1.3 * half, p + 1.3 * half, 0.9)
        out += [] if blob is None else [blob]
    return out


# --- small bleeds


def microbleeds(room: Room) -> Lesion:
    """Round, 2 to 5 mm (Greenberg et al., Lancet Neurol 2009;8:165): deep in hypertension, else lobar."""
    rng = room.rng
    n = int(np.clip(round(rng.lognormal(1.6, 0.7)), 1, 24))
    deep = 0.7 if "hypertension" in room.head.patient.history else 0.2
    sites = {"basal_ganglia": 0.4 * deep, "thalamus": 0.25 * deep, "brainstem": 0.15 * deep}
    sites |= {"cerebellum": 0.2 * deep} | dict.fromkeys(LOBES, (1 - deep) / 4)
    spots: list[tuple[np.ndarray, float]] = []
    for _ in range(n):
        radius = float(rng.uniform(1.0, 2.5))
        centre = room.spot(sites, radius, (3.0, 26.0), 2.0).centre_mm
        room.taken.append((centre, radius))
        spots.append((centre, radius))

    def paint(canvas: Canvas) -> None:
        for centre, radius in spots:
            _ball(canvas, centre, radius, MICROBLEED)

    boxes = [(point(c - r), point(c + r)) for c, r in spots]
    low, high = np.asarray(boxes).swapaxes(0, 1)
    finding = Finding("microbleeds", count=n if n > 1 else None)
    return Lesion(finding, (point(low.min(0)), point(high.max(0))), paint, parts_mm=parts_of(boxes))


def _ball(canvas: Canvas, centre: np.ndarray, radius: float, tissue: Tissue) -> None:
    """Thinner than a voxel, it fills its share of it."""
    box = canvas.box(centre, radius)
    x, y, z = canvas.axes(box)
    away = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2).astype(np.float32)
    steps = canvas.grid.spacing_mm
    inside = soft(away - np.float32(radius), max(canvas.grid.edge_mm, 0.3))
    volume = float(inside.sum()) * float(np.prod(steps))
    if volume > 0:
        # what the soft edge adds or takes of a small ball is given back
        inside = np.clip(inside * np.float32(4.19 * radius**3 / volume), 0, 1)
    canvas.paint(box, inside, tissue)


# --- coverings


def plan_collection(room: Room, cranium: Field) -> tuple[Plan, Lesion]:
    """A crescent or a lens between skull and brain; it needs only the skull, and dents the brain."""
    rng, head = room.rng, room.head
    injured = "trauma" in head.patient.history
    kinds = ("old", "early", "acute", "hygroma", "lens")
    kind = pick(rng, kinds, (0.2, 0.25, 0.2, 0.1, 0.25) if injured else (0.45, 0.2, 0.1, 0.2, 0.05))
    side = Side.RIGHT if rng.random() < 0.5 else Side.LEFT
    sign = 1.0 if side is Side.RIGHT else -1.0
    thickness = float(rng.integers(6, 24))
    toward = np.array([sign * rng.uniform(0.75, 0.95), rng.uniform(-0.45, 0.45), rng.uniform(0.3, 0.65)])
    extent = (22.0, 24.0) if kind == "lens" else (float(rng.uniform(62, 88)), float(rng.uniform(44, 58)))

    def make(size: float) -> Lesion:
        blob = _crescent(head, cranium, side, toward, extent, size, kind == "lens")

        def change(changed: Head) -> Head:
            return replace(changed, dents=(*changed.dents, blob.field))

        return Lesion(
            Finding("extra_axial_collection", side=side, site="convexity", size_mm=size),
            blob.box_mm,
            _fluid(blob, kind),
            change,
            lambda factor: make(max(3.0, round(size * factor))),
        )

    lesion = make(thickness)
    centre = np.mean(np.asarray(lesion.box_mm), axis=0)
    return Plan("extra_axial_collection", kind, Spot(centre, side, "convexity"), thickness), lesion


def _crescent(
    head: Head,
    cranium: Field,
    side: Side,
    toward: np.ndarray,
    extent: Sequence[float],
    size: float,
    lens: bool,
) -> Blob:
    """Of this thickness where it is thickest."""
    middle = head.to_patient([(0.0, -18.0, 10.0)], False)[0]
    u = head.inner_skull(toward) - middle
    u /= np.linalg.norm(u)
    # front to back first, then up
    front = np.array([0.0, 1.0, 0.0]) - u[1] * u
    front /= np.linalg.norm(front)
    up = np.cross(u, front)
    wide, high = np.radians(extent)
    # the middle plane of the skull
    right = head.pose[:, 0].astype(np.float32) * np.float32(1 if side is Side.RIGHT else -1)

    skull = KDTree(crossings(cranium.lattice.grid, cranium.values))

    def sdf(grid: Grid) -> np.ndarray:
        axes = grid.axes()
        x, y, z = (c - np.float32(m) for c, m in zip(axes, middle, strict=True))
        along, s, t = (a[0] * x + a[1] * y + a[2] * z for a in (u, front, up))
        far = np.hypot(np.arctan2(s, along) / wide, np.arctan2(t, along) / high)
        # a crescent keeps its thickness and tapers late; a lens bulges
        share = np.cos(np.clip(far, 0, 1) * np.pi / 2) if lens else 1 - np.clip(far, 0, 1.2) ** 5
        falx = np.float32(2.5) - (right[0] * axes[0] + right[1] * axes[1] + right[2] * axes[2])
        # above the tentorium behind, down to the floor of the middle fossa in front
        ahead, upwards = (a[0] * x + a[1] * y + a[2] * z for a in head.pose.T[1:].astype(np.float32))
        floor = -28 - np.clip(np.float32(0.8) * (ahead + 25), 0, 20) - upwards
        edge = np.maximum(np.maximum(4 * (far - 0.97), falx), floor)
        depth = -cranium.on(grid, whole(grid))
        # the distances of the field are not exact, those to its surface are
        near = (depth > 0) & (depth < size + 6) & (edge < 3)
        points = np.stack([c[near] for c in np.broadcast_arrays(*axes)], axis=1)
        depth[near] = skull.query(points, distance_upper_bound=size + 9)[0].clip(0, size + 9)
        inner = depth - np.float32(size) * np.maximum(share, 0)
        return np.maximum(np.maximum(-depth, inner), edge).astype(np.float32)

    low = np.asarray(cranium.lattice.grid.origin_mm) + 2
    high_mm = -low
    if side is Side.RIGHT:
        low[0] = -6.0
    else:
        high_mm[0] = 6.0
    blob = grow(sdf, low, high_mm, 2.0)
    assert blob is not None
    return blob


def _fluid(blob: Blob, kind: str) -> Paint:
    tissues = {"old": OLD_SUBDURAL, "hygroma": HYGROMA, "acute": ACUTE_BLOOD}
    tissue = tissues.get(kind, EARLY_BLOOD)

    def paint(canvas: Canvas) -> None:
        box = blob.window(canvas.grid)
        if box is None:
            return
        canvas.paint(box, blob.inside(canvas.grid, box), tissue)

    return paint


# --- vessels and sinuses


def choose_artery(room: Room) -> tuple[str, Side]:
    """Where an aneurysm will be; others keep away."""
    artery = pick(room.rng, ("mca", "ica"), (0.5, 0.5))
    side = Side.RIGHT if room.rng.random() < 0.5 else Side.LEFT
    room.taken.append((room.head.landmarks[f"{artery}_{side}"], 9.0))
    return artery, side


def aneurysm(room: Room, artery: str, side: Side) -> Lesion:
    """A saccule at the bifurcation of the middle cerebral or the end of the internal carotid artery."""
    rng = room.rng
    sign = 1.0 if side is Side.RIGHT else -1.0
    size = float(np.clip(round(rng.lognormal(1.95, 0.35)), 4, 15))
    start = room.head.landmarks[f"{artery}_{side}"]
    if artery == "mca":
        away = np.array([sign * rng.uniform(0.3, 1), rng.uniform(0.2, 0.9), rng.uniform(-0.4, 0.5)])
    else:
        away = np.array([sign * rng.uniform(0.0, 0.5), rng.uniform(-0.9, 0.0), rng.uniform(0.3, 0.9)])
    away /= np.linalg.norm(away)
    slim, axes = (float(rng.uniform(0.8, 0.95)), float(rng.uniform(0.75, 0.95))), turned(rng, away)
    waves = Waves.make(rng, 4)
    site = {"mca": "middle_cerebral_artery", "ica": "internal_carotid_artery"}[artery]

    def make(mm: float) -> Lesion:
        centre = start + away * (0.5 * mm + 0.6)
        blob = fit(lumpy(centre, slim, axes, waves, 0.05), mm, ball(centre, 1.3))
        assert blob is not None

        def paint(canvas: Canvas) -> None:
            box = blob.window(canvas.grid)
            if box is not None:
                canvas.paint(box, blob.inside(canvas.grid, box), TISSUES["artery"])

        finding = Finding("aneurysm", side=side, site=site, size_mm=round(blob.size_mm, 1))
        return Lesion(finding, blob.box_mm, paint, regrown=lambda factor: make(max(2.0, round(mm * factor))))

    return make(size)


def sinus_disease(room: Room) -> list[Lesion]:
    """Thick mucosa, a polyp on the floor, or fluid with a level; a third have it on both sides."""
    rng = room.rng
    name = pick(rng, ("maxillary", "frontal"), (0.75, 0.25))
    sides = (
        [Side.RIGHT, Side.LEFT] if rng.random() < 0.35 else [(Side.RIGHT, Side.LEFT)[int(rng.integers(2))]]
    )
    return [_sinus(room, name, side) for side in sides]


def _sinus(room: Room, name: str, side: Side) -> Lesion:
    rng = room.rng
    field = room.head.skull_fields[f"{name}_{side}"]
    points = _inside(field)
    low, high = points.min(0), points.max(0)
    small = name == "frontal"
    kind = pick(rng, ("mucosa", "polyp", "fluid"), (0.5, 0.0 if small else 0.25, 0.25))
    thick = float(rng.uniform(2.5, 4.0) if small else rng.uniform(3.5, 7.5))
    waves = Texture.make(rng, 4.0, 32, 1.4)
    middle = (low + high) / 2
    polyp = np.array([*(middle[:2] + rng.uniform(-3, 3, 2)), low[2] + 5])
    # supine: fluid lies at the back
    level = float(low[1] + (high[1] - low[1]) * rng.uniform(0.35, 0.7))

    def sdf(grid: Grid) -> np.ndarray:
        x, y, z = grid.axes()
        lumen = field.on(grid, whole(grid))
        skin = np.float32(thick) * (1 + np.float32(0.3) * waves.on(grid, whole(grid)))
        if kind == "polyp":
            ball = np.sqrt((x - polyp[0]) ** 2 + (y - polyp[1]) ** 2 + (z - polyp[2]) ** 2) - np.float32(9.5)
            return np.maximum(lumen, ball)
        if kind == "fluid":
            return np.maximum(lumen, np.minimum(y - np.float32(level), -lumen - 2) + 0 * x)
        return np.maximum(lumen, -lumen - skin)

    blob = grow(sdf, low - 3, high + 3, 1.0, all_parts=True)
    assert blob is not None
    tissue = SECRETION if kind == "fluid" else MUCOSA

    def paint(canvas: Canvas) -> None:
        box = blob.window(canvas.grid)
        if box is not None:
            canvas.paint(box, blob.inside(canvas.grid, box), tissue)

    return Lesion(Finding("sinus_disease", side=side, site=f"{name}_sinus"), blob.box_mm, paint)
