"""A trained model -> the same function of voxels of half the size, with channels that may learn what lies
between.

A network that was trained at 3 mm knows anatomy; what is smaller than its voxels it has never seen. Begun
anew at 1.5 mm, it would learn everything again from eight times as many voxels. So it gets one stage more in
front, which at first gives it the means of 2 x 2 x 2 voxels, that is, what it saw before, beside differences
within them to which it does not listen yet; then training goes on (a function that is kept while a network
grows: Net2Net, Chen et al., ICLR 2016, arXiv:1511.05641). Knows no folder.
"""

# B batch, C channels, I J K voxel axes, D channels of the new stage, O of the stage behind it

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from dapt.widen import check_own
from mla_med.errors import ConfigError
from mla_med.imaging.grid import Preprocessing
from mla_med.model.config import ModalConfig
from mla_med.model.image_encoder import SLOPE
from mla_med.model.mla import MLAModel

DETAILS = 10
"""Channels for what differs within a cell of 2 x 2 x 2 voxels."""
STAGE = "image_encoder.stages."


def width_of(channels: int) -> int:
    """Channels of a stage in front: each channel and its negative, and details."""
    return 2 * channels + DETAILS


def is_half(finer: Preprocessing, settings: Preprocessing) -> bool:
    """Whether `finer` has the same region as `settings` in voxels of half the size."""
    return finer == settings.at(settings.spacing_mm / 2)


@torch.no_grad()
def halve_voxels(model: MLAModel, image_BCIJK: Tensor, seed: int = 0) -> MLAModel:
    """-> a new model that finds in images of half the voxel size what `model` finds in their means.

    image_BCIJK: some of these images, for the statistics of the new norm. ConfigError where the image encoder
    is MONAI's or was pruned, or is told of blobs and lines."""
    config = model.config
    check_own(config)
    check_untold(config)
    channels = config.channels
    width = width_of(channels)
    weight_DCIJK = _first_weights(channels, seed)
    seen_DN = F.conv3d(image_BCIJK, weight_DCIJK, stride=2).transpose(0, 1).flatten(1)
    mean_D, variance_D = seen_DN.mean(1), seen_DN.var(1)
    before = model.state_dict()
    finer = MLAModel(_finer_config(model, width)).eval()
    finer.tokenizer = model.tokenizer
    state = finer.state_dict()
    for name, value in before.items():
        state[_moved_back(name)] = value.clone()
    first, second = f"{STAGE}0.", f"{STAGE}1."
    state |= {
        f"{first}halve.conv.weight": weight_DCIJK,
        f"{first}halve.conv.bias": torch.zeros(width),
        f"{first}norm.running_mean": mean_D,
        f"{first}norm.running_var": variance_D,
        f"{first}gate.gates.2.weight": torch.zeros_like(state[f"{first}gate.gates.2.weight"]),
        f"{first}gate.gates.2.bias": torch.zeros(width),
    }
    own_OCIJK = before[f"{STAGE}0.halve.conv.weight"]
    # a channel and its negative give the channel back through a leaky unit; the gate halves all at first
    gain_D = 2 * (variance_D + finer.image_encoder.stages[0].norm.eps).sqrt() / (1 + SLOPE)
    weight_ODIJK = own_OCIJK.new_zeros(own_OCIJK.shape[0], width, *own_OCIJK.shape[2:])
    for c in range(channels):
        for sign, d in ((1, 2 * c), (-1, 2 * c + 1)):
            weight_ODIJK[:, d] = sign * gain_D[d] * own_OCIJK[:, c]
    state[f"{second}halve.conv.weight"] = weight_ODIJK
    state[f"{second}halve.conv.bias"] += own_OCIJK.sum((2, 3, 4)) @ mean_D[: 2 * channels : 2]
    finer.load_state_dict(state)
    return finer


def check_untold(config: ModalConfig) -> None:
    """ConfigError where the image encoder is told of blobs and lines, which would be others."""
    if config.hessian:
        raise ConfigError(
            "What the image encoder is told of blobs and lines, it would be told of others in voxels of half "
            "the size. Halve first."
        )


def _first_weights(channels: int, seed: int) -> Tensor:
    """(D, C, 2, 2, 2): the mean of each channel and its negative, then random differences within a cell."""
    generator = torch.Generator().manual_seed(seed)
    details = torch.randn(DETAILS, channels, 2, 2, 2, generator=generator)
    details -= details.mean((2, 3, 4), keepdim=True)
    details /= details.flatten(1).norm(dim=1)[:, None, None, None, None]
    means = torch.zeros(2 * channels, channels, 2, 2, 2)
    for c in range(channels):
        means[2 * c, c], means[2 * c + 1, c] = 1 / 8, -1 / 8
    return torch.cat([means, details])


def _finer_config(model: MLAModel, width: int):
    config = deepcopy(model.config)
    config.widths, config.units = (width, *config.widths), (0, *config.units)
    settings = Preprocessing.from_dict(config.preprocessing)
    finer = settings.at(settings.spacing_mm / 2)
    config.preprocessing, config.image_dim = finer.to_dict(), finer.shape
    return config


def _moved_back(name: str) -> str:
    """Where the weights of a stage stand behind one stage more."""
    if not name.startswith(STAGE):
        return name
    number, rest = name.removeprefix(STAGE).split(".", 1)
    return f"{STAGE}{int(number) + 1}.{rest}"
