"""What a state on disk belongs to, and how its tensors are named."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import torch
from torch import Tensor, nn


def digest_of(weights: nn.Module, learnt_from: Iterable[str]) -> str:
    """Of the weights that a training begins with and of what it learns from: with nothing else may its state
    be gone on with."""
    digest = sha256("\n".join(learnt_from).encode())
    for name, value in sorted(weights.state_dict().items()):
        flat = value.detach().cpu().reshape(-1).contiguous()
        digest.update(name.encode())
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
