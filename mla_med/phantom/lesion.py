"""What is planted in a body: a finding that a report should state, or a decoy that it should not.

The truth stands before anything is drawn: code, side, site, size and box follow from the geometry that is
planted, not from pixels. Knows no anatomy and no scanner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mla_med.phantom.shapes import point
from mla_med.types import Box, Finding

Paint = Callable[[Any], None]
"""Draws on a canvas of the examination (chest.Canvas, head.Canvas), after the anatomy."""
Alter = Callable[[Any], Any]
"""Anatomy -> anatomy: changes an organ before anything is drawn."""


def _nothing(canvas: Any) -> None:
    return None


def _same(anatomy: Any) -> Any:
    return anatomy


@dataclass(frozen=True, slots=True)
class Lesion:
    """A planted finding with its true box in patient RAS mm."""

    finding: Finding
    box_mm: Box
    paint: Paint = _nothing
    change: Alter = _same
    regrown: Callable[[float], Lesion] | None = field(default=None, compare=False)
    """The same lesion at `factor` times its size, at the same place; None where it has no size."""
    parts_mm: tuple[Box, ...] = ()
    """Of what lies in several places, their boxes, the largest first; else nothing, and `box_mm` is it."""


def parts_of(boxes_mm: Iterable[Box], gap_mm: float = 3.0) -> tuple[Box, ...]:
    """Boxes with no more than a gap between them are one; the largest first. A single one is no part."""
    parts: list[np.ndarray] = []
    for box in boxes_mm:
        merged = np.asarray(box, float)
        while True:
            near = [n for n, part in enumerate(parts) if _gap(part, merged) <= gap_mm]
            if not near:
                break
            met = [merged, *(parts[n] for n in near)]
            merged = np.stack([np.min([b[0] for b in met], axis=0), np.max([b[1] for b in met], axis=0)])
            parts = [part for n, part in enumerate(parts) if n not in near]
        parts.append(merged)
    if len(parts) < 2:
        return ()
    parts.sort(key=lambda part: -float(np.prod(part[1] - part[0])))
    return tuple((point(low), point(high)) for low, high in parts)


def _gap(one: np.ndarray, other: np.ndarray) -> float:
    """The widest gap along an axis; 0 or less where they overlap along each."""
    return float(np.max(np.maximum(one[0], other[0]) - np.minimum(one[1], other[1])))


@dataclass(frozen=True, slots=True)
class Decoy:
    """What looks like a finding and is none: an artefact, a normal variant."""

    kind: str
    box_mm: Box
    paint: Paint = _nothing
    change: Alter = _same
