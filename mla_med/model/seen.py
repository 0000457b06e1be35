"""What the network saw of a batch, and what it makes of each finding: arrays of NumPy or tensors of PyTorch.

Every runtime of the model (PyTorch, ONNX Runtime, OpenVINO) gives these nouns, so what reads them is written
once. Knows neither torch nor any other runtime.
"""

# B batch, S fused tokens, N cells of the stride-4 grid, F findings, M modalities, D width, H features of a
# cell, T sites, 3 sides or patient axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from mla_med.model.fusion import Selection

NOWHERE = -1e4
"""Logit of a cell that is not looked at."""


@dataclass(frozen=True, slots=True)
class LesionMap:
    logits_BFN: Tensor
    """Of each finding in each cell."""
    features_BNH: Tensor
    positions_BN3: Tensor
    """Centre of the cell, patient mm."""
    half_cells_BN3: Tensor
    mask_BN: Tensor
    """The cells that are looked at."""

    def seen_BFN(self) -> Tensor:
        return self.logits_BFN.masked_fill(~self.mask_BN[:, None], NOWHERE)


@dataclass(frozen=True, slots=True)
class Fused:
    """Image tokens, then text tokens."""

    tokens_BSD: Tensor
    mask_BS: Tensor
    weights_BS: Tensor
    """mask_BS as numbers through which token selection learns."""
    positions_BS3: Tensor
    half_cells_BS3: Tensor
    located_BS: Tensor
    strides_BS: Tensor
    index_BS: Tensor
    modal_weights_BM: Tensor
    """Image, text; each row sums to 1, an absent modality has exactly 0."""
    centre_B3: Tensor
    half_extent_B3: Tensor
    selection: Selection | None = None
    lesions: LesionMap | None = None

    @property
    def is_text_BS(self) -> Tensor:
        return self.strides_BS == 0


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

    def probability_BF(self) -> np.ndarray:
        """Of each finding being there. In double precision: in single precision the surest are all 1."""
        return sigmoid(to_numpy(self.presence_logits_BF))


def of_patients(batch: Any, rows: Sequence[int]) -> Any:
    """Some patients of a Fused or of FindingOutputs, as a batch of their own; all of them: as it is."""
    if is_dataclass(batch) and not isinstance(batch, type):
        parts = {field.name: of_patients(getattr(batch, field.name), rows) for field in fields(batch)}
        return replace(batch, **parts)
    if isinstance(batch, tuple):
        return tuple(of_patients(part, rows) for part in batch)
    if batch is None or batch.ndim == 0 or list(rows) == list(range(len(batch))):
        return batch
    return batch[list(rows)]


def to_numpy(x: Any) -> np.ndarray:
    """An array as it is; a tensor, wherever it lies, as an array: one in bfloat16, which NumPy does not have,
    in single precision."""
    if isinstance(x, np.ndarray):
        return x
    x = x.detach().cpu()
    return (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()


def like(x: np.ndarray, other: Any) -> Any:
    """An array as what `other` is, with its own kind of numbers: an array, or a tensor where that lies."""
    if isinstance(other, np.ndarray):
        return x
    tensor = other.new_tensor(x)
    return tensor.bool() if x.dtype == bool else tensor


def map_logits_N(lesions: LesionMap, finding: int, patient: int = 0) -> np.ndarray:
    """Of one finding of one patient in each cell, in double precision; NOWHERE where it is not looked at."""
    logit_N = to_numpy(lesions.logits_BFN[patient, finding]).astype(np.float64)
    return np.where(to_numpy(lesions.mask_BN[patient]), logit_N, NOWHERE)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(np.asarray(x, np.float64), -700, 700)))


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
