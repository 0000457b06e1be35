"""Findings of references and drafts -> precision, recall, F1, and the faults BLEU does not see.

A finding is positive in a report when the report states it as present. Knows no text: whoever
calls has parsed it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from evaluation.score import Unit
from evaluation.statistics import Measure, Statistic, median, ratio
from mla_med.types import Finding, Presence, Side

# B resamples, R reports, F finding codes, P matched pairs of findings
Findings = tuple[Finding, ...]
Parse = Callable[[str], Findings]
_ONE_SIDE = (Side.RIGHT, Side.LEFT)


@dataclass(frozen=True, slots=True)
class FindingCounts:
    """What the bootstrap needs of each report."""

    codes: tuple[str, ...]
    reference_RF: np.ndarray
    """1 where the reference states the finding as present; the same for the draft below."""
    draft_RF: np.ndarray
    refuted_RF: np.ndarray
    """1 where the draft states as present what the reference states as absent."""
    sides_R2: np.ndarray
    """Matched findings with one side in the reference: how many agree, how many there are."""
    sites_R2: np.ndarray
    exact_R2: np.ndarray
    """Same findings in every respect; reports whose reference states any."""
    size_error_P: np.ndarray
    """In mm."""
    size_report_P: np.ndarray


def count_findings(
    references: Sequence[Findings], drafts: Sequence[Findings], codes: Sequence[str]
) -> FindingCounts:
    assert len(references) == len(drafts)
    pairs = [match_findings(r, d) for r, d in zip(references, drafts, strict=True)]
    errors = [(error, k) for k, matched in enumerate(pairs) for error in _size_errors(matched)]
    reference_RF, draft_RF = _stated(references, codes), _stated(drafts, codes)
    return FindingCounts(
        codes=tuple(codes),
        reference_RF=reference_RF,
        draft_RF=draft_RF,
        refuted_RF=draft_RF * _stated(references, codes, Presence.ABSENT) * (1 - reference_RF),
        sides_R2=_agreement([[(r.side, d.side) for r, d in p if r.side in _ONE_SIDE] for p in pairs]),
        sites_R2=_agreement([[(r.site, d.site) for r, d in p if r.site] for p in pairs]),
        exact_R2=_agreement(
            [[(frozenset(r), frozenset(d))] if r else [] for r, d in zip(references, drafts, strict=True)]
        ),
        size_error_P=np.array([error for error, _ in errors], dtype=np.float64),
        size_report_P=np.array([k for _, k in errors], dtype=np.intp),
    )


def match_findings(reference: Findings, draft: Findings) -> list[tuple[Finding, Finding]]:
    """Present findings of one code, paired so that they differ least."""
    pairs = []
    for code in dict.fromkeys(f.code for f in reference):
        ours, theirs = _present(reference, code), _present(draft, code)
        distances = np.array([[_distance(r, d) for d in theirs] for r in ours])
        if distances.size:
            pairs += [(ours[i], theirs[j]) for i, j in zip(*linear_sum_assignment(distances), strict=True)]
    return pairs


def finding_measures(counts: FindingCounts) -> list[Measure]:
    matched_RF = counts.reference_RF * counts.draft_RF
    micro = [part.sum(axis=1) for part in (matched_RF, counts.draft_RF, counts.reference_RF)]
    invented_R = micro[1] - micro[0]
    codes = f"present|codes:{len(counts.codes)}"
    supported = counts.reference_RF.any(axis=0)
    macro = [part[:, supported] for part in (matched_RF, counts.draft_RF, counts.reference_RF)]
    macro_codes = f"present|codes:{supported.sum()} in references"
    sides, sites, exact = counts.sides_R2, counts.sites_R2, counts.exact_R2
    return [
        Measure("F1 micro", _over_counts(f1, *micro), codes),
        Measure("F1 macro", _macro(f1, *macro), macro_codes),
        Measure("precision micro", _over_counts(precision, *micro), codes),
        Measure("precision macro", _macro(precision, *macro), macro_codes),
        Measure("recall micro", _over_counts(recall, *micro), codes),
        Measure("recall macro", _macro(recall, *macro), macro_codes),
        Measure("side accuracy", _share(sides[:, 0], sides[:, 1]), _of_pairs(sides)),
        Measure("site accuracy", _share(sites[:, 0], sites[:, 1]), _of_pairs(sites)),
        Measure(
            "size error",
            lambda counts_BR: median(counts.size_error_P, counts.size_report_P, counts_BR),
            f"median absolute|pairs:{counts.size_error_P.size}",
            Unit.MM,
            higher_is_better=False,
        ),
        Measure("hallucination", _share(invented_R, micro[1]), f"{codes}|of drafted", higher_is_better=False),
        Measure(
            "contradiction",
            _share(counts.refuted_RF.sum(axis=1), micro[1]),
            f"reference says absent|codes:{len(counts.codes)}|of drafted",
            higher_is_better=False,
        ),
        Measure(
            "omission",
            _share(micro[2] - micro[0], micro[2]),
            f"{codes}|of referenced",
            higher_is_better=False,
        ),
        Measure(
            "exact match",
            _share(exact[:, 0], exact[:, 1]),
            f"all findings, presence, site, side, size|reports:{exact[:, 1].sum():.0f}",
        ),
    ]


def code_measures(counts: FindingCounts, code: str) -> list[Measure]:
    """Precision, recall and F1 of one finding."""
    column = counts.codes.index(code)
    draft_R, reference_R = counts.draft_RF[:, column], counts.reference_RF[:, column]
    parts = (draft_R * reference_R, draft_R, reference_R)
    made = f"present|code:{code}"
    return [
        Measure(f"{name} {code}", _over_counts(rate, *parts), made)
        for name, rate in (("precision", precision), ("recall", recall), ("F1", f1))
    ]


# matched, drafted, referenced: 0 where only one side states the finding, NaN where neither does
def precision(matched: np.ndarray, drafted: np.ndarray, referenced: np.ndarray) -> np.ndarray:
    return np.where(drafted + referenced > 0, matched / np.maximum(drafted, 1), np.nan)


def recall(matched: np.ndarray, drafted: np.ndarray, referenced: np.ndarray) -> np.ndarray:
    return np.where(drafted + referenced > 0, matched / np.maximum(referenced, 1), np.nan)


def f1(matched: np.ndarray, drafted: np.ndarray, referenced: np.ndarray) -> np.ndarray:
    return ratio(2 * matched, drafted + referenced)


def _present(findings: Findings, code: str) -> list[Finding]:
    return [f for f in findings if f.code == code and f.presence is Presence.PRESENT]


def _distance(reference: Finding, draft: Finding) -> float:
    # Site and size say which lesion is meant, side only breaks ties: were side first, a report with
    # left and right swapped would be matched crosswise and look right.
    return (
        20 * (reference.site != draft.site)
        + 10 * _size_difference(reference.size_mm, draft.size_mm)
        + (reference.side != draft.side)
    )


def _size_difference(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return float(a is not b)
    return abs(a - b) / max(a, b, 1e-9)


def _size_errors(matched: Sequence[tuple[Finding, Finding]]) -> list[float]:
    sizes = [(r.size_mm, d.size_mm) for r, d in matched]
    return [abs(a - b) for a, b in sizes if a is not None and b is not None]


def _stated(
    reports: Sequence[Findings], codes: Sequence[str], presence: Presence = Presence.PRESENT
) -> np.ndarray:
    stated = [{f.code for f in findings if f.presence is presence} for findings in reports]
    return np.array([[code in found for code in codes] for found in stated], dtype=np.float64)


def _agreement(pairs_R: Sequence[Sequence[tuple]]) -> np.ndarray:
    return np.array([[sum(a == b for a, b in pairs), len(pairs)] for pairs in pairs_R], dtype=np.float64)


def _of_pairs(agreement_R2: np.ndarray) -> str:
    return f"matched findings|pairs:{agreement_R2[:, 1].sum():.0f}"


def _share(part_R: np.ndarray, whole_R: np.ndarray) -> Statistic:
    return lambda counts_BR: ratio(counts_BR @ part_R, counts_BR @ whole_R)


def _over_counts(rate: Callable[..., np.ndarray], *parts: np.ndarray) -> Statistic:
    return lambda counts_BR: rate(*(counts_BR @ part for part in parts))


def _macro(rate: Callable[..., np.ndarray], *parts_RF: np.ndarray) -> Statistic:
    def mean_over_codes(counts_BR: np.ndarray) -> np.ndarray:
        rates_BF = rate(*(counts_BR @ part for part in parts_RF))
        defined_BF = np.isfinite(rates_BF)
        return ratio(np.where(defined_BF, rates_BF, 0).sum(axis=1), defined_BF.sum(axis=1))

    return mean_over_codes
