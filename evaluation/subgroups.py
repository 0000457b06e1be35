"""What is known of each case -> the same scores in each group beside all others, the gap with interval and p.

A gap is tested by permuting the groups among patients; p is (c + 1) / (N + 1), never 0 (Phipson and
Smyth, Stat Appl Genet Mol Biol 2010;9:39), and adjusted over all groups by Benjamini and Hochberg. Groups
of fewer than 30 cases get no score. Knows no texts: only statistics of how often a case counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.score import Interval
from evaluation.statistics import Estimate, Measure, Resamples, benjamini_hochberg

# B resamples, R reports
FEWEST = 30
PERMUTATIONS = 1000
SEED = 11
FIELDS = ("sex", "age", "maker", "kernel", "slice_mm", "contrast", "site", "prior")
_AGES = ((18, "under 18"), (40, "18 to 39"), (65, "40 to 64"), (80, "65 to 79"), (math.inf, "80 or older"))
_SLICES = ((1.26, "up to 1.25 mm"), (2.51, "over 1.25 to 2.5 mm"), (math.inf, "over 2.5 mm"))
_YES = {"true": "yes", "1": "yes", "yes": "yes", "false": "no", "0": "no", "no": "no", "": "no"}


@dataclass(frozen=True, slots=True)
class SubgroupRow:
    """One score in one group. NaN where the group is too small."""

    field: str
    group: str
    num: int
    score: str
    value: float
    ci95: Interval
    gap: float
    """Better than all other cases by so much; negative is worse, whichever way the score points."""
    gap_ci95: Interval
    p: float
    p_adjusted: float

    @property
    def is_worse(self) -> bool:
        return self.gap < 0 and self.p_adjusted < 0.05


def subgroup_rows(
    measures: Sequence[Measure],
    meta: Sequence[Mapping[str, object]],
    drawn: Resamples,
    patients: Sequence[str],
    permutations: int = PERMUTATIONS,
) -> tuple[SubgroupRow, ...]:
    rows: list[SubgroupRow] = []
    for name in FIELDS:
        groups = np.array([group_of(name, row.get(name)) or "" for row in meta])
        named = sorted(set(groups) - {""})
        if len(named) < 2:
            continue
        known_R = groups != ""
        for group in named:
            inside_R = groups == group
            rows += [
                _row(name, group, measure, inside_R, known_R & ~inside_R, drawn, patients, permutations)
                for measure in measures
            ]
    return _adjusted(rows)


def group_of(name: str, value: object) -> str | None:
    """None: not known."""
    if value is None or (value == "" and name != "prior"):
        return None
    if name == "prior":
        words = str(value).strip().lower()
        return _YES.get(words, "yes")  # the prior itself, or its date, is a prior
    if name in ("age", "slice_mm"):
        number = _number(value)
        bands = _AGES if name == "age" else _SLICES
        return None if number is None else next(words for end, words in bands if number < end)
    return str(value).strip() or None


def _number(value: object) -> float | None:
    """ "064Y" of DICOM (PS3.5 section 6.2, AS) and "64" are 64; months and weeks are under a year."""
    text = str(value).strip().upper()
    unit = text[-1:] if text[-1:] in "YMWD" else "Y"
    try:
        number = float(text.rstrip("YMWD"))
    except ValueError:
        return None
    if not math.isfinite(number) or number < 0:
        return None
    return number if unit == "Y" else 0.0


def _row(
    name: str,
    group: str,
    measure: Measure,
    inside_R: np.ndarray,
    others_R: np.ndarray,
    drawn: Resamples,
    patients: Sequence[str],
    permutations: int,
) -> SubgroupRow:
    num = int(inside_R.sum())
    nan = float("nan")
    row = SubgroupRow(name, group, num, measure.name, nan, (nan, nan), nan, (nan, nan), nan, nan)
    if num < FEWEST or others_R.sum() < FEWEST:
        return row
    sign = 1 if measure.higher_is_better else -1

    def statistic(mask_BR: np.ndarray) -> np.ndarray:
        return measure.statistic(mask_BR.astype(np.float64))

    value, rest = (float(statistic(mask[None, :])[0]) for mask in (inside_R, others_R))
    ours_B, theirs_B = (statistic(drawn.counts_BR * mask) for mask in (inside_R, others_R))
    gap = sign * (value - rest)
    p = _permuted_p(measure, inside_R, others_R, gap, sign, patients, permutations)
    return replace(
        row,
        value=value,
        ci95=Estimate(value, ours_B).ci95,
        gap=gap,
        gap_ci95=Estimate(gap, sign * (ours_B - theirs_B)).ci95,
        p=p,
    )


def _permuted_p(
    measure: Measure,
    inside_R: np.ndarray,
    others_R: np.ndarray,
    gap: float,
    sign: int,
    patients: Sequence[str],
    permutations: int,
) -> float:
    if math.isnan(gap):
        return float("nan")
    known = np.flatnonzero(inside_R | others_R)
    _, patient_K = np.unique(np.asarray(patients, dtype=object)[known].astype(str), return_inverse=True)
    label_K, rng = inside_R[known], np.random.default_rng(SEED)
    first = np.unique(patient_K, return_index=True)[1]
    together, label_G = np.argsort(patient_K, kind="stable"), label_K[first]
    is_of_patient = bool((label_K == label_G[patient_K]).all())
    masks_BR = np.zeros((permutations, len(inside_R)))
    for mask_R in masks_BR:
        if is_of_patient:
            mask_R[known] = rng.permutation(label_G)[patient_K]
        else:  # a kernel, of which each patient has several: exchanged among her own cases
            mask_R[known[together]] = label_K[np.lexsort((rng.random(len(known)), patient_K))]
    rest_BR = np.zeros_like(masks_BR)
    rest_BR[:, known] = 1 - masks_BR[:, known]
    gaps_B = sign * (measure.statistic(masks_BR) - measure.statistic(rest_BR))
    as_large = np.abs(gaps_B[np.isfinite(gaps_B)]) >= abs(gap) - 1e-12
    return float((as_large.sum() + 1) / (len(as_large) + 1))


def _adjusted(rows: Sequence[SubgroupRow]) -> tuple[SubgroupRow, ...]:
    tested = [k for k, row in enumerate(rows) if not math.isnan(row.p)]
    adjusted = (
        dict(zip(tested, benjamini_hochberg([rows[k].p for k in tested]), strict=True)) if tested else {}
    )
    return tuple(replace(row, p_adjusted=float(adjusted.get(k, row.p))) for k, row in enumerate(rows))
