"""Texts -> findings; findings of references and drafts -> P, R, F1, and the faults BLEU does not see.

A finding is positive in a report when the report states it as present. Chest CT is read by the project's
extractor, whoever wrote the text; brain MR and abdomen CT by the phrases of the packaged styles alone, so
free text of these two is mostly not read, and a run says how much was. Knows no files and no page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from evaluation.score import Unit
from evaluation.statistics import Estimate, Measure, Statistic, median, ratio
from mla_med.report.extract import extract
from mla_med.report.parse import parse_impression, parse_sentence
from mla_med.report.schema import schema_of
from mla_med.report.style import Style, load_style, packaged_styles
from mla_med.types import Finding, Presence, Side

# B resamples, R reports, F finding codes, P matched pairs of findings, S = 4 statuses
Findings = tuple[Finding, ...]
Parse = Callable[[str], Findings]
STATUSES = ("not mentioned", Presence.PRESENT, Presence.ABSENT, Presence.CANNOT_SAY)
SIZE_SHARE, SIZE_MM = 0.1, 2.0
"""Two sizes agree within the larger of these: two readers differ by as much."""
EXTRACTED = "chest_ct"
"""The examination whose words the extractor knows."""
_ONE_SIDE = (Side.RIGHT, Side.LEFT)
_SENTENCE = re.compile(r"[^\n。！？]+?(?:[.!?](?=\s|$)|[。！？]|(?=\n)|$)")


@dataclass(frozen=True, slots=True)
class Mark:
    """Characters [start, end) of a text that state a finding."""

    code: str
    presence: Presence
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text states, and where."""

    findings: Findings
    marks: tuple[Mark, ...] = ()


Reader = Callable[[str], Reading]


def reader_of(examination: str = EXTRACTED, language: str = "en") -> Reader:
    """Raises ReportError where the examination or the language is unknown."""
    schema_of(examination)
    if examination == EXTRACTED:
        extract("", language)
        return lambda text: read_extracted(text, language)
    styles = [load_style(name, language) for name in packaged_styles(language)]
    styles = [style for style in styles if examination in style.examinations]
    return lambda text: read_styled(text, styles, examination)


def read_extracted(text: str, language: str = "en") -> Reading:
    mentions = extract(text, language)
    stated = (Finding(m.code, m.presence, m.site, m.side, m.size_mm, m.count, m.change) for m in mentions)
    return Reading(merge(stated), tuple(Mark(m.code, m.presence, m.start, m.end) for m in mentions))


def read_styled(text: str, styles: Sequence[Style], examination: str) -> Reading:
    """By the first style that has a sentence's words."""
    found: list[Finding] = []
    marks: list[Mark] = []
    for match in _SENTENCE.finditer(text):
        for finding in _read_sentence(match[0], styles, examination):
            found.append(finding)
            marks.append(Mark(finding.code, finding.presence, *match.span()))
    return Reading(merge(found), tuple(marks))


def merge(stated: Iterable[Finding]) -> Findings:
    """One finding for each thing meant: a report names it in the findings and again in the impression,
    and what it states as present in one place it does not deny in another."""
    by_code: dict[str, list[Finding]] = {}
    for finding in stated:
        by_code.setdefault(finding.code, []).append(finding)
    merged: list[Finding] = []
    for code, same in by_code.items():
        present = [f for f in same if f.presence is Presence.PRESENT]
        if present:
            merged += _merge_present(present)
            continue
        unsure = any(f.presence is Presence.CANNOT_SAY for f in same)
        merged.append(Finding(code, Presence.CANNOT_SAY if unsure else Presence.ABSENT))
    return tuple(merged)


def _merge_present(present: Sequence[Finding]) -> list[Finding]:
    kept: list[Finding] = []
    # the fuller statement first, so that the bare repetition joins it; the order of the text plays no part
    for finding in sorted(present, key=lambda f: (-_fullness(f), str(f.site), str(f.side), f.size_mm or 0)):
        for k, other in enumerate(kept):
            if _joins(finding, other):
                kept[k] = _join(other, finding)
                break
        else:
            kept.append(finding)
    return kept


def _fullness(finding: Finding) -> int:
    return sum(part is not None for part in (finding.site, finding.side, finding.size_mm))


def _joins(one: Finding, other: Finding) -> bool:
    pairs = ((one.site, other.site), (one.side, other.side), (one.size_mm, other.size_mm))
    return all(a is None or b is None or a == b for a, b in pairs)


def _join(full: Finding, more: Finding) -> Finding:
    return replace(
        full,
        site=full.site or more.site,
        side=full.side or more.side,
        size_mm=full.size_mm if full.size_mm is not None else more.size_mm,
        count=full.count or more.count,
        change=full.change or more.change,
    )


def _read_sentence(sentence: str, styles: Sequence[Style], examination: str) -> Iterator[Finding]:
    words = re.sub(r"^\s*(?:[-•*]|\d{1,2}[.)、])\s*", "", sentence).strip()
    for style in styles if words else ():
        finding = parse_sentence(words, style, examination)
        found = [finding] if finding else parse_impression(words, style, examination)
        if found:
            yield from found
            return


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
    size_agreed_R2: np.ndarray
    """Matched findings with a size in the reference: how many agree (a missing size does not)."""
    reference_status_RF: np.ndarray
    """Index into STATUSES; the same for the draft below."""
    draft_status_RF: np.ndarray


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
        size_agreed_R2=_agreement(
            [[(True, sizes_agree(r.size_mm, d.size_mm)) for r, d in p if r.size_mm] for p in pairs]
        ),
        reference_status_RF=_statuses(references, codes),
        draft_status_RF=_statuses(drafts, codes),
    )


def sizes_agree(a_mm: float | None, b_mm: float | None) -> bool:
    if a_mm is None or b_mm is None:
        return a_mm is b_mm
    return abs(a_mm - b_mm) <= max(SIZE_SHARE * max(a_mm, b_mm), SIZE_MM) + 1e-9


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
        Measure(
            "size agreement",
            _share(counts.size_agreed_R2[:, 0], counts.size_agreed_R2[:, 1]),
            f"within {SIZE_SHARE:.0%} or {SIZE_MM:g} mm|{_of_pairs(counts.size_agreed_R2)}",
        ),
        Measure("hallucination", _share(invented_R, micro[1]), f"{codes}|of drafted", higher_is_better=False),
        Measure(
            "contradiction",
            _share(counts.refuted_RF.sum(axis=1), micro[1]),
            f"reference says absent|codes:{len(counts.codes)}|of drafted",
            higher_is_better=False,
        ),
        Measure(
            "unsupported",
            _share(invented_R - counts.refuted_RF.sum(axis=1), micro[1]),
            f"reference is silent or unsure|codes:{len(counts.codes)}|of drafted",
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
        *_status_measures(counts),
        Measure("CRG", _crg(counts), f"codes:{len(counts.codes)}|arXiv:2505.17167"),
    ]


def _status_measures(counts: FindingCounts) -> list[Measure]:
    """Over (finding, status), the status being present, absent or cannot say."""
    told = f"present, absent, cannot say|codes:{len(counts.codes)}"
    reference_RF, draft_RF = counts.reference_status_RF, counts.draft_status_RF
    matched_RF = (reference_RF == draft_RF) & (reference_RF > 0)
    per_code = [part.astype(np.float64) for part in (matched_RF, draft_RF > 0, reference_RF > 0)]
    spoken = per_code[2].any(axis=0)
    num = len(STATUSES)
    cell_RF = reference_RF * num + draft_RF
    cells_RC = np.stack([(cell_RF == cell).sum(axis=1) for cell in range(num * num)], axis=1)

    def kappa(counts_BR: np.ndarray) -> np.ndarray:
        """Cohen, Educ Psychol Meas 1960;20:37."""
        table_BSS = (counts_BR @ cells_RC.astype(np.float64)).reshape(-1, num, num)
        whole_B = table_BSS.sum(axis=(1, 2))
        agreed_B = ratio(np.trace(table_BSS, axis1=1, axis2=2), whole_B)
        chance_B = ratio((table_BSS.sum(axis=1) * table_BSS.sum(axis=2)).sum(axis=1), whole_B**2)
        return ratio(agreed_B - chance_B, 1 - chance_B)

    micro = [part.sum(axis=1) for part in per_code]
    return [
        Measure("three-status F1 micro", _over_counts(f1, *micro), told),
        Measure("three-status F1 macro", _macro(f1, *(part[:, spoken] for part in per_code)), told),
        Measure("three-status kappa", kappa, f"{told}, not mentioned|Cohen"),
    ]


def _crg(counts: FindingCounts) -> Statistic:
    """Hamamci et al., arXiv 2505.17167: true positives and misses weigh U, false alarms 1, where U makes
    the drafts that call everything, nothing, or a coin's choice present score 1/3, and perfect ones 1."""
    matched_R = (counts.reference_RF * counts.draft_RF).sum(axis=1)
    reference_R, draft_R = counts.reference_RF.sum(axis=1), counts.draft_RF.sum(axis=1)
    num_codes = len(counts.codes)

    def crg(counts_BR: np.ndarray) -> np.ndarray:
        matched, stated = counts_BR @ matched_R, counts_BR @ reference_R
        cells = counts_BR.sum(axis=1) * num_codes
        weight = ratio(cells - stated, 2 * stated)
        full = weight * stated
        score = weight * matched - weight * (stated - matched) - (counts_BR @ draft_R - matched)
        return ratio(full, 2 * full - score)

    return crg


def code_measures(counts: FindingCounts, code: str) -> list[Measure]:
    """Precision, recall and F1 of one finding."""
    column = counts.codes.index(code)
    draft_R, reference_R = counts.draft_RF[:, column], counts.reference_RF[:, column]
    parts = (draft_R * reference_R, draft_R, reference_R)
    made = f"present|code:{code}"
    return [Measure(f"{name} {code}", _over_counts(rate, *parts), made) for name, rate in _RATES.items()]


def code_estimates(counts: FindingCounts, counts_BR: np.ndarray) -> dict[str, Estimate]:
    """The same for every finding at once: a product of matrices for all of them."""
    whole_BR = np.vstack([np.ones((1, counts_BR.shape[1])), counts_BR])
    parts = (counts.reference_RF * counts.draft_RF, counts.draft_RF, counts.reference_RF)
    parts_BF = [whole_BR @ part_RF for part_RF in parts]
    return {
        f"{name} {code}": Estimate(float(rate_BF[0, k]), rate_BF[1:, k])
        for name, rate_BF in ((n, rate(*parts_BF)) for n, rate in _RATES.items())
        for k, code in enumerate(counts.codes)
    }


# matched, drafted, referenced: 0 where only one side states the finding, NaN where neither does
def precision(matched: np.ndarray, drafted: np.ndarray, referenced: np.ndarray) -> np.ndarray:
    return np.where(drafted + referenced > 0, matched / np.maximum(drafted, 1), np.nan)


def recall(matched: np.ndarray, drafted: np.ndarray, referenced: np.ndarray) -> np.ndarray:
    return np.where(drafted + referenced > 0, matched / np.maximum(referenced, 1), np.nan)


def f1(matched: np.ndarray, drafted: np.ndarray, referenced: np.ndarray) -> np.ndarray:
    return ratio(2 * matched, drafted + referenced)


_RATES = {"precision": precision, "recall": recall, "F1": f1}


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


def _statuses(reports: Sequence[Findings], codes: Sequence[str]) -> np.ndarray:
    """Present counts before absent, that before doubt, where a report states several."""
    column = {code: k for k, code in enumerate(codes)}
    statuses_RF = np.zeros((len(reports), len(codes)), dtype=np.intp)
    for row, findings in zip(statuses_RF, reports, strict=True):
        for f in findings:
            if f.code in column:
                status, k = STATUSES.index(f.presence), column[f.code]
                row[k] = min(status, row[k]) if row[k] else status
    return statuses_RF


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
