"""Sizes and constants -> ModalConfig, the config.json of a checkpoint.

Knows the finding schema as plain JSON and how large each part is. Builds no network.
"""

from __future__ import annotations

import difflib
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from mla_med.errors import ConfigError
from mla_med.report.schema import CHEST_CT, Schema
from mla_med.types import Side

FUSION_TYPES = ("bridge", "dma", "hffn", "concat", "full")
SIDES = tuple(side.value for side in Side)
LEVELS = 3
"""Of the image encoder that enter the fusion: its last stages."""
BACKBONES: dict[str, tuple[int, int, int]] = {
    **dict.fromkeys(("resnet10", "resnet18", "resnet34"), (64, 128, 256)),
    **dict.fromkeys(("resnet50", "resnet101"), (256, 512, 1024)),
}
"""MONAI networks that can be the image encoder, and their channels at strides 4, 8 and 16."""
LOSS_WEIGHTS = {
    "presence": 2.0,
    "side": 0.5,
    "site": 0.5,
    "size": 0.5,
    "evidence": 0.3,
    "map": 1.0,
    "patches": 1.0,
    "coverage": 0.1,
    "keep_ratio": 0.1,
    "lm": 1.0,
}


class ModalConfig(PreTrainedConfig):
    """What MLAModel is made of. Every field is JSON; the defaults are `default()`."""

    model_type = "mla_med"
    sub_configs_defaults = {"decoder": SubConfigSpec(config_class=AutoConfig, model_type="gpt2")}

    fusion_type: str = "full"
    """bridge, dma, hffn, concat or full."""
    image_dim: int | tuple[int, ...] | list[int] = (128, 96, 112)
    """Voxels I, J, K the model was trained on (an int: a square picture). Informative: any size runs."""
    text_dim: int = 128
    """Width of the text encoder."""
    channels: int = 3
    """CT windows or MR sequences."""
    backbone: str = ""
    """A key of BACKBONES: that network of MONAI as the image encoder; empty: our own, of the next two."""
    widths: tuple[int, ...] | list[int] = (16, 32, 64, 96)
    """Channels of the encoder stages at strides 2, 4, 8, 16; multiples of 8. Voxels of half the size want a
    stage more: the last three, whose cells are then as many millimetres, are the levels."""
    units: tuple[int, ...] | list[int] = (1, 3, 3, 2)
    """3 x 3 x 3 convolutions in each stage; 0: the stage is a patch embedding."""
    hessian: tuple[int, ...] | list[int] = ()
    """Channels of the image of which our own encoder is told where blobs and lines are (hessian.py): in CT
    the windows of the lung and of soft tissue, 0 and 1."""
    width: int = 128
    """Width D of the fused tokens."""
    heads: int = 4
    depth: int = 2
    """Transformer blocks over the selected tokens (full)."""
    text_depth: int = 1
    text_positions: int = 128
    """Longest clinical context, in tokens; the rest is cut off."""
    keep_ratio: float = 0.5
    """Share of the valid stride-8 tokens that is kept, at most `token_budget`."""
    keep_stages: tuple[float, ...] | list[float] = ()
    """After each further group of blocks, the share of the valid stride-8 tokens that is still kept, as
    (0.49, 0.34) after a `keep_ratio` of 0.7 (DynamicViT, Rao et al. 2021); at most one fewer than `depth`."""
    keep_per_slice: int = 0
    """In every stage, of each slice of stride-8 cells (across the last axis, which is along the body) so many
    are kept before any other, so that no part of the body is left to the fused rest alone."""
    token_budget: int = 256
    coarse_budget: int = 384
    """Most tokens of the stride-16 level, and of the pooled one; a larger grid is averaged until it fits."""
    masked_training: bool = False
    """Train with every token inside masked attention; False: gather while training too, which is as
    much faster as at inference, and lets only kept tokens and the fused rest teach the scorer."""
    modality_dropout: tuple[float, ...] | list[float] = (0.0, 0.2)
    """Chance per sample that image, text is hidden in training."""
    findings: list[dict[str, Any]] | None = None
    """One {"key", "sides", "sites", "has_size"} per code; None: the chest CT schema."""
    size_scale_mm: float = 20.0
    loss_weights: dict[str, float] | None = None
    vocab_size: int = 1024
    byte_offset: int = 4
    """Without a tokenizer, byte b of the text is token b + byte_offset."""
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    decoder: dict[str, Any] | PreTrainedConfig | str | None = None
    """Arguments of GPT2Config for the small decoder; with a `model_type`, the whole configuration of that
    causal LM; or a local folder that holds a causal LM, whose weights and tokenizer are then taken. The
    vocabulary and its special ids are the decoder's."""
    decoder_folder: str | None = None
    """Where the decoder's weights will be read from: set by `decoder`, None once a model has read them."""
    lora: dict[str, Any] | None = None
    """Arguments of peft.LoraConfig: the decoder learns in low-rank adapters only."""
    pruned: dict[str, list[int]] | None = None
    """Layers that are narrower than the sizes above make them, and shapes of their weights (narrow.py)."""
    preprocessing: dict[str, Any] | None = None
    """What was done to the images. Not read here; it only travels with the weights."""
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        check_fusion_type(self.fusion_type)
        check_hessian(tuple(self.hessian), self.channels, self.backbone)
        if self.backbone:
            self.widths = (64, *backbone_widths(self.backbone))
        check_stages(self.keep_ratio, tuple(self.keep_stages), self.depth)
        self.findings = findings_of(CHEST_CT) if self.findings is None else self.findings
        self.loss_weights = {**LOSS_WEIGHTS, **(self.loss_weights or {})}
        self.preprocessing = self.preprocessing or {}
        if isinstance(self.decoder, str):
            from mla_med.model.decoder import read_decoder_config

            self.decoder_folder = self.decoder
            self.decoder = read_decoder_config(Path(self.decoder))
        elif not isinstance(self.decoder, PreTrainedConfig):
            own = (self.decoder or {}).get("model_type", "gpt2") == "gpt2"
            self.decoder = {**(self._decoder_defaults() if own else {}), **(self.decoder or {})}
        super().__post_init__(**kwargs)
        assert isinstance(self.decoder, PreTrainedConfig)
        self._take_vocabulary(self.decoder)

    def _take_vocabulary(self, decoder: PreTrainedConfig) -> None:
        """Where an LM has no start or padding of its own, its end serves: both are masked or overwritten."""
        ends = decoder.eos_token_id
        self.vocab_size = decoder.vocab_size
        self.eos_token_id = ends[0] if isinstance(ends, list) else ends
        self.bos_token_id = self.eos_token_id if decoder.bos_token_id is None else decoder.bos_token_id
        self.pad_token_id = self.eos_token_id if decoder.pad_token_id is None else decoder.pad_token_id

    def _decoder_defaults(self) -> dict[str, Any]:
        return {
            "vocab_size": self.vocab_size,
            "n_layer": 3,
            "n_embd": 128,
            "n_head": 4,
            "n_inner": 256,
            "n_positions": 384,
            "add_cross_attention": True,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        }

    @property
    def cell(self) -> int:
        """Voxels along the edge of a cell of the finest level: 4 of four stages, 8 of five."""
        return 2 ** (len(self.widths) - LEVELS + 1)

    @property
    def finding_keys(self) -> tuple[str, ...]:
        assert self.findings is not None
        return tuple(finding["key"] for finding in self.findings)

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site of any finding, in order of first mention: the classes of the site head."""
        assert self.findings is not None
        return tuple(dict.fromkeys(site for finding in self.findings for site in finding["sites"]))


def findings_of(schema: Schema) -> list[dict[str, Any]]:
    return [
        {
            "key": finding.key,
            "sides": [side.value for side in finding.sides],
            "sites": list(finding.sites),
            "has_size": finding.has_size,
        }
        for finding in schema.values()
    ]


def check_hessian(hessian: tuple[int, ...], channels: int, backbone: str = "") -> None:
    """ConfigError where an image encoder cannot be told of these channels."""
    if hessian and backbone:
        raise ConfigError(f"{backbone} is not told of blobs and lines: hessian is not for it.")
    if len(set(hessian)) < len(hessian) or not set(hessian) <= set(range(channels)):
        raise ConfigError(
            f"The image has the channels 0 to {channels - 1}; the encoder can be told of each of them once, "
            f"not of {', '.join(map(str, hessian))}."
        )


def check_fusion_type(fusion_type: str) -> None:
    if fusion_type in FUSION_TYPES:
        return
    near = difflib.get_close_matches(fusion_type, FUSION_TYPES, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"fusion_type {fusion_type!r} is none of {', '.join(FUSION_TYPES)}. Did you mean {near!r}?"
    )


def backbone_widths(name: str) -> tuple[int, int, int]:
    if name not in BACKBONES:
        raise ConfigError(f"No backbone {name!r}; there are: {', '.join(BACKBONES)}.")
    return BACKBONES[name]


def check_stages(keep_ratio: float, keep_stages: tuple[float, ...], depth: int) -> None:
    shares = (1.0, keep_ratio, *keep_stages, 0.0)
    if any(later > earlier for earlier, later in pairwise(shares)) or len(keep_stages) >= max(1, depth):
        raise ConfigError(
            f"Shares of kept tokens {(keep_ratio, *keep_stages)} with {depth} blocks: each is a share of all "
            "tokens, none larger than the one before, and every stage needs a block of its own."
        )


def tiny(**changes: Any) -> ModalConfig:
    """For tests: a fraction of a second a step, ids of bytes only."""
    sizes: dict[str, Any] = {
        "text_dim": 16,
        "image_dim": (32, 32, 32),
        "widths": (8, 8, 16, 16),
        "units": (1, 1, 1, 1),
        "width": 32,
        "depth": 1,
        "text_positions": 48,
        "vocab_size": 264,
        "decoder": {"n_layer": 2, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 64},
    }
    return ModalConfig(**{**sizes, **changes})


def default(**changes: Any) -> ModalConfig:
    """What ships: under 2.7 M parameters, trained on a laptop CPU."""
    return ModalConfig(**changes)


def small(**changes: Any) -> ModalConfig:
    """Three stages of token selection, about 3 M parameters; runs on a laptop CPU."""
    sizes: dict[str, Any] = {"depth": 3, "keep_ratio": 0.7, "keep_stages": (0.49, 0.34), "token_budget": 512}
    return ModalConfig(**{**sizes, **changes})


def base(**changes: Any) -> ModalConfig:
    """For a GPU: four times the width of the encoder, twice that of the tokens."""
    sizes: dict[str, Any] = {
        "text_dim": 256,
        "widths": (32, 64, 128, 256),
        "units": (1, 3, 3, 3),
        "width": 256,
        "heads": 8,
        "depth": 6,
        "text_depth": 2,
        "token_budget": 1024,
        "decoder": {"n_layer": 6, "n_embd": 256, "n_head": 8, "n_inner": 1024, "n_positions": 768},
    }
    return small(**{**sizes, **changes})
