"""Stated probabilities and what was so -> reliability, calibration errors, and risk against coverage.

Knows nothing of texts. A probability is that the finding is present; whether it is, the reference says.
ECE with 15 bins of equal width (Naeini et al., AAAI 2015), risk and coverage as in El-Yaniv and Wiener,
J Mach Learn Res 2010;11:1605, E-AURC as in Geifman et al., ICLR 2019.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mla_med.errors import ReportError

# N statements, K bins
BINS = 15
COVERAGES = (0.5, 0.8, 0.95)
FEW = 30
"""Statements below which a finding's own calibration is not worth a number."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The statements whose probability lies in [low, high)."""

    low: float
    high: float
    count: int
    stated: float
    """Mean probability; NaN in an empty bin, as is the share below."""
    came_true: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far stated probabilities can be believed."""

    name: str
    count: int
    ece: float
    ece_equal_mass: float
    brier: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """The risk among the reports that are kept, as the surest are kept first."""

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    aurc: float
    e_aurc: float
    """What of it a perfect order would save."""
    risk_at: Mapping[float, float]


def reliability(name: str, probability_N: np.ndarray, is_so_N: np.ndarray, bins: int = BINS) -> Reliability:
    probability_N, is_so_N = np.asarray(probability_N, float), np.asarray(is_so_N, float)
    assert len(probability_N) == len(is_so_N)
    # as torchmetrics' BinaryCalibrationError: a bin holds its lower end, and 1.0 has its place in the last
    edges = np.linspace(0, 1, bins + 1)
    place_N = np.clip(np.searchsorted(edges, probability_N, side="right") - 1, 0, bins - 1)
    rows = [
        _bin(edges[k], edges[k + 1], probability_N[place_N == k], is_so_N[place_N == k]) for k in range(bins)
    ]
    masses = [_bin(0, 1, probability_N[part], is_so_N[part]) for part in _of_equal_mass(probability_N, bins)]
    return Reliability(
        name=name,
        count=len(probability_N),
        ece=_error(rows),
        ece_equal_mass=_error(masses),
        brier=float(np.mean((probability_N - is_so_N) ** 2)) if len(probability_N) else float("nan"),
        bins=tuple(rows),
    )


def _of_equal_mass(probability_N: np.ndarray, bins: int) -> list[np.ndarray]:
    """Which are in each bin, as many as in the others but for those that are equal, which are not parted."""
    _, value_N, count_V = np.unique(probability_N, return_inverse=True, return_counts=True)
    middle_V = np.cumsum(count_V) - (count_V + 1) / 2
    bin_V = np.floor(middle_V * bins / max(len(probability_N), 1)).astype(int)
    return [np.flatnonzero(bin_V[value_N] == k) for k in np.unique(bin_V)]


def reliabilities(
    confidences: Sequence[Mapping[str, float] | None], reference_RF: np.ndarray, codes: Sequence[str]
) -> tuple[Reliability, ...]:
    """All findings together, then each that enough statements were made of; reports without any count not."""
    rows = [
        (code, float(given[code]), reference_RF[report, column])
        for report, given in enumerate(confidences)
        if given
        for column, code in enumerate(codes)
        if code in given
    ]
    if not rows:
        return ()
    every = np.array([code for code, *_ in rows])
    stated, is_so = np.array([p for _, p, _ in rows]), np.array([so for *_, so in rows])
    made = [reliability("all findings", stated, is_so)]
    for code in codes:
        if (every == code).sum() >= FEW:
            made.append(reliability(code, stated[every == code], is_so[every == code]))
    return tuple(made)


def risk_coverage(confidence_N: np.ndarray, risk_N: np.ndarray) -> RiskCoverage:
    """Reports of one confidence are kept or left together."""
    confidence_N, risk_N = np.asarray(confidence_N, float), np.asarray(risk_N, float)
    order = np.argsort(-confidence_N, kind="stable")
    counts = np.arange(1, len(order) + 1)
    risk = np.cumsum(risk_N[order]) / counts
    sure = confidence_N[order]
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    # between two ends of equal confidences any order is as likely: the mean risk of a draw among them
    filled = risk[last[np.searchsorted(last, counts - 1)]]
    best = np.cumsum(np.sort(risk_N)) / counts
    coverage = counts[last] / len(order)
    return RiskCoverage(
        coverage=tuple(coverage.tolist()),
        risk=tuple(risk[last].tolist()),
        aurc=float(filled.mean()),
        e_aurc=float(filled.mean() - best.mean()),
        risk_at={c: float(risk[last][np.searchsorted(coverage, c - 1e-9)]) for c in COVERAGES},
    )


def confidences_of(meta: Mapping[str, object], id_: str) -> dict[str, float] | None:
    """Finding code -> probability that it is present, where the drafts state them ("confidences")."""
    given = meta.get("confidences")
    if given is None:
        return None
    if isinstance(given, str):
        given = _json_object(given, id_)
    if not isinstance(given, Mapping):
        raise ReportError(f"Draft {id_!r}: 'confidences' must be an object of probabilities by finding code.")
    for code, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ReportError(
                f"Draft {id_!r}: the confidence of {code} is {value!r}; it must be from 0 to 1."
            )
    return {str(code): float(value) for code, value in given.items()}


def _json_object(text: str, id_: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"Draft {id_!r}: 'confidences' is not JSON ({error.msg}).") from error


def sureness_of(meta: Mapping[str, object], given: Mapping[str, float] | None) -> float | None:
    """As the draft states it for the whole report ("confidence"), or the mean of its findings'."""
    whole = meta.get("confidence")
    if isinstance(whole, int | float) and not isinstance(whole, bool):
        return float(whole)
    return _sureness(given) if given else None


def _sureness(given: Mapping[str, float]) -> float:
    """Of a whole report: the mean probability of the likelier answer."""
    values = np.array(list(given.values()), float)
    return float(np.maximum(values, 1 - values).mean())


def _bin(low: float, high: float, stated: np.ndarray, is_so: np.ndarray) -> Bin:
    some = len(stated) > 0
    nan = float("nan")
    return Bin(
        float(low),
        float(high),
        len(stated),
        float(stated.mean()) if some else nan,
        float(is_so.mean()) if some else nan,
    )


def _error(bins: Sequence[Bin]) -> float:
    total = sum(b.count for b in bins)
    return (
        sum(b.count * abs(b.stated - b.came_true) for b in bins if b.count) / total if total else float("nan")
    )
