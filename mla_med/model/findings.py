"""Fused tokens -> FindingOutputs: presence, side, site, size and evidence of every finding code; and
outputs beside targets -> losses.

Knows cells in mm and what each code may state. Knows nothing of images or words.
"""

# B batch, F findings, S fused tokens, D width, T sites, 3 sides or patient axes

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mla_med.model.attention import FindingQueries
from mla_med.model.config import SIDES
from mla_med.model.fusion import Fused, Selection, Stage

PLACE_SCALE = 8.0
"""The place enters the last layer larger than [-1, 1], so that side and site learn from it early."""
NOT_ALLOWED = -1e4
"""Logit of a side or site that the code does not know."""


@dataclass(frozen=True, slots=True)
class FindingOutputs:
    presence_logits_BF: Tensor
    side_logits_BF3: Tensor
    """Over config.SIDES."""
    site_logits_BFT: Tensor
    """Over ModalConfig.sites."""
    size_mm_BF: Tensor
    embeddings_BFD: Tensor
    evidence_BFS: Tensor
    """Attention of each query over the fused tokens; a row sums to 1."""
    position_BF3: Tensor
    """Evidence-weighted mean place, patient mm."""
    spread_BF3: Tensor
    """Evidence-weighted standard deviation, mm."""


@dataclass(frozen=True, slots=True)
class FindingTargets:
    """What is true. Unknown: NaN or -1, and it teaches nothing."""

    presence_BF: Tensor
    side_BF: Tensor | None = None
    site_BF: Tensor | None = None
    size_BF: Tensor | None = None
    """mm."""
    lesion_boxes_BFL23: Tensor | None = None
    """Lower and upper corner in patient mm of each lesion of a finding, that which side, site and size speak
    of first; NaN where there is none."""

    def to(self, device: torch.device | str) -> FindingTargets:
        here = {field.name: getattr(self, field.name) for field in fields(self)}
        there: dict[str, Any] = {name: x if x is None else x.to(device) for name, x in here.items()}
        return FindingTargets(**there)


class FindingHeads(nn.Module):
    def __init__(
        self,
        findings: list[dict[str, Any]],
        sites: tuple[str, ...],
        width: int,
        heads: int,
        size_scale_mm: float,
        has_map: bool,
    ):
        """`has_map`: the fusion selects tokens, and so has a map of each finding to listen to."""
        super().__init__()
        self.allowed_sides = [[side in finding["sides"] for side in SIDES] for finding in findings]
        self.allowed_sites = [[site in finding["sites"] for site in sites] for finding in findings]
        self.size_scale_mm = size_scale_mm
        self.queries = FindingQueries(len(findings), width, heads)
        self.hidden = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.where = nn.Linear(6, width)
        self.presence = PerFinding(len(findings), width + 7, 1)
        self.peak_gain_F = nn.Parameter(torch.ones(len(findings))) if has_map else None
        self.side = PerFinding(len(findings), width + 7, len(SIDES))
        self.site = PerFinding(len(findings), width + 7, max(1, len(sites)))
        self.size = PerFinding(len(findings), width + 7, 1)

    def forward(self, fused: Fused) -> FindingOutputs:
        embeddings_BFD, evidence_BFS, strength_BF = self.queries(fused.tokens_BSD, fused.weights_BS)
        position_BF3, spread_BF3 = evidence_place(evidence_BFS, fused)
        half_B13 = fused.half_extent_B3[:, None]
        place_BF6 = torch.cat(
            [(position_BF3 - fused.centre_B3[:, None]) / half_B13, spread_BF3 / half_B13], -1
        )
        hidden_BFD = self.hidden(embeddings_BFD + self.where(place_BF6))
        seen = torch.cat([hidden_BFD, PLACE_SCALE * place_BF6, strength_BF.unsqueeze(-1)], -1)
        presence_logits_BF = self.presence(seen).squeeze(-1)
        if self.peak_gain_F is not None and fused.selection is not None:
            presence_logits_BF = presence_logits_BF + self.peak_gain_F * map_peak(fused.selection)
        log_size_BF = self.size(seen).squeeze(-1).clamp(-4.0, 4.0)
        return FindingOutputs(
            presence_logits_BF=presence_logits_BF,
            side_logits_BF3=only_allowed(self.side(seen), self.allowed_sides),
            site_logits_BFT=only_allowed(self.site(seen), self.allowed_sites),
            size_mm_BF=log_size_BF.exp() * self.size_scale_mm,
            embeddings_BFD=embeddings_BFD,
            evidence_BFS=evidence_BFS,
            position_BF3=position_BF3,
            spread_BF3=spread_BF3,
        )


class PerFinding(nn.Module):
    """A linear layer of its own for every finding."""

    def __init__(self, findings: int, width: int, classes: int):
        super().__init__()
        self.weight_FCD = nn.Parameter(torch.empty(findings, classes, width))
        self.bias_FC = nn.Parameter(torch.empty(findings, classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight_FCD, std=0.02)
        nn.init.zeros_(self.bias_FC)

    def forward(self, x_BFD: Tensor) -> Tensor:
        return torch.einsum("bfd,fcd->bfc", x_BFD, self.weight_FCD) + self.bias_FC


def only_allowed(logits_BFC: Tensor, allowed: list[list[bool]]) -> Tensor:
    """Lower the logits of what a code cannot state; a code that states nothing keeps all (unused)."""
    rows = [row if any(row) else [True] * logits_BFC.shape[-1] for row in allowed]
    return logits_BFC.masked_fill(~torch.tensor(rows, device=logits_BFC.device), NOT_ALLOWED)


def evidence_place(evidence_BFS: Tensor, fused: Fused) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in mm of the evidence on located tokens; the image centre and 0
    where there is none."""
    weights_BFS = evidence_BFS * fused.located_BS[:, None]
    total_BF1 = weights_BFS.sum(-1, keepdim=True)
    weights_BFS = weights_BFS / total_BF1.clamp(min=1e-6)
    from_centre_BS3 = fused.positions_BS3 - fused.centre_B3[:, None]
    mean_BF3 = weights_BFS @ from_centre_BS3
    variance_BF3 = weights_BFS @ from_centre_BS3**2 - mean_BF3**2
    return mean_BF3 + fused.centre_B3[:, None], (variance_BF3.clamp(min=0) + 1e-3).sqrt()


# Losses


def finding_loss(
    outputs: FindingOutputs, targets: FindingTargets, fused: Fused, pos_weight_F: Tensor | None = None
) -> dict[str, Tensor]:
    """Unweighted terms by name: presence, side, site, size, evidence, coverage; only those that the
    targets can teach."""
    terms = {"presence": presence_loss(outputs.presence_logits_BF, targets.presence_BF, pos_weight_F)}
    if targets.side_BF is not None:
        terms["side"] = class_loss(outputs.side_logits_BF3, targets.side_BF)
    if targets.site_BF is not None:
        terms["site"] = class_loss(outputs.site_logits_BFT, targets.site_BF)
    if targets.size_BF is not None:
        terms["size"] = size_loss(outputs.size_mm_BF, targets.size_BF)
    if targets.lesion_boxes_BFL23 is not None:
        terms["evidence"] = evidence_loss(outputs.evidence_BFS, targets, fused)
        if fused.selection is not None:
            terms["map"] = map_loss(fused.selection, targets)
            terms["coverage"] = coverage_loss(fused.selection, targets)
    return terms


def presence_loss(logits_BF: Tensor, presence_BF: Tensor, pos_weight_F: Tensor | None) -> Tensor:
    known_BF = ~presence_BF.isnan()
    losses_BF = F.binary_cross_entropy_with_logits(
        logits_BF, presence_BF.nan_to_num(0.0), pos_weight=pos_weight_F, reduction="none"
    )
    return mean_where(losses_BF, known_BF)


def class_loss(logits_BFC: Tensor, target_BF: Tensor) -> Tensor:
    losses_BF = F.cross_entropy(
        logits_BFC.flatten(0, 1), target_BF.flatten(), ignore_index=-1, reduction="none"
    )
    return mean_where(losses_BF, target_BF.flatten() >= 0)


def size_loss(size_mm_BF: Tensor, target_mm_BF: Tensor) -> Tensor:
    known_BF = ~target_mm_BF.isnan()
    target_mm_BF = torch.where(known_BF, target_mm_BF, torch.ones_like(target_mm_BF))
    losses_BF = F.smooth_l1_loss(size_mm_BF.log(), target_mm_BF.log(), beta=0.1, reduction="none")
    return mean_where(losses_BF, known_BF)


def evidence_loss(evidence_BFS: Tensor, targets: FindingTargets, fused: Fused) -> Tensor:
    """-log of the evidence on cells that overlap the first lesion; one that no token covers teaches
    nothing."""
    overlaps_BFS = in_boxes(fused.positions_BS3, fused.half_cells_BS3, targets, first=True)
    overlaps_BFS = overlaps_BFS & fused.located_BS[:, None]
    hit_BF = (evidence_BFS * overlaps_BFS).sum(-1)
    return mean_where(-torch.log(hit_BF.clamp(min=1e-4)), overlaps_BFS.any(-1))


def coverage_loss(selection: Selection, targets: FindingTargets) -> Tensor:
    """Every stage of token selection must want to keep every cell that a lesion overlaps."""
    losses = [_missed(stage, targets) for stage in selection.stages]
    return torch.stack(losses).mean()


def _missed(stage: Stage, targets: FindingTargets) -> Tensor:
    overlaps_BFN = in_boxes(stage.positions_BN3, stage.half_cells_BN3, targets) & stage.mask_BN[:, None]
    missed_BN = F.softplus(-stage.scores_BN)
    missed_BF = (missed_BN[:, None] * overlaps_BFN).sum(-1) / overlaps_BFN.sum(-1).clamp(min=1)
    return mean_where(missed_BF, overlaps_BFN.any(-1))


def map_loss(selection: Selection, targets: FindingTargets) -> Tensor:
    """Every cell of the stride-8 grid says for each finding whether a lesion lies in it: the mean over
    the lesions' cells, plus the mean over all others weighted towards those that are most mistaken."""
    # A cell with a sliver of the lesion at its border is neither; 0.7 leaves every lesion a cell.
    hit_BFN = in_boxes(selection.positions_BN3, 0.7 * selection.half_cells_BN3, targets)
    other_BFN = ~in_boxes(selection.positions_BN3, selection.half_cells_BN3, targets)
    hit_BFN, other_BFN = (cells & selection.mask_BN[:, None] for cells in (hit_BFN, other_BFN))
    found_BF = (F.softplus(-selection.map_BFN) * hit_BFN).sum(-1) / hit_BFN.sum(-1).clamp(min=1)
    hard_BFN = selection.map_BFN.detach().sigmoid() ** 2 * other_BFN
    quiet_BF = (F.softplus(selection.map_BFN) * hard_BFN).sum(-1) / (hard_BFN.sum(-1) + 1.0)
    return found_BF.sum() / hit_BFN.any(-1).sum().clamp(min=1) + quiet_BF.mean()


def map_peak(selection: Selection) -> Tensor:
    """The strongest cell of each finding's map (B, F)."""
    return selection.map_BFN.masked_fill(~selection.mask_BN[:, None], NOT_ALLOWED).amax(-1)


def in_boxes(positions_BS3: Tensor, half_BS3: Tensor, targets: FindingTargets, first: bool = False) -> Tensor:
    """Does the cell overlap a lesion of the finding, or the `first` one? Nothing overlaps an absent one."""
    assert targets.lesion_boxes_BFL23 is not None
    boxes_BFL23 = targets.lesion_boxes_BFL23[:, :, : 1 if first else None]
    overlaps_BFS = torch.zeros(1, dtype=torch.bool, device=positions_BS3.device)
    for box_BF23 in boxes_BFL23.unbind(2):
        lower_BF13, upper_BF13 = (corner.unsqueeze(2) for corner in box_BF23.unbind(2))
        centre, half = (lower_BF13 + upper_BF13) / 2, (upper_BF13 - lower_BF13) / 2
        # Comparisons with NaN are False: no box, no overlap.
        near_BFS3 = (positions_BS3[:, None] - centre).abs() < half + half_BS3[:, None]
        overlaps_BFS = overlaps_BFS | near_BFS3.all(-1)
    return overlaps_BFS & (targets.presence_BF == 1)[..., None]


def mean_where(losses: Tensor, known: Tensor) -> Tensor:
    known = known.to(losses.dtype)
    return (losses * known).sum() / known.sum().clamp(min=1.0)
