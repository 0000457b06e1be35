"""Held-out probabilities beside the truth -> Answer: a calibrated probability of a finding, and when it
may be called present, absent, or neither.

Split conformal prediction, one quantile for each class (class-conditional, "Mondrian"): Vovk, Gammerman,
Shafer, Algorithmic Learning in a Random World, 2005; Angelopoulos, Bates, Found. Trends Mach. Learn.
2023;16:494. It promises its coverage for patients drawn as those it was set on, and for no others: that
is what the gate is for. Knows numbers only.
"""

# N examples

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mla_med.types import Presence

COVERAGE = 0.90
"""Of those who have a finding, and of those who do not, so many are not told the opposite."""
NEAREST = 1e-7
"""How near to 0 and 1 a probability may be; beyond, single precision has no numbers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How one finding is answered. Probabilities here are those of the model, before calibration."""

    present_from: float
    """Among those who have it, the stated share is above this: from here on "present" is possible."""
    absent_to: float
    """Among those who do not, the stated share is below this: up to here "absent" is possible."""
    cut: float
    """From here on present is the likelier answer: the threshold of best F1."""
    slope: float
    offset: float
    """Of the calibrated log odds over those of the model."""
    num_present: int
    num_absent: int
    """How many examples it was set on."""

    def presence(self, probability: float) -> Presence:
        """The likelier answer, unless the other conforms as well, and only where the calibrated probability
        agrees. What is added to a conformal set only adds to its coverage: nothing is called present at 1 %
        because the absent lie below that, and nothing absent at 70 %."""
        present, absent = self.conforms(probability)
        likely = self.calibrated(probability) >= 0.5
        if probability >= self.cut:
            return Presence.PRESENT if likely and not absent else Presence.CANNOT_SAY
        return Presence.CANNOT_SAY if likely or present else Presence.ABSENT

    def conforms(self, probability: float) -> tuple[bool, bool]:
        """The conformal set: whether present is in it, and whether absent is."""
        return probability >= self.present_from, probability <= self.absent_to

    def calibrated(self, probability: float) -> float:
        """The probability that the finding is present. Rises with that of the model."""
        return float(1 / (1 + np.exp(-(self.slope * log_odds(probability) + self.offset))))

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Answer:
        return cls(
            float(values["present_from"]),
            float(values["absent_to"]),
            float(values["cut"]),
            float(values["slope"]),
            float(values["offset"]),
            int(values["num_present"]),
            int(values["num_absent"]),
        )


def fit_answer(
    probability_N: np.ndarray, present_N: np.ndarray, cut: float, coverage: float = COVERAGE
) -> Answer:
    """From examples that training did not see. Calibration keeps the order of the examples, so that the
    sets hold whichever examples it was fitted on."""
    present_N = np.asarray(present_N, bool)
    slope, offset = fit_sigmoid(log_odds(probability_N), present_N)
    return Answer(
        present_from=1 - conformal_quantile(1 - probability_N[present_N], coverage),
        absent_to=conformal_quantile(probability_N[~present_N], coverage),
        cut=cut,
        slope=slope,
        offset=offset,
        num_present=int(present_N.sum()),
        num_absent=int((~present_N).sum()),
    )


def conformal_quantile(scores_N: np.ndarray, coverage: float) -> float:
    """The score that the next example stays at or below with probability `coverage`: the
    ceil((n + 1) coverage)-th smallest (Angelopoulos, Bates 2023, 1.1). 1, the largest that there is,
    where there are too few examples to say."""
    rank = math.ceil((len(scores_N) + 1) * coverage - 1e-9)
    return 1.0 if rank > len(scores_N) else float(np.sort(scores_N)[rank - 1])


def fit_sigmoid(log_odds_N: np.ndarray, present_N: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the logistic curve of best likelihood (Platt 1999; with the slope alone it is
    the temperature of Guo et al., ICML 2017), under a standard normal prior around slope 1, offset 0:
    where the classes lie apart, likelihood alone would call everything certain. The slope is positive."""
    x_N2 = np.stack([np.asarray(log_odds_N, np.float64), np.ones(len(log_odds_N))], 1)
    start = np.array([1.0, 0.0])

    def loss(at_2: np.ndarray) -> float:
        z = x_N2 @ at_2
        return float(np.sum(np.logaddexp(0, z) - present_N * z) + ((at_2 - start) ** 2).sum() / 2)

    fitted_2 = start
    for _ in range(50):  # Newton's method on a strictly convex function
        p_N = 1 / (1 + np.exp(-(x_N2 @ fitted_2)))
        gradient = x_N2.T @ (p_N - present_N) + fitted_2 - start
        hessian = (x_N2 * (p_N * (1 - p_N))[:, None]).T @ x_N2 + np.eye(2)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while loss(fitted_2 - size * step) > loss(fitted_2) and size > 1e-6:
            size /= 2
        fitted_2 = fitted_2 - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    # below chance on these examples: calibration may flatten the model, not turn it round
    return max(float(fitted_2[0]), 1e-3), float(fitted_2[1])


def log_odds(probability: Any) -> Any:
    p = np.clip(np.asarray(probability, np.float64), NEAREST, 1 - NEAREST)
    return np.log(p) - np.log1p(-p)


def calibration_error(probability_N: np.ndarray, true_N: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: the mean over equal-width bins of |mean probability - share that is
    true|, each weighted by its examples (Guo et al., ICML 2017)."""
    p, true = np.asarray(probability_N, np.float64).ravel(), np.asarray(true_N, np.float64).ravel()
    if not p.size:
        return math.nan
    # the right edge belongs to a bin, as in torchmetrics
    which = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    gap = np.abs(np.bincount(which, p, bins) - np.bincount(which, true, bins))
    return float((gap[count > 0]).sum() / p.size)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How one answer fared on examples of known truth. Shares are NaN where there is no such example."""

    present: float
    """Of those who have the finding: their conformal set holds "present"."""
    absent: float
    """Of those who do not: it holds "absent"."""
    missed: float
    """Of those who have the finding: told that it is absent."""
    invented: float
    """Of those who do not: told that it is present."""
    unsaid: float
    """Of all: told neither."""


def coverage_of(answer: Answer, probability_N: np.ndarray, present_N: np.ndarray) -> Coverage:
    present_N = np.asarray(present_N, bool)
    sets = np.array([answer.conforms(float(p)) for p in probability_N]).reshape(-1, 2)
    said = np.array([answer.presence(float(p)) for p in probability_N])
    return Coverage(
        _share(sets[present_N, 0]),
        _share(sets[~present_N, 1]),
        _share(said[present_N] == Presence.ABSENT),
        _share(said[~present_N] == Presence.PRESENT),
        _share(said == Presence.CANNOT_SAY),
    )


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if flags.size else math.nan
