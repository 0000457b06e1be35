"""Tensors in, findings and report tokens out."""

from pathlib import Path

DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "chest_ct"
"""The checkpoint that ships with the package: trained on phantoms only."""
