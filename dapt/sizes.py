"""A trained model and the images it learnt -> its size heads, fitted in closed form.

A size is one of a dozen losses, and the steps on it are as noisy as all others. Its heads are linear, so once
the rest stands still they have one best answer (last layers fitted anew: Kirichenko et al., ICLR 2023): the
ridge regression of what the logarithm of each size lacks. How far a head may go is chosen on images that
training did not see, as what it reads of the others is better than it will ever be again; where it is no
nearer on those, the head stays.
"""

# N examples, F findings, L lesions of one finding, H numbers that a head reads

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dapt.collate import collate
from mla_med.corpus import Example
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.mla import MLAModel

ENOUGH, ENOUGH_UNSEEN = 20, 8
"""Lesions that a finding has to have, among the learnt and the unseen."""
LEAST_SPREAD = 1e-3
"""A number that varies by less is noise of rounding, and would get a weight that makes it loud."""
STRENGTHS = tuple(10.0 ** (n / 2) for n in range(2, 9))


@dataclass(frozen=True, slots=True)
class Refitted:
    learnt: int
    """Lesions."""
    unseen: int
    before: float
    """By how much the logarithm of a size is off in the mean, of unseen lesions."""
    after: float


@torch.no_grad()
def refit_sizes(
    model: MLAModel, learnt: tuple[Example, ...], unseen: tuple[Example, ...], batch: int = 8
) -> dict[str, Refitted]:
    """Changes the size heads in place. -> by finding, where they were changed."""
    keys, head = model.config.finding_keys, model.heads.size
    (known_NFH, lacking_NF), (new_NFH, new_lacking_NF) = (
        _read(model.eval(), some, batch) for some in (learnt, unseen)
    )
    changed: dict[str, Refitted] = {}
    for f, key in enumerate(keys):
        there_N, new_N = (~np.isnan(lacking[:, f]) for lacking in (lacking_NF, new_lacking_NF))
        if there_N.sum() < ENOUGH or new_N.sum() < ENOUGH_UNSEEN:
            continue
        new_LH, left_L = new_NFH[new_N, f], new_lacking_NF[new_N, f]
        before, best = float(np.abs(left_L).mean()), None
        after = before
        for strength in STRENGTHS:
            weight_H, bias = fit_ridge(known_NFH[there_N, f], lacking_NF[there_N, f], strength)
            off = float(np.abs(left_L - new_LH @ weight_H - bias).mean())
            if off < after:
                best, after = (weight_H, bias), off
        if best is not None:
            head.weight_FCD[f, 0] += torch.from_numpy(best[0]).to(head.weight_FCD)
            head.bias_FC[f, 0] += best[1]
            changed[key] = Refitted(int(there_N.sum()), len(left_L), before, after)
    return changed


def fit_ridge(known_LH: np.ndarray, lacking_L: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """-> weights (H,) and bias. The ridge is on columns of mean 0 and spread 1."""
    middle_H, scale_H = known_LH.mean(0), np.maximum(known_LH.std(0), LEAST_SPREAD)
    even_LH, mean = (known_LH - middle_H) / scale_H, float(lacking_L.mean())
    gram_HH = even_LH.T @ even_LH + strength * np.eye(even_LH.shape[1])
    weight_H = np.linalg.solve(gram_HH, even_LH.T @ (lacking_L - mean)) / scale_H
    return weight_H, mean - float(weight_H @ middle_H)


@torch.no_grad()
def _read(model: MLAModel, examples: tuple[Example, ...], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the examples with a size: what the size heads read (N, F, H), and the logarithm of the true size by
    what they say (N, F), NaN where there is none."""
    settings = Preprocessing.from_dict(model.config.preprocessing)
    examples = tuple(e for e in examples if any(finding.size_mm for finding in e.findings))
    read: list[np.ndarray] = []
    lacking = [np.zeros((0, len(model.config.finding_keys)))]
    hook = model.heads.size.register_forward_pre_hook(
        lambda head, given: read.append(given[0].double().cpu().numpy())
    )
    try:
        batch = settings.at_once(batch)
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
