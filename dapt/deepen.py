"""A trained model -> the same function with convolutions in stages of its image encoder that had none.

What is told by fine detail (a nodule from a vessel that is cut across) has to be looked at where it still is
fine; a stage without convolutions sees each of its cells alone. The new ones at first give back what the
leaky unit in their place gave; then training goes on (a function that is kept while a network deepens:
Net2Net, Chen et al., ICLR 2016, arXiv:1511.05641). Knows no folder.
"""

# D channels of a stage

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from dapt.widen import check_own
from mla_med.errors import ConfigError
from mla_med.model.config import LEVELS
from mla_med.model.image_encoder import SLOPE, TOLD
from mla_med.model.mla import MLAModel

STAGE = "image_encoder.stages."


@torch.no_grad()
def deepen(model: MLAModel, units: Sequence[int]) -> MLAModel:
    """-> a new model of so many convolutions in each stage, finest first, that finds what `model` finds.

    ConfigError where a stage that has convolutions shall have other ones, or the image encoder is MONAI's or
    pruned."""
    check_own(model.config)
    check_units(units, model.config.units)
    config = deepcopy(model.config)
    config.units = tuple(units)
    deeper = MLAModel(config).eval()
    deeper.tokenizer = model.tokenizer
    state = deeper.state_dict() | {name: old.clone() for name, old in model.state_dict().items()}
    for number, (before, after) in enumerate(zip(model.config.units, units, strict=True)):
        if after > before:
            eps = deeper.image_encoder.stages[number].norm.eps
            _fill(state, number, after, eps, is_told=number == len(units) - LEVELS - 1)
    deeper.load_state_dict(state)
    return deeper


def check_units(units: Sequence[int], before: Sequence[int]) -> None:
    """ConfigError where stages of `before` convolutions cannot be deepened to `units`."""
    same = len(units) == len(before)
    if not same or any(new != old and (old or new < 0) for new, old in zip(units, before, strict=False)):
        raise ConfigError(
            f"The stages have {', '.join(map(str, before))} convolutions. Name as many numbers, others only "
            "where there are none."
        )


def _fill(state: dict[str, Tensor], number: int, units: int, eps: float, is_told: bool) -> None:
    """x + a leaky(...leaky(-x)) is s leaky(x) for an s and an a; of an x that is 1 / s as large, leaky(x)."""
    stage = f"{STAGE}{number}."
    last = SLOPE ** (units - 1)
    # of x > 0 comes 1 - last * SLOPE * a, of x < 0 comes 1 - a, which has to be SLOPE of it
    a = (1 - SLOPE) / (1 - SLOPE * SLOPE * last)
    s = 1 - last * SLOPE * a
    named = [f"{stage}norm.weight", f"{stage}norm.bias"]
    # which channels are absent is added behind the norm of the stage in front of the levels
    named += [f"image_encoder.presence.{part}" for part in ("weight", "bias")] if is_told else []
    # so is what is told of blobs and lines
    named += [f"image_encoder.told.{number - 1}.weight"] if 0 < number <= TOLD else []
    for name in named:
        if name in state:
            state[name] /= s
    mean_D, scale_D = -state[f"{stage}norm.bias"], state[f"{stage}norm.weight"].abs()
    for n in range(units):
        conv, norm = f"{stage}refine.conv.unit{n}.conv.", f"{stage}refine.conv.unit{n}.adn.N."
        gain = a if n == units - 1 else 1.0
        weight = torch.zeros_like(state[f"{conv}weight"])
        middle = weight.shape[2] // 2
        weight[:, :, middle, middle, middle] = torch.eye(weight.shape[0]) * (-1 if n == 0 else 1)
        std_D = scale_D.clamp(min=1e-3)
        state |= {
            f"{conv}weight": weight,
            f"{conv}bias": torch.zeros_like(mean_D),
            f"{norm}running_mean": mean_D.clone(),
            f"{norm}running_var": std_D**2,
            f"{norm}weight": gain * (std_D**2 + eps).sqrt(),
            f"{norm}bias": gain * mean_D,
        }
