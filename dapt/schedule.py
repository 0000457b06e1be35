"""What every training of a whole model does with its optimizer: how fast it learns at which step, which
weights learn faster, which decay. Knows no batch and no loss."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from mla_med.errors import MlaMedError

LOWEST = 0.01
"""Share of the peak that is left of the learning rate at the end."""


class TrainingError(MlaMedError):
    code = "TRAINING_DIVERGED"


def check_gradient(norm: Tensor, loss: Tensor) -> None:
    """Before a gradient that is no number reaches the weights: what is on disk is whole."""
    if not norm.isfinite():
        raise TrainingError(
            f"The gradient is no number any more (loss {loss.detach():.3g}). What was saved before is whole; "
            "begin again in another folder, with a lower learning rate."
        )


def rate(step: int, steps: int, peak: float, warmup: float, lowest: float = LOWEST) -> float:
    """The learning rate rises linearly in the first share `warmup` of the steps, then falls as a cosine to
    the share `lowest` of its peak."""
    warm = max(1, int(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    gone = (step - warm) / max(1, steps - warm)
    return peak * (lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * gone)))


def groups_of(taught: nn.Module, images: str, scale: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer of what is to be learnt: parameters whose names begin with `images` learn
    `scale` times as fast (`lr_scale`); vectors (norms, biases, gates) do not decay."""
    named = [(name, p) for name, p in taught.named_parameters() if p.requires_grad]
    groups = []
    for lr_scale, part in ((scale, True), (1.0, False)):
        mine = [p for name, p in named if name.startswith(images) == part]
        for wide, decay in ((True, weight_decay), (False, 0.0)):
            params = [p for p in mine if (p.ndim > 1) == wide]
            if params:
                groups.append({"params": params, "weight_decay": decay, "lr_scale": lr_scale})
    return groups
