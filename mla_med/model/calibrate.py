"""Held-out outputs beside the truth -> Calibration: what may be said of each finding, how well it is
measured, and what is familiar.

Travels in the checkpoint as calibration.json. A file from before there were answers still loads: it says
present or absent by its thresholds, and never that it cannot say.
"""

# N examples, F findings, D width

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mla_med.model.conformal import COVERAGE, Answer, fit_answer
from mla_med.model.usual import SLACK, Usual
from mla_med.types import Modality, Presence

MIN_RETESTED = 10
"""Lesions that have to be measured twice before anything is said of repeatability."""


@dataclass(frozen=True, slots=True)
class Calibration:
    thresholds: dict[str, float]
    """Per finding code: present from this probability on."""
    feature_mean: tuple[float, ...]
    feature_precision: tuple[tuple[float, ...], ...]
    """Inverse of the (shrunk) covariance of the pooled image embedding."""
    feature_limit: float
    """Mahalanobis distance that 99.5 % of held-out phantoms stay under."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """Per finding code; empty in older files."""
    coverage: float | None = None
    """Of those who have a finding and of those who do not, so many are not told the opposite."""
    further_from: dict[str, float] = field(default_factory=dict)
    """Per finding code, the logit of its map from which another place is another lesion; a code that is not
    here is stated once."""
    size_repeat_mm: dict[str, float] = field(default_factory=dict)
    """Two measurements of one lesion differ by less in 95 % of cases: what `repeatability` gave."""
    usual: Usual = field(default_factory=Usual)
    """Which values the voxels of familiar images have."""

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
        answers = {code: answer.to_dict() for code, answer in self.answers.items()}
        return values | {"answers": answers, "usual": self.usual.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        return cls(
            {str(k): float(v) for k, v in values["thresholds"].items()},
            tuple(map(float, values["feature_mean"])),
            tuple(tuple(map(float, row)) for row in values["feature_precision"]),
            float(values["feature_limit"]),
            {str(k): Answer.from_dict(v) for k, v in values.get("answers", {}).items()},
            None if values.get("coverage") is None else float(values["coverage"]),
            {str(k): float(v) for k, v in values.get("further_from", {}).items()},
            {str(k): float(v) for k, v in values.get("size_repeat_mm", {}).items()},
            Usual.from_dict(values["usual"]) if "usual" in values else _usual_before(values),
        )

    def feature_distance(self, feature_D: np.ndarray) -> float:
        """Mahalanobis distance of one pooled image embedding from the familiar ones."""
        d = np.asarray(feature_D, float) - np.asarray(self.feature_mean)
        return float(np.sqrt(np.maximum(d @ np.asarray(self.feature_precision) @ d, 0.0)))


def _usual_before(values: dict[str, Any]) -> Usual:
    """Of a file from when there were limits of CT alone."""
    share, histogram = values.get("lung_range", (0.0, 1.0)), values.get("histogram", ())
    known = (Modality.CT,) if histogram else ()
    return Usual.from_dict(
        {
            "share": share,
            "histograms": dict.fromkeys(known, histogram),
            "limits": dict.fromkeys(known, values.get("histogram_limit", 1.0)),
        }
    )


def calibrate(
    codes: tuple[str, ...],
    probability_NF: np.ndarray,
    present_NF: np.ndarray,
    feature_ND: np.ndarray,
    known_feature_ND: np.ndarray,
    size_difference_mm: Mapping[str, np.ndarray] | None = None,
    further_from: Mapping[str, float] | None = None,
    usual: Usual | None = None,
    coverage: float = COVERAGE,
) -> Calibration:
    """Thresholds of best F1, conformal sets and repeatability on held-out examples. What is familiar is
    fitted on `known_feature_ND`, features of other examples, and its limit set on the held-out ones:
    in-sample distances are too small when there are not many more examples than features."""
    return Calibration(
        **familiar_features(feature_ND, known_feature_ND),
        **what_is_said(codes, probability_NF, present_NF, size_difference_mm or {}, coverage),
        further_from=dict(further_from or {}),
        usual=usual or Usual(),
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
