"""What every objective is: losses by name, and of how many things each is the mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mla_med.model.mla import MLAModel

if TYPE_CHECKING:
    from dapt.batches import Batch


class Objective(nn.Module):
    """Its own parameters are taught beside the model's, and stay out of the model's checkpoint."""

    passing: tuple[str, ...] = ()
    """How names in its state begin that only the running stage needs: a later one is not given them."""

    def weights(self, model: MLAModel) -> dict[str, float]:
        """Of each loss in the sum."""
        return {}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Of how many things each loss is the mean, as far as that is not the number of examples. So that the
        step over several micro-batches and processes is that over all their things at once."""
        return {}

    def forward(self, model: MLAModel, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def after_step(self, model: MLAModel) -> None:
        """What follows a step of the optimizer."""


class Together(Objective):
    def __init__(self, *objectives: Objective):
        super().__init__()
        self.parts = nn.ModuleList(objectives)

    def weights(self, model: MLAModel) -> dict[str, float]:
        return {name: value for part in self._parts() for name, value in part.weights(model).items()}

    def counts(self, batch: Batch) -> dict[str, float]:
        return {name: value for part in self._parts() for name, value in part.counts(batch).items()}

    def forward(self, model: MLAModel, batch: Batch) -> dict[str, Tensor]:
        return {name: loss for part in self._parts() for name, loss in part(model, batch).items()}

    def after_step(self, model: MLAModel) -> None:
        for part in self._parts():
            part.after_step(model)

    def _parts(self) -> list[Objective]:
        return [part for part in self.parts if isinstance(part, Objective)]


# Across processes


class _Gathered(torch.autograd.Function):
    """all_gather whose gradient comes back: the sum over the processes of what each wants of my rows."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        ctx.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        first = torch.distributed.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of every process in order, and at which of them mine begin. One process: its own rows."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return rows, 0
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    if world == 1:
        return rows, 0
    numbers = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world)]
    torch.distributed.all_gather(numbers, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(number) for number in numbers]
    most = max(1, *sizes)
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    together = _Gathered.apply(padded) if rows.is_floating_point() else _gather_plain(padded)
    keep = torch.cat([torch.arange(size) + most * n for n, size in enumerate(sizes)]).to(rows.device)
    return together[keep], sum(sizes[:rank])


def _gather_plain(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


@contextmanager
def unrecorded(module: nn.Module) -> Iterator[None]:
    """What passes through leaves no trace in the running statistics of batch normalisation."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
