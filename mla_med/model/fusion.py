"""Levels of an image and text tokens -> Fused: one sequence of tokens that knows where each one lies.

Knows masks, cells in mm and how much each modality counts. Knows nothing of findings or reports.
"""

# B batch, S fused tokens, N cells of one grid, L text tokens, M modalities, D width, H heads

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_med.model.attention import (
    DynamicWeightGenerator,
    Kept,
    MaskedTransformerBlock,
    best_of_each_slice,
    blank_padding,
    choose_kept,
    join_heads,
    keep_gathered,
    keep_masked,
    keep_ratio_loss,
    masked_mean,
    split_heads,
    token_weights,
    weighted_attention,
)
from mla_med.model.config import LEVELS, ModalConfig
from mla_med.model.image_encoder import Frame, Level, cell_positions, pad_to_multiple
from mla_med.model.lesion_map import LesionMap, LesionMapper
from mla_med.model.seen import Fused as Fused

POOLED = 8
"""The finest level enters the fused tokens pooled so many cells to one, beside what it gives to the next."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A sequence and what is known of each token."""

    tokens_BSD: Tensor
    weights_BS: Tensor
    """How often a token counts as a key; 0: padding, dropped or of an absent modality."""
    positions_BS3: Tensor
    """Centre of the cell, patient mm; 0 where not located."""
    half_cells_BS3: Tensor
    located_BS: Tensor
    """A cell small enough to be evidence; not text, the fused rest or a coarse pool."""
    strides_BS: Tensor
    """Stride of the level a token came from; 0 for text."""
    index_BS: Tensor
    """Flat place in the grid of its level; -1 for the fused rest, place in the text for text."""

    def split(self, *sizes: int) -> list[Tokens]:
        parts = [getattr(self, field.name).split(sizes, dim=1) for field in fields(self)]
        return [Tokens(*part) for part in zip(*parts, strict=True)]

    def with_tokens(self, tokens_BSD: Tensor) -> Tokens:
        return Tokens(tokens_BSD, *(getattr(self, field.name) for field in fields(self)[1:]))


def join(parts: list[Tokens]) -> Tokens:
    return Tokens(*(torch.cat([getattr(part, f.name) for part in parts], 1) for f in fields(Tokens)))


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage of token selection saw and chose."""

    scores_BN: Tensor
    mask_BN: Tensor
    """The tokens that it could keep."""
    keep_BN: Tensor
    positions_BN3: Tensor
    half_cells_BN3: Tensor


@dataclass(frozen=True, slots=True)
class Selection(Stage):
    """The first stage, on the whole stride-8 grid, and what came after it."""

    keep_ratio_loss: Tensor
    """Of all stages."""
    later: tuple[Stage, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (self, *self.later)


# Tokens of a level


class LevelTokens(nn.Module):
    """A level's features as tokens that carry their place and their level."""

    def __init__(self, width: int):
        super().__init__()
        self.place = nn.Linear(PLACE_WIDTH, width)

    def forward(self, level: Level, frame: Frame, image_present_B: Tensor, located: bool = True) -> Tokens:
        positions_BN3, half_BN3 = cell_positions(level, frame)
        features_BND = level.features_BDIJK.flatten(2).transpose(1, 2)
        batch, cells = features_BND.shape[:2]
        index_BN = torch.arange(cells, device=features_BND.device).expand(batch, -1)
        present_BN = image_present_B[:, None].expand(-1, cells)
        return Tokens(
            features_BND + self.place(place_waves(positions_BN3, frame)),
            present_BN.to(features_BND.dtype),
            positions_BN3,
            half_BN3.expand(batch, -1, -1),
            present_BN if located else torch.zeros_like(present_BN),
            torch.full_like(index_BN, level.stride),
            index_BN,
        )


PLACE_WAVES = 4
PLACE_WIDTH = 3 * (1 + 2 * PLACE_WAVES)


def place_waves(positions_BN3: Tensor, frame: Frame) -> Tensor:
    """A place in the image, -1 to 1 along each patient axis, as itself and sines and cosines of doubling
    frequency."""
    relative_BN3 = (positions_BN3 - frame.centre_B3()[:, None]) / frame.half_extent_B3()[:, None]
    waves = [relative_BN3]
    for octave in range(PLACE_WAVES):
        angle_BN3 = relative_BN3 * math.pi * 2.0**octave / 2
        waves += [angle_BN3.sin(), angle_BN3.cos()]
    return torch.cat(waves, -1)


def text_tokens(text_BLD: Tensor, mask_BL: Tensor) -> Tokens:
    nowhere_BL3 = torch.zeros(*mask_BL.shape, 3, device=mask_BL.device)
    index_BL = torch.arange(mask_BL.shape[1], device=mask_BL.device).expand(mask_BL.shape[0], -1)
    return Tokens(
        text_BLD,
        mask_BL.to(text_BLD.dtype),
        nowhere_BL3,
        nowhere_BL3,
        torch.zeros_like(mask_BL),
        torch.zeros_like(index_BL),
        index_BL,
    )


def fit_budget(level: Level, budget: int) -> Level:
    """Average neighbouring cells until the level has at most `budget` of them."""
    while level.features_BDIJK[0, 0].numel() > budget:
        level = Level(mean_pool(level.features_BDIJK, 2), 2 * level.stride)
    return level


def max_pool(x_BDIJK: Tensor, by: int) -> Tensor:
    return F.max_pool3d(pad_to_multiple(x_BDIJK, by), by)


def mean_pool(x_BDIJK: Tensor, by: int) -> Tensor:
    return F.avg_pool3d(pad_to_multiple(x_BDIJK, by), by)


# The bridge


class CrossModalAttentionBridge(nn.Module):
    """Image asks text and text asks image, through one shared key and value projection. Pre-norm,
    residual, and a tanh gate that starts at 0, so that at first each modality is left as it was."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_image = nn.LayerNorm(width)
        self.norm_text = nn.LayerNorm(width)
        self.keys_values = nn.Linear(width, 2 * width)
        self.ask_text = nn.Linear(width, width)
        self.ask_image = nn.Linear(width, width)
        self.out_image = nn.Linear(width, width)
        self.out_text = nn.Linear(width, width)
        self.gates_2 = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gates_2)

    def forward(
        self, image_BND: Tensor, image_weights_BN: Tensor, text_BLD: Tensor, text_weights_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both sequences, and who looked where: image -> text (B, N, L), text -> image (B, L, N)."""
        image, text = self.norm_image(image_BND), self.norm_text(text_BLD)
        from_text, looks_BNL = self._attend(self.ask_text(image), text, text_weights_BL)
        from_image, looks_BLN = self._attend(self.ask_image(text), image, image_weights_BN)
        gate_image, gate_text = torch.tanh(self.gates_2)
        image_BND = image_BND + gate_image * self.out_image(from_text)
        text_BLD = text_BLD + gate_text * self.out_text(from_image)
        return image_BND, text_BLD, looks_BNL, looks_BLN

    def _attend(self, queries_BQD: Tensor, others_BSD: Tensor, weights_BS: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (split_heads(x, self.heads) for x in self.keys_values(others_BSD).chunk(2, -1))
        attended, attention_BHQS, _ = weighted_attention(
            split_heads(queries_BQD, self.heads), k, v, weights_BS
        )
        return join_heads(attended), attention_BHQS.mean(1)


def cross(bridge: CrossModalAttentionBridge | None, image: Tokens, text: Tokens) -> tuple[Tokens, Tokens]:
    if bridge is None:
        return image, text
    image_BND, text_BLD, _, _ = bridge(image.tokens_BSD, image.weights_BS, text.tokens_BSD, text.weights_BS)
    return image.with_tokens(image_BND), text.with_tokens(text_BLD)


# How much each modality counts


class DynamicModalAttention(nn.Module):
    """Pooled modalities (B, D_m), any number and kind -> their weights per sample and feature, and
    their weighted sum. An absent one has weight exactly 0, whatever stands in it.

    The gate is linear and sees which modalities are present, so its column for each of them is the null
    embedding of an absent one; a vector of its own would add the same constant, and with two
    modalities never learn."""

    def __init__(self, dims: tuple[int, ...], width: int, dropout: tuple[float, ...] | None = None):
        super().__init__()
        self.dropout = dropout or (0.0,) * len(dims)
        self.encode = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width)) for dim in dims)
        self.gate = nn.Linear(len(dims) * (width + 1), len(dims) * width)

    def forward(self, pooled: list[Tensor], present_BM: Tensor) -> tuple[Tensor, Tensor]:
        """The fused vector (B, D) and weights_BMD; the mean over D is what an audit shows."""
        present_BM = drop_modalities(present_BM, self.dropout) if self.training else present_BM
        hidden_BMD = torch.stack(
            [self._encode_one(m, x_BD, present_BM[:, m]) for m, x_BD in enumerate(pooled)], 1
        )
        asked = torch.cat([hidden_BMD.flatten(1), present_BM.to(hidden_BMD.dtype)], 1)
        logits_BMD = self.gate(asked).unflatten(1, hidden_BMD.shape[1:])
        present_BM1 = present_BM.unsqueeze(-1)
        weights_BMD = logits_BMD.masked_fill(~present_BM1, -1e9).softmax(1) * present_BM1
        return (weights_BMD * hidden_BMD).sum(1), weights_BMD

    def _encode_one(self, m: int, x_BD: Tensor, present_B: Tensor) -> Tensor:
        present_B1 = present_B.unsqueeze(-1)
        hidden_BD = torch.tanh(self.encode[m](torch.where(present_B1, x_BD, torch.zeros_like(x_BD))))
        return hidden_BD * present_B1


def drop_modalities(present_BM: Tensor, chances: tuple[float, ...]) -> Tensor:
    """Hide each modality by its chance, but never the last one of a sample."""
    chances_M = torch.tensor(chances, device=present_BM.device)
    left_BM = present_BM & (torch.rand(present_BM.shape, device=present_BM.device) >= chances_M)
    return torch.where(left_BM.any(1, keepdim=True), left_BM, present_BM)


def weigh(attention: DynamicModalAttention | None, image: Tokens, text: Tokens) -> tuple[Tokens, Tensor]:
    """One sequence, each modality scaled by its weights, so that equal weights change nothing."""
    present_BM = torch.stack([(part.weights_BS > 0).any(1) for part in (image, text)], 1)
    if attention is None:
        return join([image, text]), present_BM / present_BM.sum(1, keepdim=True).clamp(min=1)
    pooled = [masked_mean(part.tokens_BSD, part.weights_BS) for part in (image, text)]
    _, weights_BMD = attention(pooled, present_BM)
    scale_BMD = weights_BMD * (weights_BMD.mean(-1, keepdim=True) > 0).sum(1, keepdim=True)
    parts = [scale_tokens(part, scale_BMD[:, m]) for m, part in enumerate((image, text))]
    return join(parts), weights_BMD.mean(-1)


def scale_tokens(part: Tokens, scale_BD: Tensor) -> Tokens:
    there_B1 = (scale_BD > 0).any(1, keepdim=True)
    scaled = part.with_tokens(part.tokens_BSD * scale_BD[:, None])
    return Tokens(
        scaled.tokens_BSD,
        part.weights_BS * there_B1,
        part.positions_BS3,
        part.half_cells_BS3,
        part.located_BS & there_B1,
        part.strides_BS,
        part.index_BS,
    )


# The fusions: levels and text in, Fused out


class ConcatFusion(nn.Module):
    """The coarsest level beside the text; with a bridge (`bridge`) or modal weights (`dma`) between."""

    def __init__(
        self,
        channels: tuple[int, ...],
        width: int,
        coarse_budget: int,
        bridge: CrossModalAttentionBridge | None = None,
        attention: DynamicModalAttention | None = None,
    ):
        super().__init__()
        self.coarse_budget = coarse_budget
        self.lateral = nn.Conv3d(channels[-1], width, 1)
        self.to_tokens = LevelTokens(width)
        self.bridge = bridge
        self.attention = attention

    def forward(
        self, levels: list[Level], frame: Frame, text_BLD: Tensor, mask_BL: Tensor, image_present_B: Tensor
    ) -> Fused:
        level = fit_budget(levels[-1], self.coarse_budget)
        level = Level(self.lateral(level.features_BDIJK), level.stride)
        image = self.to_tokens(level, frame, image_present_B)
        image, text = cross(self.bridge, image, text_tokens(text_BLD, mask_BL))
        tokens, modal_weights_BM = weigh(self.attention, image, text)
        return to_fused(tokens, modal_weights_BM, frame)


class HierarchicalFeatureFusion(nn.Module):
    """Three levels refine each other, top-down then bottom-up; of stride 8 the tokens that matter are
    kept; every level crosses the bridge to the text. At most token_budget + 1 + 2 * coarse_budget
    image tokens come out."""

    def __init__(
        self,
        config: ModalConfig,
        blocks: nn.ModuleList,
        attention: DynamicModalAttention | None = None,
    ):
        super().__init__()
        self.config = config
        self.pyramid = Pyramid(tuple(config.widths[-LEVELS:]), config.width)
        self.to_tokens = nn.ModuleList(LevelTokens(config.width) for _ in range(LEVELS))
        self.scorer = DynamicWeightGenerator(config.width)
        self.later_scorers = nn.ModuleList(DynamicWeightGenerator(config.width) for _ in config.keep_stages)
        finest = config.widths[-LEVELS]
        self.lesion_map = LesionMapper(finest, config.width, PLACE_WIDTH, len(config.finding_keys))
        self.fixed_counts: dict[float, int] | None = None
        """How many tokens each share keeps of an image of one size: set where a graph is exported."""
        self.blocks = blocks
        self.bridges = nn.ModuleList(
            CrossModalAttentionBridge(config.width, config.heads) for _ in range(LEVELS)
        )
        self.attention = attention

    def forward(
        self, levels: list[Level], frame: Frame, text_BLD: Tensor, mask_BL: Tensor, image_present_B: Tensor
    ) -> Fused:
        budget = self.config.coarse_budget
        finest, fine, middle, coarse = self.pyramid(levels)
        lesions = self.map_lesions(finest, middle, frame, image_present_B)
        to_fine, to_middle, to_coarse = self.to_tokens
        grid = to_middle(middle, frame, image_present_B)
        slices = middle.features_BDIJK.shape[-1]
        kept, selection = self.select(grid, slices)
        image = [
            to_fine(fit_budget(fine, budget), frame, image_present_B, located=False),
            kept,
            to_coarse(fit_budget(coarse, budget), frame, image_present_B),
        ]
        image, selection = self.refine(image, selection, slices)
        text = text_tokens(text_BLD, mask_BL)
        for level, bridge in enumerate(self.bridges):
            image[level], text = cross(bridge, image[level], text)  # type: ignore[arg-type]
        tokens, modal_weights_BM = weigh(self.attention, join(image), text)
        return to_fused(tokens, modal_weights_BM, frame, selection, lesions)

    def map_lesions(
        self,
        finest: Level,
        middle: Level,
        frame: Frame,
        image_present_B: Tensor,
        whole: Frame | None = None,
    ) -> LesionMap:
        """`whole`: the frame that places are relative to, where the image is a part of another."""
        positions_BN3, _ = cell_positions(finest, frame)
        around = enlarge(self.lesion_map.around(middle.features_BDIJK), finest.features_BDIJK)
        places_BNW = place_waves(positions_BN3, whole or frame)
        return self.lesion_map(finest, around, places_BNW, frame, image_present_B)

    def select(self, grid: Tokens, slices: int) -> tuple[Tokens, Selection]:
        """The first stage: from the whole grid."""
        mask_BN = grid.weights_BS > 0
        kept, stage = self.choose(grid, mask_BN, self.scorer, self.config.keep_ratio, mask_BN.sum(1), slices)
        loss = keep_ratio_loss(stage.scores_BN, stage.mask_BN, stage.keep_BN)
        seen = {field.name: getattr(stage, field.name) for field in fields(Stage)}
        return kept, Selection(**seen, keep_ratio_loss=loss)

    def choose(
        self, tokens: Tokens, may_stay_BN: Tensor, scorer: nn.Module, share: float, of_B: Tensor, slices: int
    ) -> tuple[Tokens, Stage]:
        """Keeps a share of `of_B` among the tokens that may stay, of each of the `slices` of their grid at
        least what the config wants; every other valid one goes into the fused rest, by its weight."""
        mask_BN = tokens.weights_BS > 0
        scores_BN = scorer(tokens.tokens_BSD, mask_BN)
        least, budget = self.config.keep_per_slice, self.config.token_budget
        first_BN = None
        if least:
            slice_BN = tokens.index_BS % slices
            first_BN = best_of_each_slice(scores_BN, may_stay_BN, slice_BN, slices, least)
        keep_BN = choose_kept(
            scores_BN, may_stay_BN, share, budget, noisy=self.training, of_B=of_B, first_BN=first_BN
        )
        if self.training and self.config.masked_training:
            kept = keep_masked(tokens.tokens_BSD, scores_BN, mask_BN, keep_BN)
        else:
            count = None if self.fixed_counts is None else self.fixed_counts[share]
            kept = keep_gathered(tokens.tokens_BSD, scores_BN, mask_BN, keep_BN, count)
        placed = place_kept(kept, tokens, token_weights(scores_BN, mask_BN & ~keep_BN))
        return placed, Stage(scores_BN, may_stay_BN, keep_BN, tokens.positions_BS3, tokens.half_cells_BS3)

    def refine(
        self, parts: list[Tokens], selection: Selection, slices: int
    ) -> tuple[list[Tokens], Selection]:
        """The blocks, in as many groups as there are stages; a stage drops tokens before its group, and
        what the stage before fused goes into the new rest."""
        of_B = selection.mask_BN.sum(1)
        stages = len(self.later_scorers) + 1
        later: list[Stage] = []
        for number in range(stages):
            if number:
                may_stay_BN = parts[1].located_BS
                scorer, share = self.later_scorers[number - 1], self.config.keep_stages[number - 1]
                parts[1], stage = self.choose(parts[1], may_stay_BN, scorer, share, of_B, slices)
                later.append(stage)
            first, last = (len(self.blocks) * n // stages for n in (number, number + 1))
            parts = self.attend(parts, first, last)
        losses = [keep_ratio_loss(stage.scores_BN, stage.mask_BN, stage.keep_BN) for stage in later]
        total = torch.stack([selection.keep_ratio_loss, *losses]).sum()
        return parts, replace(selection, keep_ratio_loss=total, later=tuple(later))

    def attend(self, parts: list[Tokens], first: int, last: int) -> list[Tokens]:
        """All levels together through some of the blocks."""
        tokens = join(parts)
        x_BSD = tokens.tokens_BSD
        for block in list(self.blocks)[first:last]:
            x_BSD = block(x_BSD, tokens.weights_BS)
        return tokens.with_tokens(x_BSD).split(*(part.tokens_BSD.shape[1] for part in parts))


class Pyramid(nn.Module):
    """Strides 4, 8, 16 in their own widths -> 4 in its own, then 32 (pooled from 4), 8, 16 in one width.
    Stride 4 stays narrow: it has eight times the cells of stride 8."""

    def __init__(self, channels: tuple[int, ...], width: int):
        super().__init__()
        fine, middle, coarse = channels
        self.lateral_16 = nn.Conv3d(coarse, width, 1)
        self.lateral_8 = nn.Conv3d(middle, width, 1)
        self.down_to_4 = nn.Conv3d(width, fine, 1)
        self.up_to_8 = nn.Conv3d(fine, width, 1)
        self.up_to_16 = nn.Conv3d(width, width, 1)
        self.pooled_4 = nn.Conv3d(fine, width, 1)

    def forward(self, levels: list[Level]) -> list[Level]:
        f4, f8, f16 = (level.features_BDIJK for level in levels)
        f16 = self.lateral_16(f16)
        f8 = self.lateral_8(f8) + enlarge(f16, f8)
        f4 = f4 + enlarge(self.down_to_4(f8), f4)
        f8 = f8 + self.up_to_8(max_pool(f4, 2))
        f16 = f16 + self.up_to_16(mean_pool(f8, 2))
        finest, middle, coarse = (level.stride for level in levels)
        fine = Level(self.pooled_4(max_pool(f4, POOLED)), POOLED * finest)
        return [Level(f4, finest), fine, Level(f8, middle), Level(f16, coarse)]


def enlarge(x_BDIJK: Tensor, like_BDIJK: Tensor) -> Tensor:
    """Each cell repeated twice along every axis, cut to the finer grid."""
    for axis, size in zip((2, 3, 4), like_BDIJK.shape[2:], strict=True):
        x_BDIJK = x_BDIJK.repeat_interleave(2, axis).narrow(axis, 0, size)
    return x_BDIJK


def place_kept(kept: Kept, grid: Tokens, rest_BN: Tensor) -> Tokens:
    """Kept tokens with their cells; the fused rest stands at its mean place, located nowhere. A token
    counts as much as it did before, times what it counts now: so every stage teaches those before."""
    index_BK = kept.index_BS[:, :-1]
    rest_position_B13 = (rest_BN.unsqueeze(-1) * grid.positions_BS3).sum(1, keepdim=True)

    def at(x_BN3: Tensor, rest_B13: Tensor) -> Tensor:
        return torch.cat([x_BN3.gather(1, index_BK.unsqueeze(-1).expand(-1, -1, 3)), rest_B13], 1)

    def of(x_BN: Tensor, rest: int) -> Tensor:
        return torch.cat([x_BN.gather(1, index_BK), torch.full_like(x_BN[:, :1], rest)], 1)

    weights_BS = kept.weights_BS * of(grid.weights_BS, 1)
    return Tokens(
        kept.tokens_BSD,
        weights_BS,
        at(grid.positions_BS3, rest_position_B13),
        at(grid.half_cells_BS3, torch.zeros_like(rest_position_B13)),
        of(grid.located_BS, 0) & (weights_BS > 0),
        grid.strides_BS[:, :1].expand_as(kept.index_BS),
        of(grid.index_BS, -1),
    )


def to_fused(
    tokens: Tokens,
    modal_weights_BM: Tensor,
    frame: Frame,
    selection: Selection | None = None,
    lesions: LesionMap | None = None,
) -> Fused:
    mask_BS = tokens.weights_BS > 0
    return Fused(
        tokens_BSD=blank_padding(tokens.tokens_BSD, mask_BS),
        mask_BS=mask_BS,
        weights_BS=tokens.weights_BS,
        positions_BS3=tokens.positions_BS3,
        half_cells_BS3=tokens.half_cells_BS3,
        located_BS=tokens.located_BS,
        strides_BS=tokens.strides_BS,
        index_BS=tokens.index_BS,
        modal_weights_BM=modal_weights_BM,
        centre_B3=frame.centre_B3(),
        half_extent_B3=frame.half_extent_B3(),
        selection=selection,
        lesions=lesions,
    )


def fusion_of(config: ModalConfig) -> nn.Module:
    """The parts that each fusion type names. Another fusion: another case, the same Fused out."""

    def bridge() -> CrossModalAttentionBridge:
        return CrossModalAttentionBridge(config.width, config.heads)

    # The model hides modalities before they meet on the bridge, so not once more here.
    def attention() -> DynamicModalAttention:
        return DynamicModalAttention((config.width,) * 2, config.width)

    channels, budget = tuple(config.widths[-LEVELS:]), config.coarse_budget
    match config.fusion_type:
        case "concat":
            return ConcatFusion(channels, config.width, budget)
        case "bridge":
            return ConcatFusion(channels, config.width, budget, bridge=bridge())
        case "dma":
            return ConcatFusion(channels, config.width, budget, attention=attention())
        case "hffn":
            return HierarchicalFeatureFusion(config, nn.ModuleList())
    blocks = nn.ModuleList(MaskedTransformerBlock(config.width, config.heads) for _ in range(config.depth))
    return HierarchicalFeatureFusion(config, blocks, attention())
