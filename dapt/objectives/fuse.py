"""S3: findings and report from image and request, and whether a report is of this image.

Matching as in ALBEF (Li et al., NeurIPS 2021, section 3.2): the wrong report for an image, and the wrong
image for a report, are drawn among those that are most alike, never of the same patient nor in the same
words. The head that judges reads the report beside the fused image tokens; the report never takes the place
of the request, or the model would learn to read findings there.
"""

# P pairs, S fused tokens, R report tokens, D width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dapt.batches import Batch
from dapt.objectives.align import (
    TEMPERATURE,
    different,
    embed_reports,
    encode_reports,
    finding_counts,
)
from dapt.objectives.objective import Objective
from mla_med.model.attention import MaskedTransformerBlock
from mla_med.model.config import ModalConfig
from mla_med.model.fusion import Fused
from mla_med.model.mla import MLAModel


class Fuse(Objective):
    def __init__(self, config: ModalConfig, match: float = 0.5):
        """`match`: weight of the matching loss; 0 leaves it out, and saves its time."""
        super().__init__()
        self.match = match
        self.ask_1D = nn.Parameter(torch.zeros(1, config.width))
        self.block = MaskedTransformerBlock(config.width, config.heads)
        self.judge = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 1))

    def weights(self, model: MLAModel) -> dict[str, float]:
        assert model.config.loss_weights is not None
        return {**model.config.loss_weights, "match": self.match}

    def counts(self, batch: Batch) -> dict[str, float]:
        _, labels = beside_images(batch)
        lm = 0.0 if labels is None else float((labels[:, 1:] != -100).sum())
        return {"lm": lm, "match": float(len(batch.pairs[0])), **finding_counts(batch.targets)}

    def forward(self, model: MLAModel, batch: Batch) -> dict[str, Tensor]:
        if batch.image_ICIJK is None:
            return {}
        ids, labels = beside_images(batch)
        output = model(
            text=list(batch.contexts),
            image_BCIJK=batch.image_ICIJK,
            present_BC=batch.present_IC,
            affine_B44=batch.affine_I44,
            targets=batch.targets,
            input_ids=ids,
            labels=labels,
        )
        losses = dict(output.losses)
        if self.match and len(batch.pairs[0]) > 1:
            matched = self.match_loss(model, batch, output.fused)
            if matched is not None:
                losses["match"] = matched
        return losses

    def match_loss(self, model: MLAModel, batch: Batch, fused: Fused) -> Tensor | None:
        """None where no wrong pair may be asked for."""
        in_images, in_reports = batch.pairs
        reports = [batch.reports[n] for n in in_reports.tolist()]
        who_P2 = torch.stack([batch.patient_B[batch.image_rows_I[in_images]], batch.text_T[in_reports]], 1)
        with torch.no_grad():
            alike_PP = model.image_embedding_BD(fused)[in_images] @ embed_reports(model, reports).T
        allowed_PP = different(who_P2, who_P2)
        rows = torch.arange(len(reports), device=alike_PP.device)
        wrong_text = hardest(alike_PP, allowed_PP)
        wrong_image = hardest(alike_PP.T, allowed_PP.T)
        has = allowed_PP.any(1)
        if not has.any():
            return None
        image = torch.cat([rows, rows[has], wrong_image[has]])
        text = torch.cat([rows, wrong_text[has], rows[has]])
        said = self.judged(model, fused, in_images[image], reports, text)
        return F.binary_cross_entropy_with_logits(said, (image == text).to(said.dtype))

    def judged(
        self, model: MLAModel, fused: Fused, images: Tensor, reports: list[str], texts: Tensor
    ) -> Tensor:
        """A logit for each pair of an image and a report, given by their places."""
        tokens_TRD, mask_TR = encode_reports(model, reports)
        of_image_BS = fused.mask_BS & ~fused.is_text_BS
        ask = self.ask_1D.expand(len(images), 1, -1)
        x = torch.cat([ask, tokens_TRD[texts], fused.tokens_BSD[images]], 1)
        seen = torch.cat([torch.ones_like(mask_TR[texts][:, :1]), mask_TR[texts], of_image_BS[images]], 1)
        return self.judge(self.block(x, seen.to(x.dtype))[:, 0]).squeeze(-1)


def hardest(alike_PP: Tensor, allowed_PP: Tensor) -> Tensor:
    """For each row a column, drawn by softmax of the likeness among those allowed; where none is, its own."""
    chances = (alike_PP.float() / TEMPERATURE).masked_fill(~allowed_PP, -torch.inf).softmax(1).nan_to_num(0.0)
    none = ~allowed_PP.any(1)
    chances[none, none.nonzero(as_tuple=True)[0]] = 1.0
    return torch.multinomial(chances, 1).squeeze(1)


def beside_images(batch: Batch) -> tuple[Tensor | None, Tensor | None]:
    """Ids and labels of the reports, a row for each image; one without a report teaches nothing."""
    in_images, in_reports = batch.pairs
    if not len(in_images) or batch.ids_TL is None or batch.labels_TL is None:
        return None, None
    shape = (len(batch.image_rows_I), batch.ids_TL.shape[1])
    ids = batch.ids_TL.new_zeros(shape)
    labels = batch.labels_TL.new_full(shape, -100)
    ids[in_images], labels[in_images] = batch.ids_TL[in_reports], batch.labels_TL[in_reports]
    return ids, labels
