"""A trained model and the images it learnt -> its size heads, fitted in closed form.

A size is one of a dozen losses, and the steps on it are as noisy as all others. Its heads are linear, so once
the rest stands still they have one best answer (last layers fitted anew: Kirichenko et al., ICLR 2023): the
ridge regression of what the logarithm of each size lacks. How much it may change is chosen by leaving each
lesion out; a finding for which no change predicts what was left out better keeps its head.
"""

# L lesions of one finding, H numbers that a head reads, R strengths of the ridge

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dapt.collate import collate
from mla_med.corpus import Example
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.mla import MLAModel

ENOUGH = 20
"""Lesions that a finding has to have."""
RIDGES = tuple(10.0 ** (n / 2) for n in range(2, 9))


@dataclass(frozen=True, slots=True)
class Refitted:
    lesions: int
    before: float
    """By how much the logarithm of a size is off in the mean."""
    after: float
    """The same of lesions left out of the fit."""


@torch.no_grad()
def refit_sizes(model: MLAModel, examples: tuple[Example, ...], batch: int = 8) -> dict[str, Refitted]:
    """Changes the size heads in place. -> by finding, where they were changed."""
    keys, head = model.config.finding_keys, model.heads.size
    changed: dict[str, Refitted] = {}
    sized = tuple(e for e in examples if any(finding.size_mm for finding in e.findings))
    known_NFH, lacking_NF = _read(model.eval(), sized, batch)
    for f, key in enumerate(keys):
        there_N = ~np.isnan(lacking_NF[:, f])
        if there_N.sum() < ENOUGH:
            continue
        known_LH, lacking_L = known_NFH[there_N, f], lacking_NF[there_N, f]
        weight_H, bias, off = fit_ridge(known_LH, lacking_L)
        before = float(np.abs(lacking_L).mean())
        if off < before:
            head.weight_FCD[f, 0] += torch.from_numpy(weight_H).to(head.weight_FCD)
            head.bias_FC[f, 0] += bias
            changed[key] = Refitted(len(lacking_L), before, off)
    return changed


def fit_ridge(known_LH: np.ndarray, lacking_L: np.ndarray) -> tuple[np.ndarray, float, float]:
    """-> weights (H,), bias, and the mean absolute error of lesions left out, for the strength of RIDGES that
    has the smallest."""
    middle_H, scale_H = known_LH.mean(0), known_LH.std(0) + 1e-6
    u_LK, s_K, v_KH = np.linalg.svd((known_LH - middle_H) / scale_H, full_matrices=False)
    along_K, mean = u_LK.T @ (lacking_L - lacking_L.mean()), lacking_L.mean()
    best: tuple[float, float] = (np.inf, RIDGES[-1])
    for ridge in RIDGES:
        kept_K = s_K**2 / (s_K**2 + ridge)
        # the residual of a lesion left out, by its leverage
        leverage_L = 1 / len(lacking_L) + (u_LK**2 * kept_K).sum(1)
        left_L = (lacking_L - mean - u_LK @ (kept_K * along_K)) / np.maximum(1 - leverage_L, 1e-6)
        best = min(best, (float(np.abs(left_L).mean()), ridge))
    off, ridge = best
    weight_H = v_KH.T @ (s_K / (s_K**2 + ridge) * along_K) / scale_H
    return weight_H, float(mean - weight_H @ middle_H), off


@torch.no_grad()
def _read(model: MLAModel, examples: tuple[Example, ...], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """What the size heads read of each example (N, F, H), and the logarithm of the true size by what they
    say (N, F), NaN where there is none."""
    settings = Preprocessing.from_dict(model.config.preprocessing)
    read: list[np.ndarray] = []
    lacking = [np.zeros((0, len(model.config.finding_keys)))]
    hook = model.heads.size.register_forward_pre_hook(
        lambda head, given: read.append(given[0].double().cpu().numpy())
    )
    try:
        for start in range(0, len(examples), batch):
            part = examples[start : start + batch]
            inputs = collate(part, model, settings)
            image, present, affine = (
                inputs[name].to(model.device) for name in ("image_BCIJK", "present_BC", "affine_B44")
            )
            said = model.find(model.encode(image, inputs["text"], present, affine)).size_mm_BF.cpu()
            lacking.append((inputs["targets"].size_BF / said).log().double().numpy())
    finally:
        hook.remove()
    width = model.heads.size.weight_FCD.shape[-1]
    known = read or [np.zeros((0, len(model.config.finding_keys), width))]
    return np.concatenate(known), np.concatenate(lacking)
