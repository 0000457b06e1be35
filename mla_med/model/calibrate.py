"""Held-out outputs beside the truth -> Calibration: what may be said of each finding, how well it is
measured, and what is familiar.

Travels in the checkpoint as calibration.json. A file from before there were answers still loads: it says
present or absent by its thresholds, and never that it cannot say.
"""

# N examples, F findings, D width, H bins of the histogram

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mla_med.model.conformal import COVERAGE, Answer, fit_answer
from mla_med.types import Presence

HISTOGRAM_HU = (-1000.0, -950.0, -900.0, -850.0, -800.0, -700.0, -500.0, -200.0, -120.0, -60.0, -20.0,
                10.0, 30.0, 50.0, 80.0, 120.0, 200.0, 300.0, 600.0)  # fmt: skip
"""Edges of the bins: finer where lung, fat, fluid and soft tissue lie. Below and above are bins too."""
MIN_RETESTED = 10
"""Lesions that have to be measured twice before anything is said of repeatability."""
SLACK = 1.15
"""What is familiar reaches so far beyond what 99.5 % of the held-out examples stay under."""


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
    answers: dict[str, Answer] = field(default_factory=dict)
    """Per finding code; empty in older files."""
    coverage: float | None = None
    """Of those who have a finding and of those who do not, so many are not told the opposite."""
    further_from: dict[str, float] = field(default_factory=dict)
    """Per finding code, the logit of its map from which another place is another lesion; a code that is not
    here is stated once."""
    size_repeat_mm: dict[str, float] = field(default_factory=dict)
    """Two measurements of one lesion differ by less in 95 % of cases: what `repeatability` gave."""
    histogram: tuple[float, ...] = ()
    """Share of the voxels in each bin of HISTOGRAM_HU, mean over familiar images."""
    histogram_limit: float = 1.0
    """Largest share of voxels that may lie in other bins than in that mean."""

    def answer(self, code: str, probability: float) -> tuple[Presence, float]:
        """What may be said of a finding, and the calibrated probability that this is right; where
        nothing can be said, that of the likelier answer."""
        answer = self.answers.get(code)
        if answer is None:
            present = probability >= self.thresholds[code]
            return (Presence.PRESENT, probability) if present else (Presence.ABSENT, 1 - probability)
        presence, p = answer.presence(probability), answer.calibrated(probability)
        if presence is Presence.CANNOT_SAY:
            return presence, max(p, 1 - p)
        return presence, p if presence is Presence.PRESENT else 1 - p

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"answers": {code: answer.to_dict() for code, answer in self.answers.items()}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        return cls(
            {str(k): float(v) for k, v in values["thresholds"].items()},
            tuple(map(float, values["feature_mean"])),
            tuple(tuple(map(float, row)) for row in values["feature_precision"]),
            float(values["feature_limit"]),
            (float(values["lung_range"][0]), float(values["lung_range"][1])),
            {str(k): Answer.from_dict(v) for k, v in values.get("answers", {}).items()},
            None if values.get("coverage") is None else float(values["coverage"]),
            {str(k): float(v) for k, v in values.get("further_from", {}).items()},
            {str(k): float(v) for k, v in values.get("size_repeat_mm", {}).items()},
            tuple(map(float, values.get("histogram", ()))),
            float(values.get("histogram_limit", 1.0)),
        )

    def feature_distance(self, feature_D: np.ndarray) -> float:
        """Mahalanobis distance of one pooled image embedding from the familiar ones."""
        d = np.asarray(feature_D, float) - np.asarray(self.feature_mean)
        return float(np.sqrt(np.maximum(d @ np.asarray(self.feature_precision) @ d, 0.0)))

    def histogram_distance(self, histogram_H: np.ndarray) -> float:
        """Share of the voxels that lie in other bins than they do on average in familiar images; 0 where
        the file is older than this."""
        return total_variation(histogram_H, np.asarray(self.histogram)) if self.histogram else 0.0


def calibrate(
    codes: tuple[str, ...],
    probability_NF: np.ndarray,
    present_NF: np.ndarray,
    feature_ND: np.ndarray,
    known_feature_ND: np.ndarray,
    size_difference_mm: Mapping[str, np.ndarray] | None = None,
    further_from: Mapping[str, float] | None = None,
    lung_share_N: np.ndarray | None = None,
    histogram_NH: np.ndarray | None = None,
    coverage: float = COVERAGE,
) -> Calibration:
    """Thresholds of best F1, conformal sets and repeatability on held-out examples. What is familiar is
    fitted on `known_feature_ND`, features of other examples, and its limit set on the held-out ones:
    in-sample distances are too small when there are not many more examples than features. Lung and
    histogram are those of CT."""
    return Calibration(
        **familiar_features(feature_ND, known_feature_ND),
        lung_range=(0.0, 1.0) if lung_share_N is None else familiar_lung(lung_share_N),
        **what_is_said(codes, probability_NF, present_NF, size_difference_mm or {}, coverage),
        further_from=dict(further_from or {}),
        **({} if histogram_NH is None else usual_histogram(histogram_NH)),
    )


def what_is_said(
    codes: tuple[str, ...],
    probability_NF: np.ndarray,
    present_NF: np.ndarray,
    size_difference_mm: Mapping[str, np.ndarray],
    coverage: float = COVERAGE,
) -> dict[str, Any]:
    """The fields of a Calibration that speak of findings. `size_difference_mm`: by code, between two
    measurements of each of some lesions."""
    present_NF = np.asarray(present_NF, bool)
    columns = {code: (probability_NF[:, f], present_NF[:, f]) for f, code in enumerate(codes)}
    thresholds = {code: best_threshold(p, present) for code, (p, present) in columns.items()}
    return {
        "thresholds": thresholds,
        "answers": {
            code: fit_answer(p.astype(np.float64), present, thresholds[code], coverage)
            for code, (p, present) in columns.items()
        },
        "coverage": coverage,
        "size_repeat_mm": {
            code: repeatability(d) for code, d in size_difference_mm.items() if len(d) >= MIN_RETESTED
        },
    }


def familiar_features(feature_ND: np.ndarray, known_feature_ND: np.ndarray) -> dict[str, Any]:
    """The fields of a Calibration that speak of features."""
    mean = known_feature_ND.mean(0)
    known = known_feature_ND - mean
    covariance = known.T @ known / max(len(known) - 1, 1)
    # shrinkage: directions that hardly vary must not decide alone
    covariance = 0.9 * covariance + 0.1 * np.eye(len(mean)) * np.trace(covariance) / len(mean)
    precision = np.linalg.inv(covariance)
    centred = feature_ND - mean
    distance = np.sqrt(np.einsum("nd,de,ne->n", centred, precision, centred))
    return {
        "feature_mean": tuple(mean.round(5).tolist()),
        "feature_precision": tuple(map(tuple, precision.round(4).tolist())),
        "feature_limit": float(np.quantile(distance, 0.995) * SLACK),
    }


def familiar_lung(lung_share_N: np.ndarray) -> tuple[float, float]:
    return float(lung_share_N.min() * 0.6), float(min(1.0, lung_share_N.max() * 1.4))


def usual_histogram(histogram_NH: np.ndarray) -> dict[str, Any]:
    """The fields of a Calibration that speak of the histogram."""
    mean_H = histogram_NH.mean(0)
    distance_N = [total_variation(row, mean_H) for row in histogram_NH]
    return {
        "histogram": tuple(mean_H.round(5).tolist()),
        "histogram_limit": round(float(min(1.0, np.quantile(distance_N, 0.995) * SLACK)), 4),
    }


def histogram_of(hu: np.ndarray) -> np.ndarray:
    """Share of the voxels in each bin of HISTOGRAM_HU (H,). Its two ends are open."""
    hu = np.asarray(hu)
    # a comparison for each edge takes a fifth of the time of a search among them for each voxel
    below = [np.count_nonzero(hu <= edge) for edge in HISTOGRAM_HU]
    return np.diff([0, *below, hu.size]) / max(hu.size, 1)


def total_variation(one_H: np.ndarray, other_H: np.ndarray) -> float:
    """Half the sum of absolute differences: the share that would have to move."""
    return float(np.abs(np.asarray(one_H) - other_H).sum() / 2)


def repeatability(difference_mm_N: np.ndarray) -> float:
    """What two measurements of one lesion differ by in 19 of 20 cases: the repeatability coefficient
    (Bland, Altman, Lancet 1986;1:307; Raunig et al., Stat Methods Med Res 2015;24:27), by counting, as the
    errors of networks have tails."""
    return round(float(np.quantile(np.abs(difference_mm_N), 0.95, method="higher")), 2)


def best_threshold(probability_N: np.ndarray, present_N: np.ndarray) -> float:
    """The probability from which calling it present gives the best F1."""
    grid = np.arange(0.1, 0.91, 0.02)
    scores = []
    for threshold in grid:
        said = probability_N >= threshold
        hits = float((said & present_N).sum())
        scores.append((2 * hits + 1) / (said.sum() + present_N.sum() + 1))
    best = np.asarray(scores) >= max(scores) - 1e-9
    # the middle of the plateau: its edge is an accident of these examples
    return round(float(np.median(grid[best])), 3)
