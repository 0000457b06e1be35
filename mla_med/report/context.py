"""Clinical context -> the one line that the text encoder reads, in training and in use."""

from __future__ import annotations

from mla_med.types import ClinicalContext


def context_text(context: ClinicalContext) -> str:
    """Age, sex and indication, what is unknown left out: "61 years, F, fever and cough"."""
    age = "" if context.age_years is None else f"{context.age_years:.0f} years"
    return ", ".join(part for part in (age, context.sex or "", context.indication) if part)
