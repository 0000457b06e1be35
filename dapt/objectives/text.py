"""S1 of texts, and TAPT: the decoder alone, a causal LM on reports; no image, no request.

Gururangan et al., Don't Stop Pretraining, ACL 2020.
"""

from __future__ import annotations

from torch import Tensor

from dapt.batches import Batch
from dapt.objectives.objective import Objective
from mla_med.model.mla import MLAModel


class ReportText(Objective):
    def counts(self, batch: Batch) -> dict[str, float]:
        return {"text": float(batch.tokens)}

    def forward(self, model: MLAModel, batch: Batch) -> dict[str, Tensor]:
        if not batch.tokens:
            return {}
        loss = model.decoder(batch.ids_TL, None, None, labels=batch.labels_TL).loss
        return {"text": loss}
