"""S2: the image and the report of a study are more alike than those of two studies; findings beside it.

Symmetric InfoNCE (ConVIRT: Zhang et al., 2020; CLIP: Radford et al., ICML 2021) among the pairs of a
micro-batch of all processes. Reports of the same words and studies of the same patient are no negatives.
Contrast alone lets the embeddings of CT collapse to a few dimensions, so the findings are taught where they
are known. A queue of earlier pairs holds what towers said that follow slowly (He et al., CVPR 2020; Li et
al., NeurIPS 2021). Without those, both towers learn to be unlike what is older, and end as one point.

The image is seen without its request: what a request says would be found in the report without looking.
"""

# P pairs of this process, Q columns (those of every process, then the queue), T reports, D width,
# W windows of a report, L tokens of a window

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dapt.batches import Batch
from dapt.objectives.objective import Objective, gather
from mla_med.model.findings import FindingTargets
from mla_med.model.mla import MLAModel
from mla_med.model.text_encoder import byte_tokenizer, hf_tokenizer, pad_ids

TEMPERATURE = 0.07
LARGEST_SCALE = 100.0
"""Of the similarities, as in CLIP."""
MOMENTUM, RAMP = 0.995, 10
"""Of the towers that follow; the decay is at most (1 + step) / (RAMP + step)."""


class Align(Objective):
    passing = ("slow.",)

    def __init__(self, model: MLAModel, queue: int = 0, findings: bool = True):
        super().__init__()
        self.findings = findings
        self.slow = SlowTowers(model) if queue else None
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))
        self.queue_image_QD: Tensor
        self.queue_text_QD: Tensor
        self.queue_who_Q2: Tensor
        self.filled: Tensor
        self.register_buffer("queue_image_QD", torch.zeros(queue, model.config.width))
        self.register_buffer("queue_text_QD", torch.zeros(queue, model.config.width))
        self.register_buffer("queue_who_Q2", torch.zeros(queue, 2, dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def weights(self, model: MLAModel) -> dict[str, float]:
        assert model.config.loss_weights is not None
        return dict(model.config.loss_weights)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"contrast": float(len(batch.pairs[0])), **finding_counts(batch.targets)}

    def forward(self, model: MLAModel, batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        in_images, in_reports = batch.pairs
        image_PD = text_PD = torch.zeros(0, model.config.width, device=batch.patient_B.device)
        if batch.image_ICIJK is not None:
            fused = model.encode(batch.image_ICIJK, None, batch.present_IC, batch.affine_I44)
            image_PD = model.image_embedding_BD(fused)[in_images]
            if self.findings and batch.targets is not None:
                losses |= model.losses_of(fused, model.find(fused), batch.targets, None)
        if len(in_reports):
            text_PD = embed_reports(model, [batch.reports[n] for n in in_reports.tolist()])
        patient_P = batch.patient_B[batch.image_rows_I[in_images]]
        who_P2 = torch.stack([patient_P, batch.text_T[in_reports]], 1)
        keys = self.slow(batch) if self.slow is not None and self.training else None
        contrast = self.contrast(image_PD, text_PD, who_P2, keys)
        return losses if contrast is None else {**losses, "contrast": contrast}

    def after_step(self, model: MLAModel) -> None:
        if self.slow is not None:
            self.slow.follow(model)

    def contrast(
        self, image_PD: Tensor, text_PD: Tensor, who_P2: Tensor, keys: tuple[Tensor, Tensor] | None = None
    ) -> Tensor | None:
        """InfoNCE of my rows against the columns of all; None where this process has no pair. `keys`: images
        and texts as the slow towers say them, which are the columns then, and are kept in the queue."""
        (images, texts), who, first, old = keys or (image_PD, text_PD), who_P2, 0, 0
        if self.training:
            (images, first), (texts, _), (who, _) = gather(images), gather(texts), gather(who_P2)
        if keys is not None:
            old = int(self.filled.clamp(max=len(self.queue_who_Q2)))
        loss = None
        if len(image_PD):
            scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
            column_who = torch.cat([who, self.queue_who_Q2[:old]])
            own_P = torch.arange(first, first + len(image_PD), device=images.device)
            allowed_PQ = different(who_P2, column_who)
            allowed_PQ[torch.arange(len(own_P)), own_P] = True
            loss = torch.stack(
                [
                    F.cross_entropy((rows @ columns.T * scale).masked_fill(~allowed_PQ, -torch.inf), own_P)
                    for rows, columns in (
                        (image_PD, torch.cat([texts, self.queue_text_QD[:old].to(texts.dtype)])),
                        (text_PD, torch.cat([images, self.queue_image_QD[:old].to(images.dtype)])),
                    )
                ]
            ).mean()
        if keys is not None:
            self._remember(images, texts, who)
        return loss

    @torch.no_grad()
    def _remember(self, images: Tensor, texts: Tensor, who: Tensor) -> None:
        """The newest take the place of the oldest."""
        size = len(self.queue_who_Q2)
        places = (int(self.filled) + torch.arange(len(who), device=who.device)) % max(1, size)
        if size:
            places = places[-size:]
            # in place: what this step's backward needs of it was copied when it was joined to the columns
            self.queue_image_QD[places] = images[-size:].to(self.queue_image_QD.dtype)
            self.queue_text_QD[places] = texts[-size:].to(self.queue_text_QD.dtype)
            self.queue_who_Q2[places] = who[-size:]
        self.filled += len(who)


class SlowTowers(nn.Module):
    """The model without its decoder, a little behind: its weights are a running mean of the model's."""

    def __init__(self, model: MLAModel):
        super().__init__()
        left_out: dict[int, Any] = {id(model.decoder): None, id(model.tokenizer): model.tokenizer}
        self.model: MLAModel = deepcopy(model, left_out).requires_grad_(False).eval()
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def train(self, mode: bool = True) -> SlowTowers:
        """Never: what it says depends on the pair alone."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and reports of the pairs, (P, D) each, of length 1."""
        in_images, in_reports = batch.pairs
        if not len(in_images):
            nothing = torch.zeros(0, self.model.config.width, device=batch.patient_B.device)
            return nothing, nothing
        fused = self.model.encode(batch.image_ICIJK, None, batch.present_IC, batch.affine_I44)
        reports = [batch.reports[n] for n in in_reports.tolist()]
        return self.model.image_embedding_BD(fused)[in_images], embed_reports(self.model, reports)

    @torch.no_grad()
    def follow(self, model: MLAModel) -> None:
        steps = int(self.steps)
        decay = min(MOMENTUM, (1 + steps) / (RAMP + steps))
        now = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, mine in self.model.named_parameters():
            mine.lerp_(now[name].detach(), 1 - decay)
        for name, mine in self.model.named_buffers():
            mine.copy_(now[name])
        self.steps += 1


def finding_counts(targets: FindingTargets | None) -> dict[str, float]:
    """Of how many findings each loss of `finding_loss` is the mean; evidence and coverage: of those with a
    box, as long as a token lies in it."""
    names = ("presence", "side", "site", "size", "evidence", "coverage", "map")
    if targets is None:
        return dict.fromkeys(names, 0.0)
    boxes = targets.lesion_boxes_BFL23
    drawn = 0.0 if boxes is None else float((~boxes[:, :, 0].isnan()).flatten(2).all(-1).sum())
    return {
        "presence": float((~targets.presence_BF.isnan()).sum()),
        "side": 0.0 if targets.side_BF is None else float((targets.side_BF >= 0).sum()),
        "site": 0.0 if targets.site_BF is None else float((targets.site_BF >= 0).sum()),
        "size": 0.0 if targets.size_BF is None else float((~targets.size_BF.isnan()).sum()),
        **dict.fromkeys(("evidence", "coverage"), drawn),
        # its second half is a mean over all cells, also where nothing is drawn
        "map": float(len(targets.presence_BF)),
    }


def different(one_P2: Tensor, other_Q2: Tensor) -> Tensor:
    """(P, Q): another patient and other words."""
    return (one_P2[:, None] != other_Q2[None]).all(-1)


def encode_reports(model: MLAModel, reports: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens of whole reports (T, W * L, D) and which are real. The text encoder reads as many at a time as a
    request is long, so a report is read in windows."""
    offset = model.config.byte_offset
    tokenize = byte_tokenizer(offset) if model.tokenizer is None else hf_tokenizer(model.tokenizer)
    at_once = model.config.text_positions
    rows, owners = [], []
    for n, ids in enumerate(tokenize(reports)):
        for first in range(0, max(1, len(ids)), at_once):
            rows.append(list(ids[first : first + at_once]))
            owners.append(n)
    ids_RL, mask_RL = (x.to(model.device) for x in pad_ids(rows, model.config.pad_token_id))
    tokens_RLD = model.text_encoder(ids_RL, mask_RL)
    most = max(owners.count(n) for n in range(len(reports)))
    length = ids_RL.shape[1]
    places = torch.zeros(len(rows), dtype=torch.long)
    seen: dict[int, int] = {}
    for row, owner in enumerate(owners):
        places[row] = owner * most + seen.get(owner, 0)
        seen[owner] = seen.get(owner, 0) + 1
    places = places.to(model.device)
    tokens = tokens_RLD.new_zeros(len(reports) * most, length, tokens_RLD.shape[-1])
    mask = mask_RL.new_zeros(len(reports) * most, length)
    tokens, mask = tokens.index_copy(0, places, tokens_RLD), mask.index_copy(0, places, mask_RL)
    shape = (len(reports), most * length)
    return tokens.reshape(*shape, -1), mask.reshape(shape)


def embed_reports(model: MLAModel, reports: list[str]) -> Tensor:
    """(T, D) of length 1; of a report no longer than a request what `text_embedding_BD` says."""
    tokens_TSD, mask_TS = encode_reports(model, reports)
    weights_TS1 = mask_TS.to(tokens_TSD.dtype).unsqueeze(-1)
    pooled_TD = (tokens_TSD * weights_TS1).sum(1) / weights_TS1.sum(1).clamp(min=1e-6)
    return F.normalize(model.project_text(pooled_TD), dim=-1)
