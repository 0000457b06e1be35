"""Model + examples -> what it says of them, and how right that is: the numbers of the training log."""

# N examples, F findings, D width

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dapt.augment import Augment
from dapt.collate import collate
from mla_med.corpus import LANGUAGES, Example
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.config import SIDES
from mla_med.model.mla import MLAModel
from mla_med.types import Side


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the model says of N examples, beside the truth."""

    probability_NF: np.ndarray
    present_NF: np.ndarray
    side_NF: np.ndarray
    site_NF: np.ndarray
    size_mm_NF: np.ndarray
    feature_ND: np.ndarray


@torch.no_grad()
def predict(
    model: MLAModel,
    examples: tuple[Example, ...],
    batch: int = 8,
    language: str = LANGUAGES[0],
    vary: np.random.Generator | None = None,
) -> Predictions:
    """Runs the encoder and the heads, nothing else. `vary`: images are moved and changed as in training, as
    other scanners and technicians would."""
    settings = Preprocessing.from_dict(model.config.preprocessing)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in Predictions.__slots__}
    batch = settings.at_once(batch)
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        inputs = collate(part, model, settings, Augment(model.config.cell) if vary else None, vary, language)
        image, present, affine = (
            inputs[name].to(model.device) for name in ("image_BCIJK", "present_BC", "affine_B44")
        )
        fused = model.encode(image, inputs["text"], present, affine)
        outputs = model.find(fused)
        columns["probability_NF"].append(outputs.probability_BF())
        columns["present_NF"].append(inputs["targets"].presence_BF.numpy().astype(bool))
        columns["side_NF"].append(outputs.side_logits_BF3.argmax(-1).cpu().numpy())
        columns["site_NF"].append(outputs.site_logits_BFT.argmax(-1).cpu().numpy())
        columns["size_mm_NF"].append(outputs.size_mm_BF.cpu().numpy())
        columns["feature_ND"].append(model.image_embedding_BD(fused).double().cpu().numpy())
    return Predictions(**{name: np.concatenate(rows) for name, rows in columns.items()})


def score_findings(model: MLAModel, examples: tuple[Example, ...]) -> dict[str, float]:
    """Macro F1 at probability 0.5, side and site accuracy and size error where present and found."""
    said = predict(model, examples)
    return score_predictions(said, examples, model.config.finding_keys, model.config.sites)


def score_predictions(said: Predictions, examples, keys, sites) -> dict[str, float]:
    found = said.probability_NF >= 0.5
    f1 = [_f1(found[:, f], said.present_NF[:, f]) for f in range(len(keys))]
    sides, places, errors = [], [], []
    for n, example in enumerate(examples):
        largest = {finding.code: finding for finding in reversed(example.findings)}
        for finding in largest.values():
            f = keys.index(finding.code)
            if not found[n, f]:
                continue
            if finding.side in (Side.RIGHT, Side.LEFT):
                sides.append(SIDES[said.side_NF[n, f]] == finding.side)
            if finding.site:
                places.append(sites[said.site_NF[n, f]] == finding.site)
            if finding.size_mm:
                errors.append(abs(said.size_mm_NF[n, f] - finding.size_mm))
    scores = {f"F1 {key}": value for key, value in zip(keys, f1, strict=True)}
    scores["macro F1"] = float(np.mean(f1))
    scores["side accuracy"] = float(np.mean(sides)) if sides else float("nan")
    scores["site accuracy"] = float(np.mean(places)) if places else float("nan")
    scores["median size error mm"] = float(np.median(errors)) if errors else float("nan")
    return scores


def _f1(said_N: np.ndarray, present_N: np.ndarray) -> float:
    return float(2 * (said_N & present_N).sum() / max(said_N.sum() + present_N.sum(), 1))
