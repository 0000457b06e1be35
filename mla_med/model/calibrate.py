"""Held-out outputs beside the truth -> Calibration: where each finding begins, and what is familiar.

Travels in the checkpoint as calibration.json. Split-conformal sets come later.
"""

# N examples, F findings, D width

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Calibration:
    thresholds: dict[str, float]
    """Per finding code: present from this probability on."""
    feature_mean: tuple[float, ...]
    feature_precision: tuple[tuple[float, ...], ...]
    """Inverse of the (shrunk) covariance of the pooled image embedding."""
    feature_limit: float
    """Mahalanobis distance that 99.5 % of held-out phantoms stay under."""
    lung_range: tuple[float, float]
    """Share of the image that has the density of lung: smallest and largest that is familiar."""

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        return cls(
            {str(k): float(v) for k, v in values["thresholds"].items()},
            tuple(map(float, values["feature_mean"])),
            tuple(tuple(map(float, row)) for row in values["feature_precision"]),
            float(values["feature_limit"]),
            (float(values["lung_range"][0]), float(values["lung_range"][1])),
        )

    def feature_distance(self, feature_D: np.ndarray) -> float:
        """Mahalanobis distance of one pooled image embedding from the familiar ones."""
        d = np.asarray(feature_D, float) - np.asarray(self.feature_mean)
        return float(np.sqrt(np.maximum(d @ np.asarray(self.feature_precision) @ d, 0.0)))


def calibrate(
    codes: tuple[str, ...],
    probability_NF: np.ndarray,
    present_NF: np.ndarray,
    feature_ND: np.ndarray,
    lung_share_N: np.ndarray,
    known_feature_ND: np.ndarray,
) -> Calibration:
    """Thresholds of best F1 on held-out examples. What is familiar is fitted on `known_feature_ND`,
    features of other examples, and its limit set on the held-out ones: in-sample distances are too
    small when there are not many more examples than features."""
    thresholds = {
        code: _best_threshold(probability_NF[:, f], present_NF[:, f].astype(bool))
        for f, code in enumerate(codes)
    }
    mean = known_feature_ND.mean(0)
    known = known_feature_ND - mean
    covariance = known.T @ known / max(len(known) - 1, 1)
    # shrinkage: directions that hardly vary must not decide alone
    covariance = 0.9 * covariance + 0.1 * np.eye(len(mean)) * np.trace(covariance) / len(mean)
    precision = np.linalg.inv(covariance)
    centred = feature_ND - mean
    distance = np.sqrt(np.einsum("nd,de,ne->n", centred, precision, centred))
    low, high = np.quantile(lung_share_N, [0.0, 1.0])
    return Calibration(
        thresholds,
        tuple(mean.round(5).tolist()),
        tuple(map(tuple, precision.round(4).tolist())),
        float(np.quantile(distance, 0.995) * 1.15),
        (float(low * 0.6), float(min(1.0, high * 1.4))),
    )


def _best_threshold(probability_N: np.ndarray, present_N: np.ndarray) -> float:
    grid = np.arange(0.1, 0.91, 0.02)
    scores = []
    for threshold in grid:
        said = probability_N >= threshold
        hits = float((said & present_N).sum())
        scores.append((2 * hits + 1) / (said.sum() + present_N.sum() + 1))
    best = np.asarray(scores) >= max(scores) - 1e-9
    # the middle of the plateau: its edge is an accident of these examples
    return round(float(np.median(grid[best])), 3)
