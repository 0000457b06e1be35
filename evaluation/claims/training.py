"""A network and a loss -> the network taught for so many steps: what arms of a row have in common.

The same optimizer, warm-up, learning rate and number of steps for ours and for the control, and the same
batches in the same order: they follow from the seed alone. Knows no claim.
"""

# B batch, C channels, I J K voxel axes, F findings, N examples

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mla_med.imaging.transforms import window_channels
from mla_med.model.config import ModalConfig, tiny
from mla_med.model.mla import MLAModel

Loss = Callable[[np.random.Generator], Tensor]


def teach(module: nn.Module, loss_of: Loss, steps: int, lr: float, seed: int) -> float:
    """In place; -> seconds of a step, the median. `loss_of` draws with the generator that it is given."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    module.train()
    took = []
    for step in range(steps):
        began = time.perf_counter()
        loss = loss_of(np.random.default_rng([seed, step]))
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        took.append(time.perf_counter() - began)
    module.eval()
    return float(np.median(took))


def time_in_turn(arms: Sequence[tuple[nn.Module, Loss]], rounds: int, seed: int) -> tuple[list[float], float]:
    """-> seconds of a training step of each (median), and how many times as long as the second's the first's
    takes (median over rounds, within which each has its turn: a busy machine is busy for both). In place."""
    took = np.zeros((rounds + 1, len(arms)))
    optimizers = [torch.optim.AdamW(module.train().parameters(), lr=1e-5) for module, _ in arms]
    for number in range(rounds + 1):
        order = range(len(arms)) if number % 2 else reversed(range(len(arms)))
        for n in order:
            module, loss_of = arms[n]
            began = time.perf_counter()
            loss_of(np.random.default_rng([seed, number])).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizers[n].step()
            optimizers[n].zero_grad(set_to_none=True)
            took[number, n] = time.perf_counter() - began
    took = took[1:]  # the first round warms up
    return np.median(took, 0).tolist(), float(np.median(took[:, 0] / took[:, 1]))


def drawn(rng: np.random.Generator, of: int, batch: int) -> np.ndarray:
    return rng.choice(of, batch, replace=of < batch)


def channels_of(hu_NIJK: np.ndarray, rows: Any, windows: Sequence[tuple[float, float]]) -> Tensor:
    """Images of some examples as windows of a CT (B, C, I, J, K), 0 to 1."""
    some = torch.from_numpy(np.asarray(hu_NIJK[rows], np.float32))
    return torch.stack([window_channels(hu, tuple(windows)) for hu in some])


def small_model(
    shape: Sequence[int], fusion_type: str, codes: Sequence[str], seed: int, **more: Any
) -> MLAModel:
    """The model of the project in its smallest size, looking for some findings, without sides and sites."""
    torch.manual_seed(seed)
    findings = [{"key": code, "sides": [], "sites": [], "has_size": False} for code in codes]
    config: ModalConfig = tiny(
        findings=findings, fusion_type=fusion_type, channels=3, image_dim=tuple(shape), **more
    )
    return MLAModel(config)


def logits_of(predict: Callable[[np.ndarray], Tensor], count: int, batch: int = 32) -> np.ndarray:
    """Of all examples, by their numbers."""
    with torch.no_grad():
        parts = [predict(np.arange(n, min(n + batch, count))) for n in range(0, count, batch)]
    return torch.cat(parts).double().numpy()


def cuts_of(logits_NF: np.ndarray, truth_NF: np.ndarray) -> np.ndarray:
    """Of each finding, the cut that says it as often as it is there."""
    return np.array(
        [np.quantile(logits_NF[:, f], 1 - truth_NF[:, f].mean()) for f in range(truth_NF.shape[1])]
    )


def balanced_accuracy(said_NF: np.ndarray, truth_NF: np.ndarray) -> float:
    """Mean over findings of the mean of sensitivity and specificity, in per cent; of those that some have."""
    values = []
    for f in range(truth_NF.shape[1]):
        there = truth_NF[:, f]
        if 0 < there.sum() < len(there):
            values.append((said_NF[there, f].mean() + 1 - said_NF[~there, f].mean()) / 2)
    return 100 * float(np.mean(values))


def macro_f1(said_NF: np.ndarray, truth_NF: np.ndarray) -> float:
    """Of the findings that some have, in per cent."""
    hits, either = (said_NF & truth_NF).sum(0), said_NF.sum(0) + truth_NF.sum(0)
    there = truth_NF.sum(0) > 0
    return 100 * float((2 * hits[there] / np.maximum(either[there], 1)).mean())
