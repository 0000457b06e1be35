"""Probabilities beside the truth -> does the model know what it does not know? Calibration, coverage and risk
against coverage.

The expected calibration error before and after calibration; how often the conformal sets hold the truth,
among those who have a finding and those who do not, beside the coverage that was stated; how often the draft
says the opposite, and how often that it cannot say; and the curve of selective prediction: the share of wrong
answers among those that are given, as the surest are given first (El-Yaniv, Wiener, J Mach Learn Res
2010;11:1605).
Measured on the phantoms of a corpus by `evaluation/phantoms.py`. Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.calibration import risk_coverage as of_risks
from mla_med.model.calibrate import Calibration
from mla_med.model.conformal import Coverage, calibration_error, coverage_of

# N examples, F findings


@dataclass(frozen=True, slots=True)
class Row:
    """One finding."""

    code: str
    num_present: int
    num_absent: int
    error_before: float
    error_after: float
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class Curve:
    """Selective prediction, the surest answers first."""

    coverage: tuple[float, ...]
    risk: tuple[float, ...]

    @property
    def area(self) -> float:
        """Mean risk over all coverages (AURC); 0 is the best. A risk that answers of one confidence share
        counts as often as they are many."""
        return float(np.dot(self.risk, np.diff(self.coverage, prepend=0.0)))

    def risk_at(self, coverage: float) -> float:
        place = int(np.searchsorted(self.coverage, coverage - 1e-9))
        return self.risk[min(place, len(self.risk) - 1)]


def risk_coverage(confidence_N: np.ndarray, right_N: np.ndarray) -> Curve:
    """Confidence of each answer and whether it is right -> the curve. Equal confidences enter together."""
    curve = of_risks(confidence_N, 1 - np.asarray(right_N, float))
    return Curve(curve.coverage, curve.risk)


def rows_of(
    calibration: Calibration, codes: Sequence[str], probability_NF: np.ndarray, present_NF: np.ndarray
) -> list[Row]:
    rows = []
    for f, code in enumerate(codes):
        p, present, answer = probability_NF[:, f], present_NF[:, f].astype(bool), calibration.answers[code]
        calibrated = np.array([answer.calibrated(float(x)) for x in p])
        rows.append(
            Row(
                code,
                int(present.sum()),
                int((~present).sum()),
                calibration_error(p, present),
                calibration_error(calibrated, present),
                coverage_of(answer, p, present),
            )
        )
    return rows


def curves_of(
    calibration: Calibration, codes: Sequence[str], probability_NF: np.ndarray, present_NF: np.ndarray
) -> dict[str, Curve]:
    """All findings together by their calibrated confidence, and as a floor in random order."""
    confidence, right = [], []
    for f, code in enumerate(codes):
        answer = calibration.answers[code]
        for p, present in zip(probability_NF[:, f], present_NF[:, f], strict=True):
            sure, likelier = answer.calibrated(float(p)), float(p) >= answer.cut
            confidence.append(sure if likelier else 1 - sure)
            right.append(likelier == bool(present))
    shuffled = np.random.default_rng(0).random(len(right))
    return {
        "by calibrated confidence": risk_coverage(np.array(confidence), np.array(right)),
        "in random order": risk_coverage(shuffled, np.array(right)),
    }


def reliability_of(
    probability_N: np.ndarray, true_N: np.ndarray, bins: int = 15
) -> list[tuple[float, float, int]]:
    """Of each bin of equal width: mean probability, share that is so, and how many; NaN where none is."""
    p, true = np.asarray(probability_N, float).ravel(), np.asarray(true_N, float).ravel()
    which = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    filled = np.where(count, count, np.nan)
    stated, so = (np.bincount(which, values, bins) / filled for values in (p, true))
    return list(zip(stated.tolist(), so.tolist(), count.tolist(), strict=True))


def table(rows: Sequence[Row], stated: float) -> str:
    lines = [
        f"Coverage stated: {stated:.2f} in each class.",
        "",
        "| finding | with | without | ECE before | after | sets hold present | hold absent | told absent, "
        "though present | told present, though absent | cannot say |",
        "|" + "---|" * 10,
    ]
    for row in rows:
        c = row.coverage
        lines.append(
            f"| {row.code} | {row.num_present} | {row.num_absent} | {row.error_before:.3f} "
            f"| {row.error_after:.3f} | {c.present:.3f} | {c.absent:.3f} | {c.missed:.3f} "
            f"| {c.invented:.3f} | {c.unsaid:.3f} |"
        )
    have = np.array([row.num_present for row in rows])
    lack = np.array([row.num_absent for row in rows])
    pick = {name: np.array([getattr(r.coverage, name) for r in rows]) for name in Coverage.__slots__}
    before, after = (np.mean([getattr(r, n) for r in rows]) for n in ("error_before", "error_after"))
    lines.append(
        f"| all | {have.sum()} | {lack.sum()} | {before:.3f} | {after:.3f} "
        f"| {_weighted(pick['present'], have):.3f} | {_weighted(pick['absent'], lack):.3f} "
        f"| {_weighted(pick['missed'], have):.3f} | {_weighted(pick['invented'], lack):.3f} "
        f"| {np.mean(pick['unsaid']):.3f} |"
    )
    return "\n".join(lines)


def _weighted(shares: np.ndarray, counts: np.ndarray) -> float:
    known = counts > 0
    return float((shares[known] * counts[known]).sum() / max(counts.sum(), 1))
