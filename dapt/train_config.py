"""How a model is pre-trained: stages, batches, learning rates, augmentation. Checked as it is made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from dapt.augment import Augment
from mla_med.errors import ConfigError
from mla_med.model.config import FUSION_TYPES, backbone_widths


@dataclass(frozen=True, slots=True)
class TrainConfig:
    text_epochs: int = 1
    """S1: passes over the report texts."""
    rounds: int = 24
    """S2: so often it is saved and scored."""
    round_steps: int = 250
    """S2: batches of patches in a round."""
    round_patches: int = 16
    """S2: patches in a batch."""
    round_lr: float = 1.5e-3
    """S2: peak learning rate."""
    epochs: int = 8
    """S3: passes over the images."""
    batch: int = 2
    lr: float = 8e-4
    """Peak learning rate of AdamW, after warm-up."""
    report_share: float = 0.3
    """Share of the steps that teach the report too; findings are taught in all of them."""
    patches: int = 12
    """So many pieces of images with small lesions teach the lesion map beside each batch; 0: none do."""
    patch: int = 10
    """Cells of the finest level along their edge."""
    weight_decay: float = 0.02
    warmup: float = 0.06
    """Share of the steps in which the learning rate rises."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.995
    """Decay of the running mean of the weights, which is what is saved."""
    shift: int = 1
    """Images are moved by up to so many cells of the finest level along each axis."""
    noise_hu: float = 8.0
    """Most noise that is added to a CT."""
    gain: float = 0.1
    """By how much the contrast and the brightness of an MR sequence are changed, in standard deviations."""
    hidden: float = 0.1
    """Chance that a sequence of an MR is left out; one always stays."""
    precision: str = "bf16"
    """Of convolutions and matrix products while training: bf16 (half the time where the processor has it; on
    a CPU not of images or patches under LEAST_CELLS) or fp32. Weights and their mean are float32."""
    fusion_type: str = "full"
    """Of a new model: one of config.FUSION_TYPES."""
    widths: tuple[int, ...] = ()
    """Channels of the stages of the image encoder, finest first: a new model has so many, one that is gone on
    with is widened to them (widen.py). (): as they are."""
    units: tuple[int, ...] = ()
    """Convolutions in each of those stages: of a new model, or of one that is gone on with, which gets them
    where it had none (deepen.py). (): as they are."""
    hessian: tuple[int, ...] = ()
    """Channels of the image of which its encoder is told blobs and lines (tell.py). (): as it is."""
    backbone: str = ""
    """Of a new model, in place of those stages: one of config.BACKBONES, MONAI's."""
    freeze_image_encoder: bool = False
    """It stays what it was at the start, its norms' statistics too."""
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self):
        if self.precision not in ("bf16", "fp32"):
            raise ConfigError(f"No precision '{self.precision}'; there are bf16 and fp32.")
        if min(self.batch, self.round_steps, self.round_patches) < 1:
            raise ConfigError("A batch holds 1 or more, and a round has 1 step or more.")
        if min(self.text_epochs, self.rounds, self.epochs, self.patches, self.seed) < 0:
            raise ConfigError("Epochs, rounds, patches and the seed are 0 or more.")
        if not (0 < self.lr <= 1 and 0 < self.round_lr <= 1):
            raise ConfigError(f"A learning rate lies between 0 and 1, not {self.lr}, {self.round_lr}.")
        if self.fusion_type not in FUSION_TYPES:
            raise ConfigError(f"No fusion '{self.fusion_type}'; there are: {', '.join(FUSION_TYPES)}.")
        if self.backbone:
            backbone_widths(self.backbone)
            if self.widths or self.units:
                raise ConfigError(f"{self.backbone} has stages of its own: widths and units are not for it.")
        _check_device(self.device)

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back."""
        listed = {name: list(getattr(self, name)) for name in ("widths", "units", "hessian")}
        return asdict(self) | listed

    def augment(self, cell: int) -> Augment:
        """Of images of whose voxels `cell` are the edge of a cell."""
        return Augment(self.shift * cell, self.noise_hu, self.gain, self.hidden)


def _check_device(device: str) -> None:
    name, _, number = device.partition(":")
    if name not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError(f"No device '{device}'; there are cpu and cuda.")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cuda" and int(number or 0) >= there:
        words = f"torch finds {there} GPUs here" if there else "torch finds no GPU here"
        raise ConfigError(f"{words}. Train with --device cpu.", code="NO_GPU")
