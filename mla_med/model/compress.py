"""A model and calibration studies -> the same model with channels, heads and feed-forward pairs removed.

    groups = coupled(model, image_BCIJK)
    weigh(groups, model, batches)
    remove(model, groups, plan)    by a plan of pruning_plan.py

What one channel of one layer feeds has to go with it: torch-pruning (Fang et al., CVPR 2023, DepGraph)
follows the convolutions through residual sums, norms and gates; heads of attention and pairs of a
feed-forward layer are groups of their own. A channel is worth what the loss would change without it, to first
order (Molchanov et al., CVPR 2019: the square of the sum of weight times gradient, over studies). What was
removed is gone: the model is smaller, not masked.

Knows tensors and the loss of the model; knows nothing of corpora, checkpoints or reports.
"""

# B batch, C channels of a group

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_med.errors import ConfigError
from mla_med.model.attention import MaskedTransformerBlock
from mla_med.model.fusion import HierarchicalFeatureFusion
from mla_med.model.image_encoder import ImageEncoder
from mla_med.model.mla import MLAModel
from mla_med.model.narrow import shapes_of

STEP = {"channels": 8, "pairs": 16, "heads": 1}
"""Convolutions of oneDNN work on blocks of 8 or 16 channels, products of matrices on lines of 16 numbers."""
FLOOR = 0.5
"""So much of every group stays: to first order a coarse layer is worth nearly nothing beside a fine one, and
would give all away."""
LEAST_SHARE = 0.002
"""A group that costs less than this share of all products is left alone: nothing would be gained."""
Plan = dict[str, tuple[int, ...]]
"""By group, the channels that go."""
Batch = dict[str, Any]
"""Arguments of MLAModel.forward, with targets."""


@dataclass(slots=True)
class Part:
    """What one layer of a group loses with a channel."""

    layer: nn.Module
    axis: int
    """Of its weight: 0 rows, 1 columns. The bias goes with the rows."""
    index_C: list[list[int]]
    """By channel, which rows or columns."""


@dataclass(slots=True)
class Group:
    name: str
    kind: str
    channels: int
    parts: list[Part]
    block: nn.Module | None = None
    """Of attention, whose number of heads falls."""
    cost: float = 0.0
    """Of one channel: multiplications, or seconds once `measure` was asked."""
    worth_C: Tensor | None = None

    @property
    def floor(self) -> int:
        return max(STEP[self.kind], math.ceil(FLOOR * self.channels))


class _Seen(nn.Module):
    """What of the model torch-pruning follows: image to pyramid and lesion map."""

    def __init__(self, model: MLAModel):
        super().__init__()
        fusion = model.fusion
        assert isinstance(fusion, HierarchicalFeatureFusion)
        self.image_encoder = model.image_encoder
        self.pyramid: Any = fusion.pyramid
        self.lesion_map: Any = fusion.lesion_map

    def forward(self, image_BCIJK: Tensor, present_BC: Tensor) -> Any:
        levels = self.image_encoder(image_BCIJK, present_BC)
        f4, f8, f16 = (level.features_BDIJK for level in levels)
        # Pyramid.forward; through its repeated cells torch-pruning follows no channel
        f16 = self.pyramid.lateral_16(f16)
        f8 = self.pyramid.lateral_8(f8) + F.interpolate(f16, f8.shape[2:])
        f4 = f4 + F.interpolate(self.pyramid.down_to_4(f8), f4.shape[2:])
        ends = [self.pyramid.up_to_8(F.max_pool3d(f4, 2)), self.pyramid.up_to_16(f8)]
        ends += [self.pyramid.pooled_4(f4), self.lesion_map.look(f4), self.lesion_map.around(f8)]
        return torch.stack([f16.mean(), *(end.mean() for end in ends)])


def coupled(model: MLAModel, image_BCIJK: Tensor, least_share: float = LEAST_SHARE) -> list[Group]:
    """Everything that can be removed together, and what each channel costs on an image of this size."""
    if not isinstance(model.image_encoder, ImageEncoder) or not isinstance(
        model.fusion, HierarchicalFeatureFusion
    ):
        raise ConfigError(
            "Only models with the encoder and the levels of mla_med are pruned, not a MONAI backbone or a "
            f"fusion {model.config.fusion_type}.",
            code="PRUNE_UNSUPPORTED",
        )
    groups = _convolutions(model, image_BCIJK)
    for number, block in enumerate(model.fusion.blocks):
        if isinstance(block, MaskedTransformerBlock):
            groups += _of_block(f"fusion.blocks.{number}", block)
    products = products_of(model, image_BCIJK)
    total = sum(products.values())
    for group in groups:
        group.cost = sum(
            products.get(part.layer, 0.0) * len(part.index_C[0]) / _length(part) for part in group.parts
        )
    return [group for group in groups if group.cost * group.channels >= least_share * total]


def _convolutions(model: MLAModel, image_BCIJK: Tensor) -> list[Group]:
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigError(
            "Pruning wants the package torch-pruning: pip install 'mla_med[fast]'.", code="EXTRA_MISSING"
        ) from error
    seen = _Seen(model).eval()
    small = image_BCIJK[:1, :, :32, :32, :32]
    present = torch.ones(small.shape[:2], dtype=torch.bool)
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(seen, (small, present), verbose=False)
    pyramid, lesions = seen.pyramid, seen.lesion_map
    # the width of the tokens, and that of the lesion map, are those of layers that are not followed
    fixed = [pyramid.lateral_8, pyramid.lateral_16, pyramid.up_to_8, pyramid.up_to_16, pyramid.pooled_4]
    fixed += [lesions.look, lesions.around]
    names = {layer: name for name, layer in model.named_modules()}
    groups = []
    for found in graph.get_all_groups(ignored_layers=fixed, root_module_types=[nn.Conv3d]):
        root = found[0].dep.target.module
        parts: list[Part] = []
        for item in found:
            layer = item.dep.target.module
            if not isinstance(layer, (nn.Conv3d, nn.Linear, nn.BatchNorm3d)):
                continue
            rows = graph.is_out_channel_pruning_fn(item.dep.handler)
            index_C: list[list[int]] = [[] for _ in range(root.out_channels)]
            for own, of_root in zip(item.idxs, item.root_idxs, strict=True):
                index_C[of_root].append(int(own))
            if all(index_C) and not any(p.layer is layer and p.axis == (0 if rows else 1) for p in parts):
                parts.append(Part(layer, 0 if rows else 1, index_C))
        held = any(part.layer in fixed and part.axis == 0 for part in parts)
        if not held:
            groups.append(Group(names[root], "channels", root.out_channels, parts))
    return groups


def _of_block(name: str, block: MaskedTransformerBlock) -> list[Group]:
    width = block.out.in_features
    size = width // block.heads
    head_rows = [
        [part * width + head * size + n for part in range(3) for n in range(size)]
        for head in range(block.heads)
    ]
    columns = [[head * size + n for n in range(size)] for head in range(block.heads)]
    heads = Group(
        f"{name}.heads",
        "heads",
        block.heads,
        [Part(block.qkv, 0, head_rows), Part(block.out, 1, columns)],
        block,
    )
    wide: Any = block.feed_forward[1]
    back: Any = block.feed_forward[3]
    single = [[n] for n in range(wide.out_features)]
    pairs = Group(
        f"{name}.feed_forward", "pairs", wide.out_features, [Part(wide, 0, single), Part(back, 1, single)]
    )
    return [heads, pairs]


def products_of(model: MLAModel, image_BCIJK: Tensor) -> dict[nn.Module, float]:
    """Multiplications of each layer for one image."""
    counted: dict[nn.Module, float] = {}

    def count(layer: Any, _: Any, output: Tensor) -> None:
        channels = layer.weight.shape[0]
        counted[layer] = counted.get(layer, 0.0) + layer.weight.numel() * output.numel() / channels

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv3d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        model.eval()
        with torch.enable_grad():  # without, layers that belong together are one
            model.find(model.encode(image_BCIJK[:1], "cough"))
    finally:
        for handle in handles:
            handle.remove()
    return counted


def weigh(groups: Sequence[Group], model: MLAModel, batches: Iterable[Batch]) -> None:
    """Fills `worth_C`: over the batches, the mean square of what the loss would change, to first order,
    without each channel."""
    model.eval()
    worth = {group.name: torch.zeros(group.channels) for group in groups}
    count = 0
    for batch in batches:
        model.zero_grad()
        loss = model(**batch).loss
        assert loss is not None
        loss.backward()
        count += 1
        for group in groups:
            change_C = torch.zeros(group.channels)
            for part in group.parts:
                if part.axis == 0:
                    change_C += _change(part)
            worth[group.name] += change_C**2
    model.zero_grad()
    if not count:
        raise ConfigError("There are no studies to weigh channels by.", code="NO_EXAMPLES")
    for group in groups:
        group.worth_C = worth[group.name] / count


def _change(part: Part) -> Tensor:
    layer: Any = part.layer
    rows = torch.zeros(layer.weight.shape[0])
    for parameter in (layer.weight, layer.bias):
        if parameter is not None and parameter.grad is not None:
            rows += (parameter.detach() * parameter.grad).reshape(len(rows), -1).sum(1)
    return torch.stack([rows[index].sum() for index in part.index_C])


def remove(model: MLAModel, groups: Sequence[Group], plan: Plan) -> MLAModel:
    """A copy without the channels of the plan; its configuration says which layers are narrower."""
    pruned = deepcopy((model, groups))
    smaller, own = pruned
    smaller.zero_grad()
    for group in own:
        gone = plan.get(group.name, ())
        for part in group.parts if gone else ():
            lost = {n for channel in gone for n in part.index_C[channel]}
            _drop(part.layer, part.axis, [n for n in range(_length(part)) if n not in lost])
            part.index_C = []
        if gone and group.block is not None:
            group.block.heads -= len(gone)  # type: ignore[operator, assignment]
    plain = deepcopy(smaller.config)
    plain.pruned = None
    smaller.config.pruned = shapes_of(smaller, MLAModel(plain))
    return smaller.eval()


def masked(model: MLAModel, groups: Sequence[Group], plan: Plan) -> MLAModel:
    """A copy with the same channels at zero, as large and as slow as before: the control."""
    copy, own = deepcopy((model, groups))
    with torch.no_grad():
        for group in own:
            for part in group.parts:
                rows = [n for channel in plan.get(group.name, ()) for n in part.index_C[channel]]
                layer: Any = part.layer
                if part.axis == 0:
                    layer.weight[rows] = 0
                    if layer.bias is not None:
                        layer.bias[rows] = 0
                else:
                    layer.weight[:, rows] = 0
    return copy.eval()


def _length(part: Part) -> int:
    layer: Any = part.layer
    return int(layer.weight.shape[part.axis])


def _drop(layer: Any, axis: int, kept: list[int]) -> None:
    """The rows (0) or columns (1) that are kept, of the weight and of what goes with it."""
    layer.weight = nn.Parameter(layer.weight.detach().index_select(axis, torch.tensor(kept)))
    if axis == 0:
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[kept])
        if isinstance(layer, nn.BatchNorm3d):
            for name in ("running_mean", "running_var"):
                setattr(layer, name, getattr(layer, name)[kept])
            layer.num_features = len(kept)
        elif isinstance(layer, nn.Conv3d):
            layer.out_channels = len(kept)
        else:
            layer.out_features = len(kept)
    elif isinstance(layer, nn.Conv3d):
        layer.in_channels = len(kept)
    else:
        layer.in_features = len(kept)
