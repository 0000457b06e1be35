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
from mla_med.model.lesion_map import WIDTH, LesionMap, peaks_of
from mla_med.model.seen import FindingOutputs as FindingOutputs

PLACE_SCALE = 8.0
"""The place enters the last layer larger than [-1, 1], so that side and site learn from it early."""
NOT_ALLOWED = -1e4
"""Logit of a side or site that the code does not know."""
SHARP = 3
"""A cell of a lesion is taught by the power of its probability: one speck outweighs the many cells of its
box that hold none of it."""
ELSEWHERE = 0.25
"""Weight of the cells without a lesion."""
EVEN = 0.1
"""All cells of a lesion together are taught evenly with so much of the weight."""


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
        """`has_map`: the fusion has a map of each finding to listen to."""
        super().__init__()
        self.allowed_sides = [[side in finding["sides"] for side in SIDES] for finding in findings]
        self.allowed_sites = [[site in finding["sites"] for site in sites] for finding in findings]
        self.size_scale_mm = size_scale_mm
        self.queries = FindingQueries(len(findings), width, heads)
        self.hidden = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.where = nn.Linear(6, width)
        self.peak = nn.Linear(WIDTH, width) if has_map else None
        self.peak_gain_F = nn.Parameter(torch.ones(len(findings))) if has_map else None
        known = width + 7 + (5 if has_map else 0)
        self.presence = PerFinding(len(findings), known, 1)
        self.side = PerFinding(len(findings), known, len(SIDES))
        self.site = PerFinding(len(findings), known, max(1, len(sites)))
        self.size = PerFinding(len(findings), known, 1)

    def forward(self, fused: Fused) -> FindingOutputs:
        embeddings_BFD, evidence_BFS, strength_BF = self.queries(fused.tokens_BSD, fused.weights_BS)
        position_BF3, spread_BF3 = evidence_place(evidence_BFS, fused)
        centre_B13, half_B13 = fused.centre_B3[:, None], fused.half_extent_B3[:, None]
        place_BF6 = torch.cat([(position_BF3 - centre_B13) / half_B13, spread_BF3 / half_B13], -1)
        asked_BFD = embeddings_BFD + self.where(place_BF6)
        known = [PLACE_SCALE * place_BF6, strength_BF.unsqueeze(-1)]
        if fused.lesions is not None and self.peak is not None:
            peaks = peaks_of(fused.lesions)
            asked_BFD = asked_BFD + self.peak(peaks.features_BFH)
            known += [
                PLACE_SCALE * (peaks.position_BF3 - centre_B13) / half_B13,
                # a cell that is not looked at has a logit without bounds
                torch.stack([peaks.logit_BF.clamp(-8, 8), peaks.cells_BF], -1),
            ]
        seen = torch.cat([self.hidden(asked_BFD), *known], -1)
        presence_logits_BF = self.presence(seen).squeeze(-1)
        if fused.lesions is not None and self.peak_gain_F is not None:
            presence_logits_BF = presence_logits_BF + self.peak_gain_F * peaks.logit_BF
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
    mean_BF3 = _mean_by(weights_BFS, from_centre_BS3)
    variance_BF3 = _mean_by(weights_BFS, from_centre_BS3**2) - mean_BF3**2
    return mean_BF3 + fused.centre_B3[:, None], (variance_BF3.clamp(min=0) + 1e-3).sqrt()


def _mean_by(weights_BFS: Tensor, x_BS3: Tensor) -> Tensor:
    """No product of matrices, which autocast would round to whole millimetres."""
    return torch.stack([(weights_BFS * x_BS3[:, None, :, axis]).sum(-1) for axis in range(3)], -1)


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
        if fused.lesions is not None:
            terms["map"] = map_loss(fused.lesions, targets)
        if fused.selection is not None:
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
    patient_P, finding_P, boxes_P23 = present_boxes(targets, first=True)
    overlaps_PS = touches(fused.positions_BS3, fused.half_cells_BS3, patient_P, boxes_P23)
    overlaps_PS = overlaps_PS & fused.located_BS[patient_P]
    hit_P = (evidence_BFS[patient_P, finding_P] * overlaps_PS).sum(-1)
    return mean_where(-torch.log(hit_P.clamp(min=1e-4)), overlaps_PS.any(-1))


def coverage_loss(selection: Selection, targets: FindingTargets) -> Tensor:
    """Every stage of token selection must want to keep every cell that a lesion overlaps."""
    losses = [_missed(stage, targets) for stage in selection.stages]
    return torch.stack(losses).mean()


def _missed(stage: Stage, targets: FindingTargets) -> Tensor:
    patient_P, _, boxes_P23 = present_boxes(targets)
    overlaps_PN = touches(stage.positions_BN3, stage.half_cells_BN3, patient_P, boxes_P23)
    overlaps_PN = overlaps_PN & stage.mask_BN[patient_P]
    missed_PN = F.softplus(-stage.scores_BN)[patient_P]
    missed_P = (missed_PN * overlaps_PN).sum(-1) / overlaps_PN.sum(-1).clamp(min=1)
    return mean_where(missed_P, overlaps_PN.any(-1))


def map_loss(lesions: LesionMap, targets: FindingTargets) -> Tensor:
    """Some cell of every lesion must name it, and no cell elsewhere. Of each lesion the cells that see it
    best are taught most (a box holds more than the lesion); of all other cells those that are most mistaken,
    by the square of their probability; their sums by the number of lesions, so that neither many cells nor
    many findings outweigh them (focal loss: Lin et al., ICCV 2017; its heat-map form: Zhou et al.,
    arXiv:1904.07850). Where presence is not known, nothing is taught."""
    patient_P, finding_P, boxes_P23 = present_boxes(targets)
    places = lesions.positions_BN3, lesions.half_cells_BN3, patient_P, boxes_P23
    logits_BFN = lesions.logits_BFN.float()
    # A cell with a sliver of the lesion at its border is neither; 0.7 leaves every lesion a cell.
    hit_PN = touches(*places, share=0.7) & lesions.mask_BN[patient_P]
    logits_PN = logits_BFN[patient_P, finding_P]
    sharp_PN = (SHARP * F.logsigmoid(logits_PN.detach())).masked_fill(~hit_PN, NOT_ALLOWED).softmax(-1)
    even_PN = hit_PN / hit_PN.sum(-1, keepdim=True).clamp(min=1)
    weight_PN = ((1 - EVEN) * sharp_PN + EVEN * even_PN) * hit_PN
    missed = (weight_PN * F.softplus(-logits_PN)).sum()
    known_BF1 = ~targets.presence_BF.isnan().unsqueeze(-1)
    other_BFN = ~any_of(touches(*places), patient_P, finding_P, targets)
    other_BFN = other_BFN & known_BF1 & lesions.mask_BN[:, None]
    wrong = (F.softplus(logits_BFN) * logits_BFN.detach().sigmoid() ** 2 * other_BFN).sum()
    return (missed + ELSEWHERE * wrong) / hit_PN.any(-1).sum().clamp(min=1)


# Cells and lesions. P lesions that are present, of a patient and a finding each


def present_boxes(targets: FindingTargets, first: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Patient (P,), finding (P,) and box in mm (P, 2, 3) of every lesion, or of the `first` of each finding;
    an absent finding has none."""
    assert targets.lesion_boxes_BFL23 is not None
    boxes_BFL23 = targets.lesion_boxes_BFL23[:, :, : 1 if first else None]
    there_BFL = ~boxes_BFL23.isnan().flatten(3).any(-1) & (targets.presence_BF == 1)[..., None]
    patient_P, finding_P, _ = there_BFL.nonzero(as_tuple=True)
    return patient_P, finding_P, boxes_BFL23[there_BFL]


def touches(
    positions_BN3: Tensor, half_BN3: Tensor, patient_P: Tensor, boxes_P23: Tensor, share: float = 1.0
) -> Tensor:
    """Does the middle `share` of a cell overlap the lesion? (P, N)"""
    lower_P13, upper_P13 = boxes_P23[:, :1], boxes_P23[:, 1:]
    apart_PN3 = (positions_BN3[patient_P] - (lower_P13 + upper_P13) / 2).abs()
    return (apart_PN3 < (upper_P13 - lower_P13) / 2 + share * half_BN3[patient_P]).all(-1)


def any_of(hit_PN: Tensor, patient_P: Tensor, finding_P: Tensor, targets: FindingTargets) -> Tensor:
    """Of the lesions of each finding, any: (B, F, N)."""
    batch, findings = targets.presence_BF.shape
    hits = torch.zeros(batch * findings, hit_PN.shape[1], device=hit_PN.device)
    hits = hits.index_add(0, patient_P * findings + finding_P, hit_PN.to(hits.dtype))
    return (hits > 0).unflatten(0, (batch, findings))


def mean_where(losses: Tensor, known: Tensor) -> Tensor:
    known = known.to(losses.dtype)
    return (losses * known).sum() / known.sum().clamp(min=1.0)
