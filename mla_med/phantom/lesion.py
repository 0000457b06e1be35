"""What is planted in a body: a finding that a report should state, or a decoy that it should not.

The truth stands before anything is drawn: code, side, site, size and box follow from the geometry that is
planted, not from pixels. Knows no anatomy and no scanner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Decoy:
    """What looks like a finding and is none: an artefact, a normal variant."""

    kind: str
    box_mm: Box
    paint: Paint = _nothing
    change: Alter = _same
