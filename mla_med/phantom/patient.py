"""Seed -> Patient: who is examined, why, and what they have. Knows no shapes and no images.

Findings are drawn together, as in life: smoking brings emphysema, nodules and masses, heart failure
brings effusions and a large heart, age brings calcium, atrophy and white matter disease.
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_med.types import Sex


@dataclass(frozen=True, slots=True)
class Patient:
    """An adult who does not exist."""

    seed: int
    sex: Sex
    age_years: int
    height_cm: float
    bmi: float
    """Body mass index, kg per square metre."""
    history: frozenset[str] = frozenset()
    """Keys of HISTORIES: what is known of them."""
