"""Tensors in, findings and report tokens out."""

from pathlib import Path

CHECKPOINTS = {name: Path(__file__).parents[1] / "checkpoints" / name for name in ("chest_ct", "brain_mr")}
"""The checkpoints that ship with the package, by examination: trained on phantoms only."""
DEFAULT_CHECKPOINT = CHECKPOINTS["chest_ct"]
