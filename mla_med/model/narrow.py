"""Layers of a pruned model, at the sizes that its configuration says.

`ModalConfig.pruned` names every layer that is narrower than the rest of the configuration would make it, with
the shape of its weight; a block of attention, with its heads. Knows nothing of why they were pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mla_med.errors import ConfigError

Shapes = Mapping[str, Sequence[int]]
LAYERS = (nn.Conv3d, nn.Linear, nn.BatchNorm3d)
HEADS = "heads"
"""What the number of heads of a block is called, behind its name."""


def narrow(model: nn.Module, shapes: Shapes) -> None:
    """Gives the named layers weights of these shapes, in place: room for what will be loaded."""
    known = dict(model.named_modules())
    for name, shape in shapes.items():
        path, _, last = name.rpartition(".")
        if last == HEADS and path in known:
            known[path].heads = int(shape[0])
            continue
        layer = known.get(name)
        if not isinstance(layer, LAYERS):
            raise ConfigError(
                f"The configuration says that {name} was pruned, and this model has no such layer. Was it "
                "made by another version of mla_med?",
                code="CHECKPOINT_DAMAGED",
            )
        resize(layer, tuple(int(n) for n in shape))


def resize(layer: nn.Module, shape: tuple[int, ...]) -> None:
    if isinstance(layer, nn.Conv3d):
        layer.out_channels, layer.in_channels = shape[:2]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = shape
    else:
        assert isinstance(layer, nn.BatchNorm3d)
        (layer.num_features,) = shape
        layer.running_mean = _room(layer.running_mean, shape).fill_(0)
        layer.running_var = _room(layer.running_var, shape).fill_(1)
    layer.weight = nn.Parameter(_room(layer.weight, shape))
    if layer.bias is not None:
        layer.bias = nn.Parameter(_room(layer.bias, shape[:1]))
    layer.reset_parameters()


def shapes_of(model: nn.Module, like: nn.Module) -> dict[str, list[int]]:
    """What `narrow` has to be told to make of `like` a model of the sizes of this one."""
    found: dict[str, list[int]] = {}
    for (name, layer), (_, other) in zip(model.named_modules(), like.named_modules(), strict=True):
        if isinstance(layer, LAYERS) and layer.weight.shape != other.weight.shape:
            found[name] = list(layer.weight.shape)
        heads = getattr(layer, "heads", None)
        if isinstance(heads, int) and heads != getattr(other, "heads", None):
            found[f"{name}.{HEADS}"] = [heads]
    return found


def _room(like: Tensor | None, shape: Sequence[int]) -> Tensor:
    assert like is not None
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
