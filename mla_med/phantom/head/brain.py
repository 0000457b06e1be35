"""Reference coordinates -> signed distances of the brain: hull, folds, ventricles, nuclei, stem, cerebellum.

The reference head is that of the MNI templates: mm, the anterior commissure near the origin, x to the right,
y to the front, z up; a stands for |x|. Distances are negative inside. The cortex is folded by sheets of
fluid that stand on the hull: zero crossings of a band-limited noise that is constant along the normals of the
hull, so that gyri are bands of even width in every plane. Knows no patient and no voxels.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mla_med.phantom.lattice import chain, ellipsoid, smooth_max, smooth_min
from mla_med.types import Side

TILE, TILE_MM = 64, 3.0
"""Samples and step of the noise that folds the cortex; periodic."""
FOLD_MM = 22.0
"""Wavelength of the folds: two gyri and two sulci."""


def fold_noise(rng: np.random.Generator) -> np.ndarray:
    """Periodic noise (TILE,)*3 of one wavelength in all directions, deviation 1."""
    f = np.fft.fftfreq(TILE, TILE_MM)
    f_abs = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + f[None, None, : TILE // 2 + 1] ** 2)
    band = np.exp(-0.5 * ((f_abs * FOLD_MM - 1) / 0.13) ** 2)
    noise = np.fft.irfftn(np.fft.rfftn(rng.standard_normal((TILE,) * 3)) * band, (TILE,) * 3)
    return (noise / noise.std()).astype(np.float32)


def sample(tile: np.ndarray, x, y, z, step_mm: float) -> np.ndarray:
    """Periodic noise at points, linearly interpolated."""
    points = np.stack([np.asarray(v, np.float32) / np.float32(step_mm) for v in (x, y, z)])
    return ndimage.map_coordinates(tile, points, order=1, mode="grid-wrap")


def step(v, at: float, width: float):
    """0 below, 1 above `at`, smooth over about `width`."""
    return np.float32(0.5) * (1 + np.tanh((v - np.float32(at)) / np.float32(width)))


def superellipsoid(u, v, w, radii):
    """About the signed distance to a box-like ellipsoid of exponent 2.25; coordinates from its centre."""
    a, b, c = (np.abs(t) * np.float32(1 / r) for t, r in zip((u, v, w), radii, strict=True))
    total = sum(t * t * np.sqrt(np.sqrt(t)) for t in (a, b, c))
    near = total ** np.float32(1 / 2.25)
    a, b, c = a * a, b * b, c * c
    ra, rb, rc = (np.float32(1 / r**2) for r in radii)
    steep = np.sqrt((a * ra + b * rb + c * rc) / np.maximum(a + b + c, np.float32(1e-6)))
    return (near - 1) / np.maximum(steep, np.float32(1e-3))


TEMPORAL = np.array([(37, 11, -29), (45, -12, -25), (48, -34, -18), (47, -58, -8)], float)
TEMPORAL_R = np.array([14, 19.5, 20, 19], float)
MEDIAL = np.array([(24, 2, -22), (21, -14, -20), (22, -30, -13), (18, -48, -5)], float)
"""Uncus and parahippocampal gyrus."""
MEDIAL_R = np.array([9.0, 9.0, 9.0, 9.0])
CANAL = np.array([(0, -14, -16), (0, -27, -31), (0, -35, -50), (0, -44, -74), (0, -49, -112)], float)
"""Cisterns around the brainstem, and the spinal canal."""
CANAL_R = np.array([14, 18.5, 14.5, 11.5, 10.0])


def tent(a, y):
    """z of the tentorium."""
    return -1 - np.float32(0.30) * a + np.float32(0.10) * np.minimum(y + 50, 0)


def base(a, y):
    """z of the underside of the cerebrum, without the temporal lobes."""
    front, behind = step(y, 12, 4), step(-y, 36, 4)
    roof = np.exp(-np.square((a - 30) / np.float32(13)) - np.square((y - 40) / np.float32(20)))
    orbital = -23 + 6 * roof + np.float32(0.05) * a
    middle = (
        np.float32(0.012) * np.square(np.clip(a - 6, 0, 18)) - np.float32(0.09) * np.clip(y + 5, -30, 20) - 15
    )
    return front * orbital + behind * (tent(a, y) + 0.4) + (1 - front - behind) * middle


def dome(a, y, z):
    """The vault: widest behind the middle, narrower in front."""
    wide = np.float32(1) + np.float32(0.12) * step(y, 30, 26) + np.float32(0.05) * step(-y, 75, 14)
    return superellipsoid(a * wide, y + 17, z - 9, (70.5, 89.5, 71.5))


def cerebrum(a, y, z):
    """The smooth hull of both hemispheres, fissures filled; it ends where the skull lets it."""
    body = smooth_max(dome(a, y, z), (base(a, y) - z) * np.float32(0.95), 10)
    temporal = smooth_min(chain(a, y, z, TEMPORAL, TEMPORAL_R), chain(a, y, z, MEDIAL, MEDIAL_R), 6)
    return smooth_min(body, temporal, 6)


def cranium(a, y, z):
    """The inner surface of the skull."""
    front = step(y, 12, 4)
    floor = front * (base(a, y) - 0.5) + (1 - front) * -16
    out = smooth_max(dome(a, y, z), (floor - z) * np.float32(0.95), 10)
    lateral = chain(a, y, z, TEMPORAL, TEMPORAL_R + 2)
    out = smooth_min(out, smooth_min(lateral, chain(a, y, z, MEDIAL, MEDIAL_R + 1), 6), 6)
    out = smooth_min(out, ellipsoid(a, y, z, (0, -63, -37), (56, 36, 28)), 8)
    out = smooth_min(out, chain(a, y, z, CANAL, CANAL_R), 8)
    out = smooth_min(out, ellipsoid(a, y, z, (0, 3, -19), (16, 12, 9)), 5)
    petrous = ellipsoid(a, y, z, (43, -26, -43), (8, 25, 7.5), _turned(-41))
    return smooth_max(out, -petrous, 4)


def core(y, z):
    """In the middle plane, what lies within the corpus callosum: the fissure ends on it."""
    ring = ellipsoid(np.float32(0), y, z, (0, -6, 4), (1e3, 39.5, 24))
    below = chain(np.float32(0), y, z, np.array([(0, 0, -4), (0, -20, -10)], float), np.array([12, 14.0]))
    return smooth_min(ring, below, 6)


def sylvian(a, y, z) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """-> signed distance to the lateral sheet and how far beyond its edge; the same of that on the insula."""
    rise = -7 - np.float32(0.44) * (y - 2)
    sheet = (z - rise - 3 * np.sin((a - 39) * np.float32(0.09))) * np.float32(0.9)
    beyond = np.maximum(39 - a, np.maximum(-40 - y, y - 26))
    on_insula = a - 38 + np.float32(0.006) * np.square(y) + np.float32(0.012) * np.square(z - 1)
    rim = np.maximum(np.abs(y) - 21, np.abs(z - rise) - 14)
    return sheet, beyond, on_insula, rim


def ventricle_chains(grow: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Points (|x|, y, z) and radii of the lateral ventricles; `grow` 1 for a young adult."""
    wide = np.float64(grow)
    body = np.array(
        [(8, 30, 3), (8, 20, 9), (9, 6, 14), (10.5, -10, 17), (15, -27, 18), (23, -40, 11)], float
    )
    temporal = np.array([(24, -40, 9), (31, -35, -2), (33, -24, -12), (31, -11, -19)], float)
    occipital = np.array([(24, -44, 10), (25, -56, 8), (23, -68, 5)], float)
    return [
        (body, np.array([3.2, 6.8, 7.0, 6.2, 6.2, 7.5]) * wide),
        (temporal, np.array([5.0, 3.4, 2.6, 2.2]) * wide),
        (occipital, np.array([5.5, 3.6, 1.6]) * wide),
    ]


def caudate(a, y, z):
    front = ellipsoid(a, y, z, (13.5, 13, 3), (6.5, 11, 10))
    tail = chain(
        a,
        y,
        z,
        np.array([(14, 6, 11), (16.5, -8, 18), (20, -24, 19), (27, -37, 9)], float),
        np.array([4.5, 3.2, 2.4, 1.5]),
    )
    return smooth_min(front, tail, 4)


def _turned(deg: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(deg)), np.sin(np.deg2rad(deg))
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def putamen(a, y, z):
    return ellipsoid(a, y, z, (25.5, 2, 1), (6.0, 18.5, 12), _turned(14))


def pallidum(a, y, z):
    return ellipsoid(a, y, z, (19, -5, -1), (4.6, 10.5, 7.5), _turned(20))


def thalamus(a, y, z):
    return ellipsoid(a, y, z, (11, -18, 7), (9.3, 15.5, 9.5), _turned(18))


def hippocampus(a, y, z):
    points = np.array([(25, -10, -21), (28, -22, -15), (27, -33, -6), (21, -39, 3)], float)
    return chain(a, y, z, points, np.array([6.0, 4.5, 3.8, 2.5]))


def nigra(a, y, z):
    """Substantia nigra and red nucleus."""
    return np.minimum(
        ellipsoid(a, y, z, (9, -18, -13), (2.2, 5, 4), _turned(-35)),
        ellipsoid(a, y, z, (5, -22, -9), (2.8, 2.8, 4)),
    )


def choroid(a, y, z):
    """The choroid plexus of the trigone."""
    points = np.array([(17, -28, 16), (23, -38, 10), (28, -37, -2), (32, -28, -10)], float)
    return chain(a, y, z, points, np.array([1.2, 3.2, 2.4, 1.2]))


def brainstem(a, y, z):
    points = np.array([(0, -20, -6), (0, -25, -14), (0, -28, -22)], float)
    midbrain = chain(a, y, z, points, np.array([12.0, 12.5, 11.5]))
    peduncle = chain(a, y, z, np.array([(16, -14, -2), (10, -20, -16)], float), np.array([7.0, 6.0]))
    pons = ellipsoid(a, y, z, (0, -27, -32), (17, 13, 14))
    medulla = chain(
        a,
        y,
        z,
        np.array([(0, -33, -44), (0, -39, -58), (0, -46, -78), (0, -48, -110)], float),
        np.array([9.5, 7.5, 6.0, 5.5]),
    )
    out = smooth_min(smooth_min(midbrain, peduncle, 5), pons, 5)
    return smooth_min(out, medulla, 6)


def cerebellum(a, y, z):
    hemisphere = ellipsoid(a, y, z, (25, -64, -37), (29, 31, 27))
    vermis = ellipsoid(a, y, z, (0, -63, -30), (15, 30, 30))
    return smooth_max(smooth_min(hemisphere, vermis, 4), z - tent(a, y) + 1.0, 3)


def peduncle(a, y, z):
    """Middle cerebellar peduncle and the white core of the cerebellum."""
    points = np.array([(8, -27, -33), (17, -38, -34), (22, -54, -36)], float)
    return chain(a, y, z, points, np.array([8.5, 7.0, 6.0]))


def fourth_ventricle(a, y, z):
    floor = ellipsoid(a, y, z, (0, -42.5, -33), (8, 4.5, 12))
    aqueduct = chain(
        a,
        y,
        z,
        np.array([(0, -27, -4), (0, -32, -13), (0, -39, -24), (0, -46, -48)], float),
        np.array([1.1, 1.1, 2.0, 2.2]),
    )
    return smooth_min(floor, aqueduct, 3)


def cingulate(y, z):
    """Signed distance to the sheet of the cingulate sulcus, which runs around the corpus callosum."""
    return ellipsoid(np.float32(0), y, z, (0, -8, 4), (1e3, 53, 36))


def third_ventricle(y, z):
    """Its outline in the middle plane; how wide it is follows from the head."""
    return ellipsoid(np.float32(0), y, z, (0, -11, -3), (1e3, 15, 12))


def pushed_out(a, wide: float):
    """|x| where the deep nuclei were before wide ventricles pushed them aside."""
    near = np.minimum(a * np.float32(0.1), 1) * np.exp(np.minimum(12 - a, 0) * np.float32(1 / 22))
    return a - np.float32(6.5 * max(wide - 1.25, 0)) * near


def ventricle(x, y, z, wide: float, asymmetry: float):
    """Both lateral ventricles: tubes, hollowed by the nuclei and flattened by the corpus callosum."""
    a = np.abs(x)
    out = None
    for points, radii in ventricle_chains(wide):
        part = chain(a, y, z, points, radii)
        out = part if out is None else smooth_min(out, part, 3)
    assert out is not None
    # the tubes are near 5 mm wide
    out = out - np.where(x < 0, np.float32(5 * asymmetry), np.float32(-5 * asymmetry))
    yields, fillet = np.float32(2.0 * (wide - 1)), 2 + 2.5 * max(wide - 1, 0)
    aside = pushed_out(a, wide)
    out = smooth_max(out, 0.6 - caudate(aside, y, z), fillet)
    out = smooth_max(out, 0.4 - thalamus(aside, y, z), fillet)
    # the trigone and the occipital horn lie beside the corpus callosum
    roof = core(y, z) + 5.5 - yields - np.float32(0.7) * np.maximum(a - 10, 0) * step(-y, 25, 8)
    return smooth_max(out, roof, fillet)


def wander(rng: np.random.Generator, x, y, z, mm: float):
    """The point displaced by smooth waves of about this size: fissures are not planes."""
    waves = 2 * np.pi / rng.uniform(28, 62, (3, 3, 1)) * _directions(rng, 9).reshape(3, 3, 3)
    phases = rng.uniform(0, 2 * np.pi, (3, 3))
    out = []
    for axis, v in enumerate((x, y, z)):
        moved = v
        for (a, b, c), phase in zip(waves[axis].astype(np.float32), phases[axis], strict=True):
            moved = moved + np.float32(mm * 0.8) * np.sin(a * x + b * y + c * z + np.float32(phase))
        out.append(moved)
    return out[0], out[1], out[2]


def _directions(rng: np.random.Generator, n: int) -> np.ndarray:
    d = rng.normal(0, 1, (n, 3))
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def folds(tile: np.ndarray, x, y, z, hull_ref, step_mm: tuple[float, float, float]):
    """-> distance to the nearest sulcal sheet, signed, and how far a point lies below its floor.

    A sheet is where the noise, looked up where the normal of the hull leaves it, changes sign. `hull_ref`:
    distance to the hull; `step_mm`: of the lattice; all in reference mm."""
    a = np.abs(x)
    # a smoother hull, rounded where the middle plane meets the convexity
    hull = smooth_max(hull_ref, 1 - a, 14)
    grad = [g / np.float32(s) for g, s in zip(np.gradient(hull), step_mm, strict=True)]
    steep = np.sqrt(grad[0] ** 2 + grad[1] ** 2 + grad[2] ** 2) + np.float32(1e-3)
    deep = np.clip(-hull, -4, 24) / steep
    where = hull < 6
    p = [c[where] + (g * deep)[where] for c, g in zip((x, y, z), grad, strict=True)]
    value, floor = np.zeros((2, *hull.shape), np.float32)
    value[where] = sample(tile, p[0], p[1], p[2], TILE_MM)
    floor[where] = sample(tile, p[1], p[2], p[0], 5.5)
    norm = np.sqrt(
        sum(np.square(g / np.float32(s)) for g, s in zip(np.gradient(value), step_mm, strict=True))
    )
    wave = np.float32(FOLD_MM / (2 * np.pi))
    # where opposite walls meet, the noise jumps: not a sulcus
    distance = wave * np.arctan2(value, np.minimum(wave * norm, 1.6) + np.float32(1e-3))
    floor = 16 + 4 * floor - 4 * (1 - step(a, 14, 4))
    # in a thin lobe, sulci end before they meet those of the other side
    near = tuple(2 * round(11 / s) + 1 for s in step_mm)
    thick = ndimage.maximum_filter(-hull, near)
    depth = -hull - np.minimum(np.clip(floor, 4, 21), thick - 4)
    deep_grey = ellipsoid(a, y, z, (0, -8, 4), (35, 44, 25))
    depth = np.maximum(depth, 4 - deep_grey)
    depth = np.maximum(depth, (np.float32(0.55) - steep) * 40)
    depth = np.maximum(depth, (wave * norm - np.float32(2.3)) * 20)
    return distance, depth


def folia(tile: np.ndarray, x, y, z):
    """Distance to the nearest fissure of the cerebellum, signed: planes that fan out from the brainstem."""
    v, w = -(y + 46), z + 33
    radius = np.sqrt(v * v + w * w + np.float32(4))
    angle = np.arctan2(w, v) + np.float32(0.16) * sample(tile, x, y, z, 6.0) + np.float32(0.005) * np.abs(x)
    per_mm = np.float32(9.5)
    # a triangle wave
    return np.arcsin(np.sin(angle * per_mm * 2) * np.float32(0.999)) * radius / (2 * per_mm)


def shift_share(x, y, z):
    """How much of a midline shift reaches a point: all around the septum pellucidum, nothing at the skull."""
    far = (
        np.square(x / np.float32(67))
        + np.square((y + 17) / np.float32(83))
        + np.square((z - 10) / np.float32(66))
    )
    share = np.square(np.maximum(1 - far, 0)) * np.float32(1 / 0.7)
    return np.minimum(share, 1)


def site_at(x: float, y: float, z: float) -> tuple[Side | None, str]:
    """Side and site of a reference point."""
    a, side = abs(x), Side.RIGHT if x > 0 else Side.LEFT
    point = tuple(np.array([v], np.float32) for v in (a, y, z))
    if z < 2 and float(brainstem(*point)[0]) < 1.0:
        return None, "brainstem"
    if y < -28 and z < float(tent(*point[:2])[0]) and float(cerebellum(*point)[0]) < 6:
        return side, "cerebellum"
    if float(thalamus(*point)[0]) < 1.0:
        return side, "thalamus"
    if min(float(f(*point)[0]) for f in (caudate, putamen, pallidum)) < 1.5:
        return side, "basal_ganglia"
    if y < -62 - 0.45 * max(z - 5, 0):
        return side, "occipital_lobe"
    rise = -7 - 0.44 * (y - 2)
    if a > 17 and z < min(rise, 12.0) and y < 30:
        return side, "temporal_lobe"
    return side, "frontal_lobe" if y > -5 - 0.38 * (z - 10) else "parietal_lobe"


def _pair(name: str, points, radii, deformed: bool = True) -> dict:
    left = [(-x, y, z) for x, y, z in points]
    return {
        f"{name}_right": (np.array(points, float), radii, deformed),
        f"{name}_left": (np.array(left, float), radii, deformed),
    }


VESSELS: dict[str, tuple[np.ndarray, tuple[float, ...], bool]] = {
    **_pair(
        "ica",
        [(24, -22, -58), (22, -14, -44), (15, -2, -40), (13, 8, -34), (14, 2, -27), (12, 3, -19)],
        (2.4, 2.4, 2.4, 2.3, 2.2, 1.9),
        False,
    ),
    **_pair(
        "mca",
        [(12, 3, -19), (20, 3, -19), (30, 4, -17), (37, 2, -11), (41, -8, -4), (45, -22, 5)],
        (1.7, 1.6, 1.5, 1.3, 1.0, 0.8),
    ),
    **_pair(
        "aca",
        [(12, 3, -19), (4, 10, -16), (2, 22, -10), (2, 37, 2), (2, 36, 18), (2, 18, 30), (2, -8, 32)],
        (1.3, 1.2, 1.2, 1.1, 1.0, 0.9, 0.7),
    ),
    **_pair(
        "pca",
        [(0, -11, -21), (8, -13, -19), (16, -24, -15), (16, -36, -8), (12, -52, 0), (10, -66, 4)],
        (1.4, 1.3, 1.2, 1.1, 1.0, 0.8),
    ),
    "basilar": (
        np.array([(0, -25, -52), (0, -15, -42), (0, -11, -32), (0, -11, -21)], float),
        (1.7, 1.8, 1.8, 1.7),
        False,
    ),
    **_pair("vertebral", [(14, -42, -80), (8, -32, -64), (0, -25, -52)], (1.6, 1.6, 1.6), False),
    "sagittal_sinus": (
        np.array(
            [
                (0, 70, 16),
                (0, 60, 44),
                (0, 28, 72),
                (0, -17, 79.5),
                (0, -66, 66),
                (0, -98, 30),
                (0, -103, -6),
            ],
            float,
        ),
        (1.2, 1.8, 2.4, 3.0, 3.4, 3.6, 3.8),
        False,
    ),
    **_pair(
        "transverse_sinus",
        [(0, -103, -6), (22, -96, -12), (44, -76, -18), (56, -52, -22), (52, -38, -36), (36, -38, -52)],
        (3.6, 3.4, 3.2, 3.2, 3.2, 3.4),
        False,
    ),
    **_pair(
        "internal_cerebral_vein", [(3, 0, 8), (3, -20, 11), (2, -34, 9), (0, -44, 4)], (0.7, 0.9, 1.0, 1.3)
    ),
    "straight_sinus": (
        np.array([(0, -44, 4), (0, -62, 0), (0, -84, -6), (0, -103, -6)], float),
        (1.6, 1.8, 2.0, 2.4),
        True,
    ),
}
"""Name -> reference points, radii (mm), whether they move with the brain."""

LANDMARKS: dict[str, tuple[np.ndarray, bool]] = {
    "mca_right": (np.array([(33, 3.5, -14)], float), True),
    "mca_left": (np.array([(-33, 3.5, -14)], float), True),
    "ica_right": (np.array([(12, 3, -19)], float), False),
    "ica_left": (np.array([(-12, 3, -19)], float), False),
    "septum": (np.array([(0, 8, 10)], float), True),
    "pineal": (np.array([(0, -30, 2)], float), True),
    "sella": (np.array([(0, 6, -33)], float), False),
    "basilar_tip": (np.array([(0, -11, -21)], float), False),
}
"""Name -> reference point (1, 3), whether it moves with the brain."""
