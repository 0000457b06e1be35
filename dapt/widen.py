"""A trained model -> the same function with more channels in its image encoder, which may learn what the old
ones have no room for.

New channels see the image at random, and nobody listens to them at first; then training goes on (a function
that is kept while a network widens: Net2Net, Chen et al., ICLR 2016, arXiv:1511.05641). Knows no folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from mla_med.errors import ConfigError
from mla_med.model.config import ModalConfig
from mla_med.model.mla import MLAModel


@torch.no_grad()
def widen(model: MLAModel, widths: Sequence[int], seed: int = 0) -> MLAModel:
    """-> a new model of so many channels in each stage, finest first, that finds what `model` finds.

    ConfigError where there are other stages or fewer channels, or the image encoder is MONAI's or pruned."""
    check_own(model.config)
    check_widths(widths, model.config.widths)
    config = deepcopy(model.config)
    config.widths = tuple(widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wider = MLAModel(config).eval()
    wider.tokenizer = model.tokenizer
    state = wider.state_dict()
    wider.load_state_dict({name: _around(old, state[name]) for name, old in model.state_dict().items()})
    return wider


def check_own(config: ModalConfig) -> None:
    """ConfigError where the image encoder cannot grow: it is MONAI's, or was pruned."""
    if config.backbone or config.pruned:
        kind = "MONAI's" if config.backbone else "pruned"
        raise ConfigError(f"The image encoder is {kind}. Start with one of our own, before it is pruned.")


def check_widths(widths: Sequence[int], before: Sequence[int]) -> None:
    """ConfigError where stages of `before` channels cannot be widened to `widths`."""
    if len(widths) != len(before) or any(new < old for new, old in zip(widths, before, strict=False)):
        raise ConfigError(
            f"The stages have {', '.join(map(str, before))} channels. Name as many numbers, none smaller."
        )


def _around(old: Tensor, fresh: Tensor) -> Tensor:
    """The old numbers within the fresh ones; an old output does not listen to a new input."""
    if old.shape == fresh.shape:
        return old.clone()
    grown = fresh.clone()
    if old.ndim > 1:
        grown[: old.shape[0]] = 0
    grown[tuple(slice(size) for size in old.shape)] = old
    return grown
