"""A model and studies without labels -> which to annotate next, and why.

Uncertainty times diversity: a study is worth its entropy over the findings, and more the further its image
embedding is from everything labelled or chosen before (greedy k-centre: Sener and Savarese, Active learning
for convolutional neural networks, ICLR 2018). Entropy alone would choose the same doubt twenty times,
distance alone what is odd. Knows no annotator, and no truth.
"""

# N studies, F findings, D width, K labelled or chosen

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dapt.report import embedded
from dapt.stages import Shelf
from mla_med.corpus import Example
from mla_med.errors import ConfigError
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.mla import MLAModel

NAMED = 3
"""So many findings are named as a reason."""
UNSURE = 0.5
"""Bits from which on an answer is named as unsure: a probability from 0.11 to 0.89."""


@dataclass(frozen=True, slots=True)
class Choice:
    id: str
    order: int
    uncertainty: float
    """Mean entropy of the findings, bits: 0 sure, 1 knows nothing."""
    distance: float
    """Cosine distance to the nearest study that is labelled or was chosen before; NaN: there is none."""
    nearest: str
    """Whose that is; empty for the first of all."""
    reason: str


def choose_next(
    model: MLAModel,
    candidates: Sequence[Example],
    labelled: Sequence[Example],
    n: int,
    settings: Preprocessing | None,
    batch: int = 16,
) -> list[Choice]:
    """`n` of the candidates, the most useful first."""
    candidates = [e for e in candidates if e.image is not None]
    labelled = [e for e in labelled if e.image is not None]
    if not candidates or settings is None:
        raise ConfigError(
            "No study with an image is left to annotate in this corpus.", code="NOTHING_TO_ANNOTATE"
        )
    seen_ND, probability_NF = _seen(model, candidates, settings, batch)
    known_KD = _seen(model, labelled, settings, batch)[0] if labelled else np.zeros((0, seen_ND.shape[1]))
    keys = model.config.finding_keys
    bits_NF = entropy_bits(probability_NF)
    chosen = k_centre(seen_ND, known_KD, bits_NF.mean(1), min(n, len(candidates)))
    names = [e.id for e in labelled]
    choices: list[Choice] = []
    for order, (row, distance, near) in enumerate(chosen, 1):
        nearest = "" if near is None else [*names, *(c.id for c in choices)][near]
        reason = _reason(probability_NF[row], bits_NF[row], keys, distance, nearest)
        uncertainty = float(bits_NF[row].mean())
        choices.append(Choice(candidates[row].id, order, uncertainty, distance, nearest, reason))
    return choices


def k_centre(
    seen_ND: np.ndarray, known_KD: np.ndarray, worth_N: np.ndarray, n: int
) -> list[tuple[int, float, int | None]]:
    """Greedy: the largest worth x distance to the nearest centre; -> (row, distance, which centre). Centres
    are the known ones, then the chosen. Without any, the first is the one of largest worth."""
    distance_N = np.full(len(seen_ND), np.nan)
    nearest_N = np.zeros(len(seen_ND), int)
    if len(known_KD):
        apart_NK = 1 - seen_ND @ known_KD.T
        nearest_N = apart_NK.argmin(1)
        distance_N = apart_NK.min(1)
    chosen: list[tuple[int, float, int | None]] = []
    free_N = np.ones(len(seen_ND), bool)
    for place in range(n):
        none = bool(np.isnan(distance_N).all())
        score_N = worth_N.copy() if none else worth_N * np.maximum(distance_N, 0)
        score_N[~free_N] = -np.inf
        row = int(score_N.argmax())
        chosen.append((row, float(distance_N[row]), None if none else int(nearest_N[row])))
        free_N[row] = False
        apart_N = 1 - seen_ND @ seen_ND[row]
        closer_N = np.isnan(distance_N) | (apart_N < distance_N)
        nearest_N[closer_N] = len(known_KD) + place
        distance_N = np.where(closer_N, apart_N, distance_N)
    return chosen


def entropy_bits(probability_NF: np.ndarray) -> np.ndarray:
    p = np.clip(probability_NF, 1e-9, 1 - 1e-9)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def read_done(path: Path) -> frozenset[str]:
    """The ids of a table that an annotator has worked through."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    if not rows or "id" not in rows[0]:
        raise ConfigError(f"{path} has no column id, or no row; give the file that annotate-next wrote.")
    return frozenset(row["id"] for row in rows)


def to_csv(choices: Sequence[Choice]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("order", "id", "uncertainty_bits", "distance", "nearest", "reason"))
    for one in choices:
        distance = "" if np.isnan(one.distance) else f"{one.distance:.4f}"
        row = (one.order, one.id, f"{one.uncertainty:.4f}", distance, one.nearest, one.reason)
        writer.writerow(row)
    return file.getvalue()


def _seen(
    model: MLAModel, examples: Sequence[Example], settings: Preprocessing, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of length 1 (N, D) and probabilities (N, F)."""
    shelf = Shelf("pool", settings, "", (), (), (), ())
    seen = embedded(model.eval(), shelf, examples, batch)
    length_N1 = np.linalg.norm(seen.image_ND, axis=1, keepdims=True)
    return seen.image_ND / np.maximum(length_N1, 1e-9), seen.probability_NF


def _reason(
    probability_F: np.ndarray, bits_F: np.ndarray, keys: Sequence[str], distance: float, nearest: str
) -> str:
    doubts = [f for f in np.argsort(-bits_F)[:NAMED] if bits_F[f] >= UNSURE]
    said = ", ".join(f"{keys[f]} {probability_F[f]:.2f}" for f in doubts)
    words = f"unsure of {said}" if said else "sure of every finding"
    if nearest:
        words += f"; unlike what is labelled or chosen (nearest {nearest}, distance {distance:.3f})"
    return words
