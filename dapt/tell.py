"""A trained model -> the same function, of an image encoder that is told where blobs and lines are.

At first nobody listens to what it is told; then training goes on. Knows no folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch

from dapt.widen import check_own
from mla_med.errors import ConfigError
from mla_med.model.config import check_hessian
from mla_med.model.mla import MLAModel


@torch.no_grad()
def tell(model: MLAModel, hessian: Sequence[int]) -> MLAModel:
    """-> a new model that is told of these channels of the image (model/hessian.py), and finds what `model`
    finds.

    ConfigError where there are no such channels, or it is told of others already, or the image encoder is
    MONAI's or pruned."""
    check_own(model.config)
    check_told(hessian, model.config.channels, model.config.hessian)
    config = deepcopy(model.config)
    config.hessian = tuple(hessian)
    told = MLAModel(config).eval()
    told.tokenizer = model.tokenizer
    told.load_state_dict(told.state_dict() | model.state_dict())
    return told


def check_told(hessian: Sequence[int], channels: int, before: Sequence[int] = ()) -> None:
    """ConfigError where an encoder of so many channels, told of `before`, cannot be told of `hessian`."""
    if before and tuple(before) != tuple(hessian):
        raise ConfigError(
            f"It is told of the channels {', '.join(map(str, before))} already. Name those, or none."
        )
    check_hessian(tuple(hessian), channels)
