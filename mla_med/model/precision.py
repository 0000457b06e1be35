"""A model in bfloat16: it computes under autocast, and each patient of a batch alone.

A sum in bfloat16 depends on how a kernel cuts the batch up, and by which of 256 steps it is rounded: among
others a patient's logits would differ by hundredths from what they are alone. So at inference a batch goes
through patient by patient, and the findings of one never depend on who is beside them. Training is not
touched. Vectors (norms, biases, gates), which cost nothing, and places in mm stay in single precision.
"""

# B batch, S fused tokens

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from itertools import chain, repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mla_med.errors import ConfigError
from mla_med.model.seen import FindingOutputs, Fused, of_patients


def in_its_precision(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Autocast where the weights are bfloat16. ConfigError for float16, whose range is too small."""
    if model.dtype == torch.float16:
        raise ConfigError("The weights are float16. A model computes in float32 or bfloat16.")
    if model.dtype != torch.bfloat16:
        return nullcontext()
    return torch.autocast(model.device.type, torch.bfloat16)


def widen_vectors(model: nn.Module) -> None:
    """In place: vectors of bfloat16 to float32."""
    for values in chain(model.parameters(), model.buffers()):
        if values.dtype == torch.bfloat16 and values.ndim < 2:
            values.data = values.data.float()


def sees_each_alone(model: PreTrainedModel) -> bool:
    """Asked where the model computes: under `in_its_precision` or an autocast of the caller's."""
    return not model.training and torch.is_autocast_enabled(model.device.type)


def patients_of(fused: Fused) -> list[Fused]:
    """Each patient without what was filled behind it."""
    alone = []
    for b in range(len(fused.tokens_BSD)):
        one = of_patients(fused, [b])
        length = max(1, _last(one.mask_BS[0]))
        alone.append(
            replace(
                one,
                **{
                    field.name: getattr(one, field.name)[:, :length]
                    for field in fields(Fused)
                    if "_BS" in field.name
                },
            )
        )
    return alone


def texts_of(ids_BL: Tensor, mask_BL: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each text (1, L) and its mask, without what was filled behind it."""
    lengths = [max(1, _last(mask_L)) for mask_L in mask_BL]
    return [(ids_BL[b : b + 1, :length], mask_BL[b : b + 1, :length]) for b, length in enumerate(lengths)]


def _last(mask_N: Tensor) -> int:
    """How many come up to the last that is there."""
    there = mask_N.nonzero()
    return int(there[-1]) + 1 if len(there) else 0


def side_by_side(parts: Sequence[Any]) -> Any:
    """One batch of what was seen of each; shorter ones are filled with zeros behind, which no mask counts.
    A number of the whole batch becomes the mean."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(side_by_side(each) for each in zip(*parts, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        return type(first)(
            **{f.name: side_by_side([getattr(part, f.name) for part in parts]) for f in fields(first)}
        )
    if first.ndim == 0:
        return torch.stack(list(parts)).mean()
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    return torch.cat([filled(part, shape) for part in parts])


def filled(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros behind each axis but the first, up to `shape`."""
    missing = [wanted - size for wanted, size in zip(shape, x.shape[1:], strict=True)]
    return F.pad(x, [n for pair in zip(repeat(0), reversed(missing)) for n in pair]) if any(missing) else x


def widened(outputs: FindingOutputs, tokens: int) -> FindingOutputs:
    """In single precision, with evidence for so many tokens."""
    parts = {field.name: getattr(outputs, field.name).float() for field in fields(FindingOutputs)}
    evidence_BFS = parts["evidence_BFS"]
    return FindingOutputs(**parts | {"evidence_BFS": filled(evidence_BFS, (evidence_BFS.shape[1], tokens))})
