"""Image -> three levels of features (strides 4, 8, 16; twice that with a stage more), and where in mm each
cell of a level lies.

Knows voxel grids and their affine. Knows nothing of text, findings or how voxels became numbers.
"""

# B batch, C channels (windows or sequences), I J K voxel axes, D features, N cells of a level

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution, ResidualUnit
from monai.networks.nets.resnet import ResNetFeatures
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mla_med.errors import CheckpointError, ConfigError
from mla_med.model.attention import ChannelGate
from mla_med.model.config import BACKBONES, LEVELS, ModalConfig
from mla_med.model.convolution import channels_last, convolve, is_plain_inference
from mla_med.model.hessian import MAPS, blobs_and_lines

STRIDES = (4, 8, 16)
"""Of the levels of a MONAI network."""
TOLD = 2
"""Stages that are told of blobs and lines."""
SLOPE = 0.1
"""Of the leaky units below zero."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the voxels of a batch lie: their number along I, J, K and voxel index -> patient mm."""

    size: tuple[int, int, int]
    affine_B44: Tensor

    def centre_B3(self) -> Tensor:
        return self.to_mm(self._size_13() / 2 - 0.5).squeeze(1)

    def half_extent_B3(self) -> Tensor:
        """Half the length of the image along the patient axes; never 0, a voxel has a thickness."""
        return self.half_length(self._size_13()).squeeze(1)

    def to_mm(self, index_N3: Tensor) -> Tensor:
        return _along(self.affine_B44[:, :3, :3], index_N3) + self.affine_B44[:, None, :3, 3]

    def half_length(self, voxels_N3: Tensor) -> Tensor:
        return _along(self.affine_B44[:, :3, :3].abs(), voxels_N3) / 2

    def _size_13(self) -> Tensor:
        return torch.tensor([self.size], dtype=self.affine_B44.dtype, device=self.affine_B44.device)


def _along(axes_B33: Tensor, voxels_N3: Tensor) -> Tensor:
    """(B, N, 3). No product of matrices, which autocast would round to whole millimetres."""
    return (voxels_N3[..., None, :] * axes_B33[:, None]).sum(-1)


@dataclass(frozen=True, slots=True)
class Level:
    """Features of one stride; cell (i, j, k) covers voxels stride * i to stride * (i + 1) - 1."""

    features_BDIJK: Tensor
    stride: int


def frame_of(image_BCIJK: Tensor, affine_B44: Tensor | None) -> Frame:
    """The frame of an image; without an affine, a voxel is a mm."""
    if affine_B44 is None:
        affine_B44 = torch.eye(4, device=image_BCIJK.device).expand(image_BCIJK.shape[0], 4, 4)
    i, j, k = image_BCIJK.shape[2:]
    return Frame((i, j, k), affine_B44.to(image_BCIJK.device, torch.float32))


def cell_positions(level: Level, frame: Frame) -> tuple[Tensor, Tensor]:
    """Centre and half length in patient mm of every cell, as positions_BN3 and half_BN3."""
    device = frame.affine_B44.device
    axes = [
        cell_axis(cells, voxels, level.stride, device)
        for cells, voxels in zip(level.features_BDIJK.shape[2:], frame.size, strict=True)
    ]
    centres_N3, lengths_N3 = (_every([axis[n] for axis in axes]) for n in (0, 1))
    return frame.to_mm(centres_N3), frame.half_length(lengths_N3)


def _every(axes: list[Tensor]) -> Tensor:
    """(N, 3): every triple, the last axis the fastest; torch.cartesian_prod, which ONNX does not have."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def cell_axis(cells: int, voxels: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Centre and length in voxels of the cells along one axis; the last may be cut by the border."""
    first = torch.arange(cells, device=device, dtype=torch.float32) * stride
    after = (first + stride).clamp(max=voxels)
    return (first + after - 1) / 2, after - first


class ImageEncoder(nn.Module):
    """Residual stages, each at half the grid of the one before (strides 2, 4, 8, 16 of four), a channel gate
    after each. Statistics are those of the training set (HU are absolute: a patient's own statistics would
    wash them out), so at inference a patient never changes another's features.

    `hessian`: channels whose blobs and lines, at twice the voxels of the image, are told to the second stage,
    and the strongest of each of its cells to the third; at first nobody listens."""

    def __init__(
        self, channels: int, widths: tuple[int, ...], units: tuple[int, ...], hessian: tuple[int, ...] = ()
    ):
        super().__init__()
        self.channels, self.hessian = channels, hessian
        self.presence = nn.Linear(channels, widths[-LEVELS - 1])
        self.stages = nn.ModuleList(
            EncoderStage(before, after, unit)
            for before, after, unit in zip((channels, *widths), widths, units, strict=False)
        )
        maps = MAPS * len(hessian)
        self.told = nn.ModuleList(
            SilentConv3d(maps, width, 2, 2, bias=False) for width in (widths[1 : 1 + TOLD] if maps else ())
        )

    def forward(self, image_BCIJK: Tensor, present_BC: Tensor) -> list[Level]:
        x = blank_absent(image_BCIJK, present_BC)
        # Zero is also a grey value: without this no level could tell absent from dark.
        bias_BD = self.presence(present_BC.to(x.dtype))
        told = self._told(x)
        levels = []
        for n, stage in enumerate(self.stages, 1):
            added = [told[n]] if n in told else []
            if n == len(self.stages) - LEVELS:
                added.append(bias_BD[:, :, None, None, None])
            x = stage(x, added)
            levels.append(Level(x, 2**n))
        return levels[-LEVELS:]

    def _told(self, image_BCIJK: Tensor) -> dict[int, Tensor]:
        """By the number of the stage, what is added to it."""
        if not self.hessian:
            return {}
        image_BCIJK = pad_to_multiple(image_BCIJK[:, list(self.hessian)], 2)
        maps, added = blobs_and_lines(F.avg_pool3d(image_BCIJK, 2)), {}
        for n, conv in enumerate(self.told, 2):
            maps = pad_to_multiple(maps, 2)
            added[n] = conv(maps.to(image_BCIJK.dtype))
            maps = F.max_pool3d(maps, 2)
        return added


class MonaiResNet(nn.Module):
    """A 3-D ResNet of MONAI (Chen et al., MedicalNet, arXiv:1904.00625), whose published weights
    `read_backbone` loads, with a channel gate on what leaves each of its levels. Between the levels nothing
    is changed, and at first nothing is added for presence: with published weights it is the published
    network."""

    def __init__(self, channels: int, name: str):
        super().__init__()
        self.channels = channels
        self.presence = SilentLinear(channels, 64)
        self.net = ResNetFeatures(name, pretrained=False, spatial_dims=3, in_channels=channels)
        # the deepest stage, at stride 32, is no level here
        self.net.layer4 = nn.Identity()
        self.gates = nn.ModuleList(ChannelGate(width) for width in BACKBONES[name])

    def forward(self, image_BCIJK: Tensor, present_BC: Tensor) -> list[Level]:
        net = self.net
        x = net.bn1(net.conv1(blank_absent(image_BCIJK, present_BC)))
        x = x + self.presence(present_BC.to(x.dtype))[:, :, None, None, None]
        x = net.maxpool(net.act(x))
        levels = []
        stages = (net.layer1, net.layer2, net.layer3)
        for stage, gate, stride in zip(stages, self.gates, STRIDES, strict=True):
            x = stage(x)
            levels.append(Level(gate(between_corners(x)), stride))
        return levels


class SilentConv3d(nn.Conv3d):
    """Adds nothing at first."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class SilentLinear(nn.Linear):
    """Adds nothing at first."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def between_corners(x_BDIJK: Tensor) -> Tensor:
    """Strided convolutions of odd width look at the first corner of a cell; the mean of neighbouring
    corners stands for the middle of it, where `cell_positions` says it is (half a voxel off)."""
    return F.avg_pool3d(F.pad(x_BDIJK, (0, 1, 0, 1, 0, 1), mode="replicate"), 2, 1)


def read_backbone(encoder: nn.Module, path: Path) -> int:
    """Loads published weights of a MONAI ResNet from a local file into it; -> how many tensors fitted.

    safetensors, or a .pt / .pth of tensors alone, which PyTorch reads without running code. Weights of one
    input channel are spread over all. CheckpointError where the file is not there, or nothing fits."""
    if not isinstance(encoder, MonaiResNet):
        raise CheckpointError("This model has no MONAI backbone to load weights into. Choose one: backbone.")
    if not path.is_file():
        raise CheckpointError(f"No weights at {path.name}. Is the path right?", code="CHECKPOINT_MISSING")
    own = encoder.net.state_dict()
    given = {key.removeprefix("module."): value for key, value in _read_tensors(path).items()}
    conv = given.get("conv1.weight")
    if conv is not None and conv.shape[1] == 1:
        given["conv1.weight"] = conv.expand(-1, encoder.channels, -1, -1, -1) / encoder.channels
    fitting = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    # how many batches a norm has seen matters to no output, and older files do not say
    missing = sorted(key for key in set(own) - set(fitting) if not key.endswith("num_batches_tracked"))
    if missing:
        raise CheckpointError(
            f"{path.name} does not fit: it lacks {len(missing)} of {len(own)} tensors, {missing[0]} first. "
            "Is it of another depth?"
        )
    encoder.net.load_state_dict(own | fitting)
    return len(fitting)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path.name} is damaged, or holds more than tensors.") from error
    return loaded.get("state_dict", loaded)


def encoder_of(config: ModalConfig) -> nn.Module:
    """The image encoder that the config names."""
    if config.backbone:
        return MonaiResNet(config.channels, config.backbone)
    return ImageEncoder(config.channels, tuple(config.widths), tuple(config.units), tuple(config.hessian))


def to_volume(image: Tensor, channels: int) -> Tensor:
    """A picture (B, C, I, J) becomes a volume of depth 1."""
    volume = image.unsqueeze(-1) if image.ndim == 4 else image
    if volume.ndim != 5 or volume.shape[1] != channels:
        raise ConfigError(
            f"The image has shape {tuple(image.shape)}; the model wants (batch, {channels}, I, J, K) or "
            f"(batch, {channels}, I, J). Does the preprocessing make {channels} channels?"
        )
    return volume.float()


def blank_absent(image_BCIJK: Tensor, present_BC: Tensor) -> Tensor:
    if is_plain_inference(image_BCIJK) and bool(present_BC.bool().all()):
        return image_BCIJK
    present = present_BC.bool()[:, :, None, None, None]
    return torch.where(present, image_BCIJK, torch.zeros_like(image_BCIJK))


class EncoderStage(nn.Module):
    """Halve the grid, then refine it."""

    def __init__(self, before: int, after: int, units: int):
        super().__init__()
        norm = "BATCH"
        act = ("LEAKYRELU", {"negative_slope": SLOPE})
        # A 2-voxel kernel keeps the centre of a cell where `cell_positions` says it is.
        self.halve = Convolution(3, before, after, strides=2, kernel_size=2, padding=0, conv_only=True)
        # The finest stage costs more than all others together: without units it is a patch embedding.
        self.refine = (
            ResidualUnit(
                3, after, after, kernel_size=3, subunits=units, adn_ordering="NA", act=act, norm=norm
            )
            if units
            else nn.LeakyReLU(SLOPE)
        )
        self.norm = nn.BatchNorm3d(after)
        self.gate = ChannelGate(after)

    def forward(self, x_BCIJK: Tensor, added: Sequence[Tensor] = ()) -> Tensor:
        """`added`: to the halves, before they are refined."""
        # the image comes as it is: its halves are less to lay out anew
        x_BDIJK = channels_last(convolve(self.halve.conv, self.norm, pad_to_multiple(x_BCIJK, 2)))
        for each in added:
            x_BDIJK = x_BDIJK + each
        return self.gate(self._refined(x_BDIJK))

    def _refined(self, x_BDIJK: Tensor) -> Tensor:
        if not isinstance(self.refine, ResidualUnit) or not is_plain_inference(x_BDIJK):
            return self.refine(x_BDIJK)
        # what ResidualUnit does, with each norm in its convolution
        y_BDIJK: Any = x_BDIJK
        for unit in self.refine.conv:
            y_BDIJK = F.leaky_relu_(convolve(unit.conv, unit.adn.N, y_BDIJK), SLOPE)
        return y_BDIJK + self.refine.residual(x_BDIJK)


def pad_to_multiple(x_BCIJK: Tensor, of: int) -> Tensor:
    """Repeat the last voxels until every axis is a multiple; a depth of 1 becomes `of` equal slices."""
    i, j, k = (-size % of for size in x_BCIJK.shape[2:])
    return F.pad(x_BCIJK, (0, k, 0, j, 0, i), mode="replicate") if i or j or k else x_BCIJK
