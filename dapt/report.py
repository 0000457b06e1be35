"""Model + a corpus -> the receipt of a stage: what it can do now, beside what chance can.

    perplexity      of reports, by the decoder alone and with the image; bits per byte, which do not depend on
                    how a tokenizer cuts
    retrieval       R@1, R@5, R@10, both ways, among the validation studies; chance is exact
    effective rank  of the image embeddings, centred: exp of the entropy of the singular values (Roy and
                    Vetterli, The effective rank, EUSIPCO 2007); beside it how many directions hold 90 %
    linear probe    of each finding on the frozen image embedding: AUC, and what chance gives in 95 of 100
    findings        macro F1 and AUC of the model's own heads

Images are embedded without their request. Knows no training and no page.
"""

# N examples, F findings, D width, K directions

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from dapt.batches import Batch, Wanted, once
from dapt.objectives.align import embed_reports
from dapt.objectives.fuse import beside_images
from dapt.site import Measured
from dapt.stages import Shelf
from mla_med.corpus import Example
from mla_med.model.mla import MLAModel

RECALLS = (1, 5, 10)
RIDGE = 1.0
"""Of the probe, on standardised features, times the number of examples / 10."""
SURE = 1.96


def receipt_of(model: MLAModel, shelf: Shelf, measured: Measured) -> dict[str, Any]:
    model.eval()
    held_out = shelf.held_out[: measured.examples]
    receipt: dict[str, Any] = {"examples": len(held_out), "perplexity": perplexity_of(model, shelf, measured)}
    if shelf.settings is None or not any(e.image is not None for e in held_out):
        return receipt
    seen = embedded(model, shelf, held_out, measured.batch)
    known = embedded(model, shelf, shelf.train[: measured.examples], measured.batch)
    keys = model.config.finding_keys
    return {
        **receipt,
        "retrieval": retrieval(seen.image_PD, seen.text_PD, seen.same_PP),
        "rank": rank_of(seen.image_ND),
        "probe": probe(known.image_ND, known.present_NF, seen.image_ND, seen.present_NF, keys),
        "findings": heads_of(seen.probability_NF, seen.present_NF, keys),
    }


# What the model says


@dataclass(frozen=True, slots=True)
class Embedded:
    image_ND: np.ndarray
    present_NF: np.ndarray
    """1, 0, or NaN where nobody knows."""
    probability_NF: np.ndarray
    """Of the heads, with the request."""
    image_PD: np.ndarray
    """Of those with a report, beside it."""
    text_PD: np.ndarray
    same_PP: np.ndarray
    """The report of a row is as good as that of the column: the same words, or the same patient."""


@torch.no_grad()
def embedded(model: MLAModel, shelf: Shelf, examples: Sequence[Example], batch: int) -> Embedded:
    images, truths, said, paired, texts, who = [], [], [], [], [], []
    for some in _batches(model, shelf, examples, batch, Wanted()):
        if some.image_ICIJK is None:
            continue
        fused = model.encode(some.image_ICIJK, None, some.present_IC, some.affine_I44)
        image_ID = model.image_embedding_BD(fused)
        asked = model.encode(some.image_ICIJK, list(some.contexts), some.present_IC, some.affine_I44)
        outputs = model.find(asked)
        unknown_IF = torch.full_like(outputs.presence_logits_BF, torch.nan)
        images.append(image_ID)
        said.append(torch.from_numpy(outputs.probability_BF()))
        truths.append(unknown_IF if some.targets is None else some.targets.presence_BF)
        in_images, in_reports = some.pairs
        if len(in_images):
            paired.append(image_ID[in_images])
            texts.append(embed_reports(model, [some.reports[n] for n in in_reports.tolist()]))
            patients = some.patient_B[some.image_rows_I[in_images]]
            who.append(torch.stack([patients, some.text_T[in_reports]], 1))
    who_P2 = torch.cat(who) if who else torch.zeros(0, 2)
    same_PP = (who_P2[:, None] == who_P2[None]).any(-1)
    return Embedded(
        _numpy(images), _numpy(truths), _numpy(said), _numpy(paired), _numpy(texts), same_PP.cpu().numpy()
    )


@torch.no_grad()
def perplexity_of(model: MLAModel, shelf: Shelf, measured: Measured) -> dict[str, float]:
    """Of the validation reports: by the decoder alone, and with image and request."""
    sums = {"text": 0.0, "report": 0.0}
    tokens = {"text": 0, "report": 0}
    length = 0
    examples = shelf.held_out[: measured.examples]
    has_images = shelf.settings is not None
    for some in _batches(model, shelf, examples, measured.batch, Wanted(images=has_images, findings=False)):
        if some.ids_TL is None or some.labels_TL is None:
            continue
        sums["text"] += float(nll(model, some.ids_TL, some.labels_TL).sum())
        tokens["text"] += some.tokens
        length += sum(len(report.encode()) for report in some.reports)
        nll_I, tokens_I = nll_with_image(model, some)
        sums["report"] += float(nll_I.sum())
        tokens["report"] += int(tokens_I.sum())
    numbers = {name: math.exp(min(sums[name] / tokens[name], 700)) for name in sums if tokens[name]}
    return numbers | ({"bits_per_byte": sums["text"] / math.log(2) / length} if length else {})


def nll(
    model: MLAModel, ids_TL: Tensor, labels_TL: Tensor, memory: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Minus log likelihood of each report (T,), after its start."""
    memory_BSE, mask_BS = (None, None) if memory is None else memory
    logits = model.decoder(ids_TL, memory_BSE, mask_BS).logits[:, :-1]
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels_TL[:, 1:].flatten(), ignore_index=-100, reduction="none"
    )
    return losses.view(len(ids_TL), -1).sum(1)


def nll_with_image(model: MLAModel, some: Batch) -> tuple[Tensor, Tensor]:
    """Of each image its report's minus log likelihood and tokens (I,); 0 without a report."""
    ids, labels = beside_images(some)
    if ids is None or labels is None or some.image_ICIJK is None:
        return torch.zeros(0), torch.zeros(0)
    fused = model.encode(some.image_ICIJK, list(some.contexts), some.present_IC, some.affine_I44)
    return nll(model, ids, labels, model.memory(fused)), (labels[:, 1:] != -100).sum(1)


def _batches(
    model: MLAModel, shelf: Shelf, examples: Sequence[Example], batch: int, wanted: Wanted
) -> Iterator[Batch]:
    for some in once(examples, model.config, model.tokenizer, shelf.settings, wanted, batch):
        yield some.to(model.device)


def _numpy(rows: list[Tensor]) -> np.ndarray:
    return torch.cat(rows).double().cpu().numpy() if rows else np.zeros((0, 0))


# Numbers of it


def retrieval(image_PD: np.ndarray, text_PD: np.ndarray, same_PP: np.ndarray) -> dict[str, float]:
    """Recall at 1, 5 and 10, image -> report and report -> image, and what drawing at random gives. A report
    in the same words, or of the same patient, is right too."""
    if len(image_PD) < 2:
        return {}
    alike_PP = image_PD @ text_PD.T
    row: dict[str, float] = {"of": len(alike_PP)}
    for name, scores in (("image to report", alike_PP), ("report to image", alike_PP.T)):
        best = np.argsort(-scores, axis=1, kind="stable")
        hits = np.take_along_axis(same_PP, best, 1)
        for k in RECALLS:
            row[f"{name} R@{k}"] = float(hits[:, :k].any(1).mean())
    for k in RECALLS:
        row[f"chance R@{k}"] = float(np.mean([_chance(len(same_PP), int(n), k) for n in same_PP.sum(1)]))
    return row


def _chance(total: int, right: int, k: int) -> float:
    """Of at least one right among k drawn of all."""
    k = min(k, total)
    return 1.0 - math.comb(total - right, k) / math.comb(total, k)


def rank_of(embedding_ND: np.ndarray) -> dict[str, float]:
    """Of centred embeddings; `of` is the most it could be."""
    if len(embedding_ND) < 2:
        return {}
    sigma_K = np.linalg.svd(embedding_ND - embedding_ND.mean(0), compute_uv=False)
    most = min(len(embedding_ND) - 1, embedding_ND.shape[1])
    if sigma_K.sum() < 1e-9:
        return {"effective_rank": 1.0, "dim90": 1.0, "of": most}
    p_K = sigma_K / sigma_K.sum()
    entropy = -float(np.sum(p_K[p_K > 0] * np.log(p_K[p_K > 0])))
    held_K = np.cumsum(sigma_K**2) / np.sum(sigma_K**2)
    return {
        "effective_rank": math.exp(entropy),
        "dim90": float(np.searchsorted(held_K, 0.9) + 1),
        "of": most,
    }


def probe(
    known_ND: np.ndarray,
    present_NF: np.ndarray,
    seen_MD: np.ndarray,
    truth_MF: np.ndarray,
    keys: Sequence[str],
) -> dict[str, dict[str, float]]:
    """By finding, the AUC of a ridge regression on the train split's embeddings; where both answers are in
    both splits."""
    rows: dict[str, dict[str, float]] = {}
    for f, key in enumerate(keys):
        use_N, use_M = ~np.isnan(present_NF[:, f]), ~np.isnan(truth_MF[:, f])
        y_N, y_M = present_NF[use_N, f], truth_MF[use_M, f]
        if len(set(y_N)) < 2 or len(set(y_M)) < 2:
            continue
        x_ND, x_MD = known_ND[use_N], seen_MD[use_M]
        mean_D, sd_D = x_ND.mean(0), x_ND.std(0) + 1e-9
        x_ND, x_MD = (x_ND - mean_D) / sd_D, (x_MD - mean_D) / sd_D
        gram = x_ND.T @ x_ND + RIDGE * max(1.0, len(x_ND) / 10) * np.eye(x_ND.shape[1])
        weights_D = np.linalg.solve(gram, x_ND.T @ (y_N - y_N.mean()))
        rows[key] = {"auc": auc(x_MD @ weights_D, y_M), **_by_chance(y_M)}
    return rows


def heads_of(said_NF: np.ndarray, truth_NF: np.ndarray, keys: Sequence[str]) -> dict[str, float]:
    """Macro over the findings that anybody has, and that somebody does not have."""
    f1s, aucs = [], []
    for f in range(len(keys)):
        use_N = ~np.isnan(truth_NF[:, f])
        truth, said = truth_NF[use_N, f], said_NF[use_N, f]
        if truth.sum():
            found = said >= 0.5
            f1s.append(2 * (found & (truth == 1)).sum() / (found.sum() + truth.sum()))
        if len(set(truth)) == 2:
            aucs.append(auc(said, truth))
    return {
        "macro F1": float(np.mean(f1s)) if f1s else math.nan,
        "macro AUC": float(np.mean(aucs)) if aucs else math.nan,
        "findings": len(f1s),
    }


def auc(score_N: np.ndarray, truth_N: np.ndarray) -> float:
    """Of Mann and Whitney: ties count half."""
    ones = truth_N == 1
    n1, n0 = int(ones.sum()), int((~ones).sum())
    return float((rankdata(score_N)[ones].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def _by_chance(truth_N: np.ndarray) -> dict[str, float]:
    """What a score that knows nothing reaches, in 95 of 100 (normal approximation of the rank sum)."""
    n1 = int((truth_N == 1).sum())
    n0 = len(truth_N) - n1
    width = SURE * math.sqrt((n1 + n0 + 1) / (12 * n1 * n0))
    return {
        "chance_low": max(0.0, 0.5 - width),
        "chance_high": min(1.0, 0.5 + width),
        "present": n1,
        "of": n1 + n0,
    }
