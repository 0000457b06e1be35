"""Head + Grid -> Tissues: how much of each voxel is which tissue, from the front layer to the back.

What lies in front takes its share of a voxel first; the rest is left for what lies behind it. Knows no
lesions, no sequence and no scanner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mla_med.phantom.head import skull
from mla_med.phantom.head.fields import sheet
from mla_med.phantom.head.tissues import TISSUES, Tissues
from mla_med.phantom.lattice import Texture, chain
from mla_med.phantom.shapes import Grid, soft

if TYPE_CHECKING:
    from mla_med.phantom.head.anatomy import Head

SLAB_VOXELS = 1_200_000
"""How many voxels are drawn at a time."""


def draw_anatomy(head: Head, grid: Grid) -> Tissues:
    """Maps of the head as it is."""
    maps = Tissues.empty(grid)
    step = max(1, SLAB_VOXELS // (grid.shape[0] * grid.shape[1]))
    for k in range(0, grid.shape[2], step):
        n = min(step, grid.shape[2] - k)
        x, y, z = grid.origin_mm
        slab = Grid((*grid.shape[:2], n), grid.spacing_mm, (x, y, z + k * grid.spacing_mm[2]))
        _fill(maps, _layers(head, slab), slice(k, k + n))
    _uneven(head, maps)
    return maps


def _uneven(head: Head, maps: Tissues) -> None:
    """Tissue is not the same everywhere, even in health."""
    texture = Texture.make(np.random.default_rng([head.patient.seed, 304]), 3.2, 48, 0.9)
    grid = maps.grid
    step = max(1, SLAB_VOXELS // (grid.shape[0] * grid.shape[1]))
    for k in range(0, grid.shape[2], step):
        box = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(k, min(k + step, grid.shape[2])))
        grain = texture.on(grid, box)
        for values, spread in ((maps.t1_ms, 0.015), (maps.t2_ms, 0.022), (maps.adc, 0.02)):
            values[box] *= 1 + np.float32(spread) * grain


class Layers:
    """Collects how much of each voxel belongs to each tissue, from the front layer to the back."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.free = np.ones(grid.shape, np.float32)
        self.names: list[str] = []
        self.amounts = np.zeros((len(TISSUES), *grid.shape), np.float32)

    def take(self, name: str, inside: np.ndarray, box: Any = ...) -> None:
        """What is not yet taken of `inside` (0 to 1) becomes this tissue."""
        if name not in self.names:
            self.names.append(name)
        part = self.free[box] * inside
        self.amounts[self.names.index(name)][box] += part
        self.free[box] -= part


_GREY = ("grey", "deep_grey", "thalamus", "pallidum")
_WHITE = ("white", "stem", "nigra")


def _fill(maps: Tissues, layers: Layers, at: slice) -> None:
    """Amounts of tissues -> maps; times of tissues that share a voxel are averaged by their protons."""
    tissues = [TISSUES[name] for name in layers.names]
    solid = ("t1_ms", "t2_ms", "t2star_ms", "adc", "uptake", "fat")
    rows = {name: [t.pd * getattr(t, name) for t in tissues] for name in solid}
    rows |= {name: [getattr(t, name) for t in tissues] for name in ("pd", "water", "blood", "chi")}
    rows["grey"] = [float(name in _GREY) for name in layers.names]
    rows["white"] = [float(name in _WHITE) for name in layers.names]
    amounts = layers.amounts[: len(tissues)].reshape(len(tissues), -1)
    mixed = np.array(list(rows.values()), np.float32) @ amounts
    values = dict(zip(rows, mixed.reshape(len(rows), *layers.grid.shape), strict=True))
    inverse = 1 / np.maximum(values["pd"], np.float32(1e-6))
    for name in solid:
        values[name] *= inverse
        if name.endswith("_ms"):
            np.maximum(values[name], 1, out=values[name])
    values["brain"] = values["grey"] + values["white"]
    for name, value in values.items():
        getattr(maps, name)[:, :, at] = value


def _layers(head: Head, grid: Grid) -> Layers:
    """From the front layer to the back: vessels, nuclei, ventricles, cortex, fluid, skull, scalp, face."""
    layers = Layers(grid)
    whole = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
    edge = grid.edge_mm
    cranium = head.cranium.on(grid, whole)
    _take_vessels(head, layers)
    inner = _bounds(cranium < edge)
    if inner is not None:
        _take_brain(head, layers, inner, soft(cranium[inner], edge))
    layers.take("csf", soft(cranium, edge))
    skull.take_layers(head, layers, whole, cranium)
    return layers


def _bounds(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds all of the mask."""
    out = []
    for axis in range(3):
        hits = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if hits.size == 0:
            return None
        out.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return out[0], out[1], out[2]


def _take_vessels(head: Head, layers: Layers) -> None:
    grid, edge = layers.grid, layers.grid.edge_mm
    for name, (line, radii) in head.vessels.items():
        lo, hi, widest = line.min(0), line.max(0), float(radii.max()) + edge
        box = grid.window((lo + hi) / 2, (hi - lo) / 2 + widest)
        if any(s.stop <= s.start for s in box):
            continue
        inside = np.zeros(tuple(s.stop - s.start for s in box), np.float32)
        for k in range(len(line) - 1):
            ends = line[k : k + 2]
            part = grid.window(ends.mean(0), np.abs(ends[1] - ends[0]) / 2 + widest)
            if any(s.stop <= s.start for s in part):
                continue
            sdf = chain(*grid.axes(part), ends, radii[k : k + 2])
            # thinner than a voxel, a vessel fills its share of it
            share = min(1.0, (2 * float(radii[k]) / edge) ** 2)
            at = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
            np.maximum(inside[at], soft(sdf, edge) * np.float32(share), out=inside[at])
        vein = "sinus" in name or "vein" in name
        layers.take("vein" if vein else "artery", inside, box)


def _slab(distance, half, edge):
    """How much of a voxel a sheet fills, of which `distance` (>= 0) is the distance to its middle."""
    h = np.float32(edge / 2)
    covered = np.minimum(distance + h, half) - np.maximum(distance - h, -half)
    return np.clip(covered / (2 * h), 0, 1)


def _take_brain(head: Head, layers: Layers, box, cranium) -> None:
    """From the front: fluid inside, nuclei, stem, cerebellum, corpus callosum, cortex and white matter."""
    grid, edge = layers.grid, layers.grid.edge_mm

    def near(name: str, *more: str):
        """A field where it is near, and other fields there."""
        part = head.fields[name].window(grid, box)
        if part is None:
            return None, []
        return part, [head.fields[n].on(grid, part) for n in (name, *more)]

    wide = head.ventricle_width
    part, values = near("choroid", "ventricle")
    if part is not None:
        layers.take("choroid", soft(np.maximum(*values), edge) * np.float32(0.8), part)
    part, values = near("ventricle", "middle", "core")
    if part is not None:
        _take_ventricles(head, layers, part, *values)
    part, values = near("third", "middle")
    if part is not None:
        third, middle = values
        half = np.float32(1.5 + 1.7 * (wide - 1)) * np.clip(third / -5, 0.25, 1)
        layers.take("csf", _slab(np.abs(middle), half, edge) * soft(third, edge), part)
    for name, kind in (
        ("fourth", "csf"),
        ("caudate", "deep_grey"),
        ("pallidum", "pallidum"),
        ("putamen", "deep_grey"),
        ("thalamus", "thalamus"),
        ("nigra", "nigra"),
        ("stem", "stem"),
    ):
        part, values = near(name)
        if part is not None:
            layers.take(kind, soft(values[0], edge), part)
    part, values = near("cerebellum", "folium", "peduncle")
    if part is not None:
        _take_cerebellum(layers, part, *values)
    f = {name: head.fields[name].on(grid, box) for name in _CORTICAL}
    hull = soft(f["cerebrum"], edge)
    middle = np.abs(f["middle"])
    callosal = soft(np.maximum(np.maximum(f["core"] + 0.3, -6.5 - f["core"]), middle - 9), edge)
    layers.take("white", callosal * hull, box)
    sheets = (
        (sheet(f["fold"], f["fold_depth"]), head.cleft_mm),
        (sheet(f["middle"], -f["core"]), head.cleft_mm + 0.4),
        (sheet(f["sylvian"], f["beyond"]), head.cleft_mm + 0.3),
        (sheet(f["insula"], f["rim"]), head.cleft_mm + 0.3),
        (sheet(f["cingulate"], middle - 12), head.cleft_mm),
    )
    gaps, depth = np.float32(0), -f["cerebrum"]
    for distance, half in sheets:
        gaps = np.maximum(gaps, _slab(distance, half, edge))
        depth = np.minimum(depth, distance - np.float32(half))
    tissue = hull * (1 - gaps)
    white = np.clip(np.float32(0.5) + (depth - np.float32(head.cortex_mm)) / edge, 0, 1)
    white = np.minimum(white, tissue)
    grey = tissue - white
    part, values = near("hippocampus")
    if part is not None:
        at = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
        more = soft(values[0], edge) * white[at]
        grey[at] += more
        white[at] -= more
    layers.take("grey", grey, box)
    # shares beside what grey took: of the rest, all that is white
    layers.take("white", np.clip(white / np.maximum(1 - grey, np.float32(1e-3)), 0, 1), box)
    part, values = near("tent", "cerebrum", "cerebellum")
    if part is not None:
        height, above, below = values
        between = soft(np.maximum(above, below) - 6, edge) * soft(np.maximum(-above, -below) - 1, edge)
        layers.take("dura", _slab(np.abs(height), 0.5, edge) * between, part)
    layers.take("dura", _slab(middle, 0.5, edge) * soft(6 - f["core"], edge) * cranium, box)


_CORTICAL = (
    *("cerebrum", "fold", "fold_depth", "middle", "core"),
    *("sylvian", "beyond", "insula", "rim", "cingulate"),
)


def _take_ventricles(head: Head, layers: Layers, box, ventricle, middle, core) -> None:
    edge, middle = layers.grid.edge_mm, np.abs(middle)
    septum = np.float32(0.8)
    if head.cavum_mm:
        cavum = np.maximum(middle - np.float32(head.cavum_mm / 2), core + 7)
        cavum = np.maximum(cavum, ventricle - np.float32(2 + head.cavum_mm / 2))
        layers.take("csf", soft(cavum, edge), box)
        septum = np.float32(head.cavum_mm / 2 + 0.8)
        ventricle = ventricle - np.float32(head.cavum_mm / 3)
    layers.take("csf", soft(np.maximum(ventricle, septum - middle), edge), box)


def _take_cerebellum(layers: Layers, box, cerebellum, folium, peduncle) -> None:
    edge, inner = layers.grid.edge_mm, -cerebellum
    hull = soft(cerebellum, edge)
    gaps = _slab(sheet(folium, inner - 12), 0.3, edge) * np.float32(0.6)
    # white blades between the fissures, and a core
    blade = np.minimum(inner - 3.5, np.abs(folium) - np.maximum(2.3 - np.float32(0.1) * inner, 0.8))
    core = np.clip(np.float32(0.5) + np.maximum(blade, np.maximum(inner - 14, -peduncle)) / edge, 0, 1)
    layers.take("csf", hull * gaps * (1 - core), box)
    layers.take("white", hull * core, box)
    layers.take("grey", hull, box)
