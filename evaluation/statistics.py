"""How sure a score is, and whether two systems differ: bootstrap by report or patient, randomisation.

A statistic is a function of how often each report is counted, so a resample costs one product of
matrices and every score of every system sees the same resamples: differences are paired. Intervals are
percentiles; below 50 groups bias-corrected and accelerated ones (BCa: Efron, Better bootstrap confidence
intervals, JASA 82, 1987). Knows nothing of what is scored. Holds B x R counts: 160 MB for 2,000 resamples
of 10,000 reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr, ndtri

from evaluation.score import Gap, Interval, Score, Unit

# B resamples or trials, R reports, G groups (patients, or reports), T sums that a score is made of, H tests
RESAMPLES = 2000
TRIALS = 10_000
SEED = 20261123
FEW_GROUPS = 50
"""Below it, a percentile interval is too narrow and off the centre."""
Statistic = Callable[[np.ndarray], np.ndarray]
"""counts_BR -> values_B; NaN where nothing can be measured."""
ValueOf = Callable[[np.ndarray], np.ndarray]
"""sums_BT -> values_B."""
_PERCENTILES = (2.5, 97.5)
_AT_ONCE = 1 << 22
"""Signs of trials that are held at a time."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What each report adds, and the value that the sums have: all that a resample or a swap has to know."""

    each_RT: np.ndarray
    value_of: ValueOf

    def statistic(self, counts_BR: np.ndarray) -> np.ndarray:
        return self.value_of(counts_BR @ self.each_RT)


@dataclass(frozen=True, slots=True)
class Measure:
    """A statistic with what a table must say of it."""

    name: str
    statistic: Statistic
    signature: str
    unit: Unit = Unit.RATE
    higher_is_better: bool = True
    sums: Sums | None = None
    """Of which the statistic is made; None where it is not, and two systems cannot be compared by it."""
    has_interval: bool = True
    """False where resampling itself moves the value, as that of a mean of absolute values, which noise
    raises."""

    @classmethod
    def of(
        cls, name: str, sums: Sums, signature: str, unit: Unit = Unit.RATE, higher_is_better: bool = True
    ) -> Measure:
        return cls(name, sums.statistic, signature, unit, higher_is_better, sums)


@dataclass(frozen=True, slots=True)
class Resamples:
    """How often each report is counted in each resample."""

    counts_BR: np.ndarray
    seed: int
    by: str
    group_R: np.ndarray
    """Number of the group that each report belongs to."""

    @property
    def num_groups(self) -> int:
        return int(self.group_R.max(initial=-1)) + 1

    @property
    def num_reports(self) -> int:
        return self.counts_BR.shape[1]

    @property
    def signature(self) -> str:
        kind = "bca" if self.num_groups < FEW_GROUPS else "percentile"
        return f"ci:{kind}|B:{len(self.counts_BR)}|seed:{self.seed}|by:{self.by}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its resampled values."""

    value: float
    draws_B: np.ndarray
    percentiles: tuple[float, float] = _PERCENTILES
    """Of the draws, that bound the interval."""

    @property
    def ci95(self) -> Interval:
        finite = self.draws_B[np.isfinite(self.draws_B)]
        if not finite.size or np.isnan(self.value):
            return (float("nan"), float("nan"))
        low, high = np.percentile(finite, self.percentiles)
        return (float(low), float(high))


def draw_resamples(groups: Sequence[str], by: str, resamples: int = RESAMPLES, seed: int = SEED) -> Resamples:
    """One group per report; whole groups are drawn, with replacement."""
    names, group_R = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    chances = np.full(len(names), 1 / len(names))
    counts_BG = np.random.default_rng(seed).multinomial(len(names), chances, size=resamples)
    return Resamples(counts_BG[:, group_R].astype(np.float64), seed, by, group_R)


def estimate(statistic: Statistic, resamples: Resamples) -> Estimate:
    once_1R = np.ones((1, resamples.num_reports))
    value = float(statistic(once_1R)[0])
    if resamples.num_groups < 2:  # every resample is the sample: an interval of width 0 would be a lie
        return Estimate(value, np.full(1, np.nan))
    draws_B = statistic(resamples.counts_BR)
    if resamples.num_groups < FEW_GROUPS:
        return Estimate(value, draws_B, _bca_percentiles(statistic, value, draws_B, resamples.group_R))
    return Estimate(value, draws_B)


def bootstrap_ci(statistic: Statistic, resamples: Resamples) -> Interval:
    """95 %, between percentiles of the resampled values, however few groups there are."""
    return replace(estimate(statistic, resamples), percentiles=_PERCENTILES).ci95


def bca_ci(statistic: Statistic, resamples: Resamples) -> Interval:
    """95 %, bias-corrected and accelerated, however many groups there are."""
    measured = estimate(statistic, resamples)
    if resamples.num_groups < 2:
        return measured.ci95
    percentiles = _bca_percentiles(statistic, measured.value, measured.draws_B, resamples.group_R)
    return replace(measured, percentiles=percentiles).ci95


def _bca_percentiles(
    statistic: Statistic, value: float, draws_B: np.ndarray, group_R: np.ndarray
) -> tuple[float, float]:
    """The acceleration is that of leaving out one group at a time."""
    finite = draws_B[np.isfinite(draws_B)]
    # equal sums, added in another order, may differ in the last digits
    is_equal = np.abs(finite - value) <= 1e-12 * max(1.0, abs(value))
    below = (np.sum((finite < value) & ~is_equal) + np.sum(is_equal) / 2) / max(finite.size, 1)
    if not 0 < below < 1:  # all on one side, or nothing to draw from: no correction is defined
        return _PERCENTILES
    without_GR = np.stack([group_R != group for group in range(int(group_R.max()) + 1)]).astype(np.float64)
    left_G = statistic(without_GR)
    left_G = left_G[np.isfinite(left_G)]
    apart_G = left_G.mean() - left_G if left_G.size else np.zeros(1)
    spread = float((apart_G**2).sum())
    acceleration = float((apart_G**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    bias, (low, high) = float(ndtri(below)), (float(ndtri(p / 100)) for p in _PERCENTILES)

    def corrected(z: float) -> float:
        return 100 * float(ndtr(bias + (bias + z) / (1 - acceleration * (bias + z))))

    return corrected(low), corrected(high)


def paired_randomisation(
    first_RT: np.ndarray,
    second_RT: np.ndarray,
    value_of: ValueOf,
    groups: Sequence[str] | None = None,
    trials: int = TRIALS,
    seed: int = SEED,
) -> tuple[float, float]:
    """(p, the smallest p that any difference could have here), two-sided, of the difference of two systems
    on the same reports, given as what each report adds to their sums. Which of the two drafts of a report
    (of all reports of a group) is whose is drawn anew: p = (c + 1) / (trials + 1), never 0 (Phipson and
    Smyth, 2010). With few groups all 2^G ways are tried instead, and p is exact: at least 2 / 2^G. A trial
    in which one side has no value counts for nothing."""
    first_GT, second_GT = (_by_group(sums, groups) for sums in (first_RT, second_RT))
    apart_GT, num_groups = second_GT - first_GT, len(first_GT)
    first_T, second_T = first_GT.sum(axis=0), second_GT.sum(axis=0)
    observed = _gap(first_T[None], second_T[None], value_of)[0]
    if np.isnan(observed):
        return float("nan"), float("nan")
    is_exact = num_groups < 60 and 1 << num_groups <= trials
    ways = 1 << num_groups if is_exact else trials
    rng, as_large, valid = np.random.default_rng(seed), 0, 0
    step = max(1, _AT_ONCE // num_groups)
    for begin in range(0, ways, step):
        size = min(step, ways - begin)
        swapped_BT = _swaps(begin, size, num_groups, rng if not is_exact else None) @ apart_GT
        gaps = _gap(first_T + swapped_BT, second_T - swapped_BT, value_of)
        # equal sums, added in another order, may differ in the last digits
        as_large += int(np.sum(gaps >= observed - 1e-12))
        valid += int(np.sum(np.isfinite(gaps)))
    if is_exact:
        return as_large / valid, 2 / ways
    return (as_large + 1) / (valid + 1), max(1 / (trials + 1), 2.0 ** (1 - min(num_groups, 1000)))


def _by_group(sums_RT: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    if groups is None:
        return sums_RT
    names, group_R = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sums_GT = np.zeros((len(names), sums_RT.shape[1]))
    np.add.at(sums_GT, group_R, sums_RT)
    return sums_GT


def _gap(first_BT: np.ndarray, second_BT: np.ndarray, value_of: ValueOf) -> np.ndarray:
    return np.abs(value_of(second_BT) - value_of(first_BT))


def _swaps(begin: int, size: int, num_groups: int, rng: np.random.Generator | None) -> np.ndarray:
    """1 where the two drafts of a group change places; without a generator, the ways in order."""
    if rng is None:
        return (np.arange(begin, begin + size)[:, None] >> np.arange(num_groups) & 1).astype(np.float64)
    bits = np.frombuffer(rng.bytes((size * num_groups + 7) // 8), dtype=np.uint8)
    return np.unpackbits(bits, count=size * num_groups).reshape(size, num_groups).astype(np.float64)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted for how many there are, so that one of them below 0.05 is chance in 5 % of families at most
    (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(ps, kind="stable")
    raised_H = np.asarray(ps, float)[order] * np.arange(len(ps), 0, -1)
    return _in_place(np.minimum(np.maximum.accumulate(raised_H), 1), order)


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """Adjusted so that of those below 0.05, 5 % are expected to be chance (Benjamini and Hochberg, Journal of
    the Royal Statistical Society B 57, 1995)."""
    order = np.argsort(ps, kind="stable")
    raised_H = np.asarray(ps, float)[order] * len(ps) / np.arange(1, len(ps) + 1)
    return _in_place(np.minimum(np.minimum.accumulate(raised_H[::-1])[::-1], 1), order)


def _in_place(sorted_H: np.ndarray, order: np.ndarray) -> list[float]:
    adjusted_H = np.empty(len(order))
    adjusted_H[order] = sorted_H
    return [float(p) for p in adjusted_H]


def to_score(measure: Measure, measured: Estimate, made: str, resamples: Resamples) -> Score:
    """`made`: what the whole run shares, after what is the measure's own."""
    signature = f"{measure.signature}|{made}|{resamples.signature}"
    return Score(measure.name, measured.value, measured.ci95, signature, resamples.num_reports)


def difference(
    first: Statistic, second: Statistic, of_first: Estimate, of_second: Estimate, resamples: Resamples
) -> Estimate:
    """The second less the first, by the same resamples; of few groups its interval is corrected, too."""
    value, draws_B = of_second.value - of_first.value, of_second.draws_B - of_first.draws_B
    if not 2 <= resamples.num_groups < FEW_GROUPS:
        return Estimate(value, draws_B)

    def apart(counts_BR: np.ndarray) -> np.ndarray:
        return second(counts_BR) - first(counts_BR)

    return Estimate(value, draws_B, _bca_percentiles(apart, value, draws_B, resamples.group_R))


def to_gap(apart: Estimate, higher_is_better: bool) -> Gap | None:
    """Positive where it is better; None where there is no value."""
    if np.isnan(apart.value):
        return None
    low, high = apart.ci95
    return Gap(apart.value, (low, high)) if higher_is_better else Gap(-apart.value, (-high, -low))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def share(part_R: np.ndarray, whole_R: np.ndarray) -> Sums:
    """The sum of the parts over that of the wholes."""
    return Sums(np.stack([part_R, whole_R], axis=1).astype(np.float64), share_of)


def mean(values_R: np.ndarray) -> Sums:
    return share(values_R, np.ones(len(values_R)))


def share_of(sums_BT: np.ndarray) -> np.ndarray:
    return ratio(sums_BT[:, 0], sums_BT[:, 1])


def median(values_P: np.ndarray, report_P: np.ndarray, counts_BR: np.ndarray) -> np.ndarray:
    """The median over values that belong to reports, each counted as often as its report."""
    if not values_P.size:
        return np.full(len(counts_BR), np.nan)
    order = np.argsort(values_P, kind="stable")
    values, cumulated_BP = values_P[order], np.cumsum(counts_BR[:, report_P[order]], axis=1)
    half_B1 = cumulated_BP[:, -1:] / 2
    low = values[np.argmax(cumulated_BP >= half_B1, axis=1)]
    # past the end only where nothing was counted
    high = values[np.minimum((cumulated_BP <= half_B1).sum(axis=1), len(values) - 1)]
    return np.where(half_B1[:, 0] > 0, (low + high) / 2, np.nan)
