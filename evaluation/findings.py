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
from evaluation.statistics import Estimate, Measure, Sums, median, ratio, share
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

    @property
    def told_F(self) -> np.ndarray:
        """Whether any reference speaks of the finding, present or not."""
        return np.any(self.reference_status_RF, axis=0)


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


def finding_measures(counts: FindingCounts, sizes_mm: np.ndarray | None = None) -> list[Measure]:
    """`sizes_mm`: errors of size that may occur, ascending; None takes those that do. Two systems can only be
    compared over the errors of both."""
    matched_RF = counts.reference_RF * counts.draft_RF
    every = (matched_RF, counts.draft_RF, counts.reference_RF)
    supported = counts.reference_RF.any(axis=0)
    some = tuple(part_RF[:, supported] for part_RF in every)
    matched_R, drafted_R, referenced_R = (part_RF.sum(axis=1) for part_RF in every)
    invented_R, refuted_R = drafted_R - matched_R, counts.refuted_RF.sum(axis=1)
    # of the findings that the references speak of: nothing that a draft names can change what it is held to
    num_codes = int(counts.told_F.sum())
    codes = f"present|codes:{num_codes}"
    sides, sites, sizes, exact = counts.sides_R2, counts.sites_R2, counts.size_agreed_R2, counts.exact_R2
    rates = [
        measure
        for name, rate in (("F1", f1), ("precision", precision), ("recall", recall))
        for measure in (
            Measure.of(f"{name} micro", _micro(rate, *every), codes),
            Measure.of(
                f"{name} macro", _macro(rate, *some), f"present|codes:{supported.sum()} in references"
            ),
        )
    ]
    return [
        *rates,
        Measure.of("side accuracy", share(*sides.T), _of_pairs(sides)),
        Measure.of("site accuracy", share(*sites.T), _of_pairs(sites)),
        Measure.of(
            "size error",
            _median_error(counts, sizes_mm),
            f"median absolute|pairs:{counts.size_error_P.size}",
            Unit.MM,
            higher_is_better=False,
        ),
        Measure.of(
            "size agreement",
            share(*sizes.T),
            f"within {SIZE_SHARE:.0%} or {SIZE_MM:g} mm|{_of_pairs(sizes)}",
        ),
        _fault("hallucination", invented_R, drafted_R, f"{codes}|of drafted"),
        _fault(
            "contradiction",
            refuted_R,
            drafted_R,
            f"reference says absent|codes:{num_codes}|of drafted",
        ),
        _fault(
            "unsupported",
            invented_R - refuted_R,
            drafted_R,
            f"reference is silent or unsure|codes:{num_codes}|of drafted",
        ),
        _fault("omission", referenced_R - matched_R, referenced_R, f"{codes}|of referenced"),
        Measure.of(
            "exact match",
            share(*exact.T),
            f"all findings, presence, site, side, size|reports:{exact[:, 1].sum():.0f}",
        ),
        *_status_measures(counts),
        Measure.of("CRG", _crg(counts), f"codes:{num_codes}|arXiv:2505.17167"),
    ]


def _fault(name: str, wrong_R: np.ndarray, whole_R: np.ndarray, signature: str) -> Measure:
    return Measure.of(name, share(wrong_R, whole_R), signature, higher_is_better=False)


def _status_measures(counts: FindingCounts) -> list[Measure]:
    """Over (finding, status), the status being present, absent or cannot say."""
    told = f"present, absent, cannot say|codes:{counts.told_F.sum()}"
    reference_RF, draft_RF = counts.reference_status_RF, counts.draft_status_RF
    matched_RF = (reference_RF == draft_RF) & (reference_RF > 0)
    every = (matched_RF, draft_RF > 0, reference_RF > 0)
    spoken = every[2].any(axis=0)
    cell_RF = reference_RF * len(STATUSES) + draft_RF
    speaks_RF = counts.told_F | (draft_RF > 0)
    cells_RC = np.stack(
        [((cell_RF == cell) & speaks_RF).sum(axis=1) for cell in range(len(STATUSES) ** 2)], axis=1
    )
    return [
        Measure.of("three-status F1 micro", _micro(f1, *every), told),
        Measure.of("three-status F1 macro", _macro(f1, *(part_RF[:, spoken] for part_RF in every)), told),
        Measure.of(
            "three-status kappa", Sums(cells_RC.astype(np.float64), _kappa), f"{told}, not mentioned|Cohen"
        ),
    ]


def _kappa(cells_BC: np.ndarray) -> np.ndarray:
    """Cohen, Educ Psychol Meas 1960;20:37."""
    table_BSS = cells_BC.reshape(-1, len(STATUSES), len(STATUSES))
    whole_B = table_BSS.sum(axis=(1, 2))
    agreed_B = ratio(np.trace(table_BSS, axis1=1, axis2=2), whole_B)
    chance_B = ratio((table_BSS.sum(axis=1) * table_BSS.sum(axis=2)).sum(axis=1), whole_B**2)
    return ratio(agreed_B - chance_B, 1 - chance_B)


def _crg(counts: FindingCounts) -> Sums:
    """Hamamci et al., arXiv 2505.17167: true positives and misses weigh U, false alarms 1, where U makes
    the drafts that call everything, nothing, or a coin's choice present score 1/3, and perfect ones 1."""
    num_reports, num_codes = len(counts.reference_RF), int(counts.told_F.sum())
    parts = [
        part_RF.sum(axis=1)
        for part_RF in (counts.reference_RF * counts.draft_RF, counts.draft_RF, counts.reference_RF)
    ]

    def crg(sums_BT: np.ndarray) -> np.ndarray:
        matched, drafted, stated, reports = sums_BT.T
        weight = ratio(reports * num_codes - stated, 2 * stated)
        full = weight * stated
        score = weight * matched - weight * (stated - matched) - (drafted - matched)
        return ratio(full, 2 * full - score)

    return Sums(np.stack([*parts, np.ones(num_reports)], axis=1), crg)


def _median_error(counts: FindingCounts, sizes_mm: np.ndarray | None) -> Sums:
    """A column for each error that occurs: how often it does in each report."""
    values_T = np.unique(counts.size_error_P) if sizes_mm is None else sizes_mm
    sums_RT = np.zeros((len(counts.reference_RF), len(values_T)))
    np.add.at(sums_RT, (counts.size_report_P, np.searchsorted(values_T, counts.size_error_P)), 1)
    return Sums(sums_RT, lambda sums_BT: median(values_T, np.arange(len(values_T)), sums_BT))


def code_measures(counts: FindingCounts, code: str) -> list[Measure]:
    """Precision, recall and F1 of one finding."""
    k = counts.codes.index(code)
    draft_RF, reference_RF = counts.draft_RF[:, k : k + 1], counts.reference_RF[:, k : k + 1]
    parts = (draft_RF * reference_RF, draft_RF, reference_RF)
    made = f"present|code:{code}"
    return [Measure.of(f"{name} {code}", _micro(rate, *parts), made) for name, rate in _RATES.items()]


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
    """Of what nobody has there is none: a resample without it says nothing, and not 0."""
    return np.where(referenced > 0, matched / np.maximum(referenced, 1), np.nan)


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


def _micro(rate: Callable[..., np.ndarray], *parts_RF: np.ndarray) -> Sums:
    """Of all codes together."""
    sums_RT = np.stack([part_RF.sum(axis=1) for part_RF in parts_RF], axis=1).astype(np.float64)
    return Sums(sums_RT, lambda sums_BT: rate(*sums_BT.T))


def _macro(rate: Callable[..., np.ndarray], *parts_RF: np.ndarray) -> Sums:
    """The mean over the codes that have a value."""
    sums_RT = np.hstack(parts_RF).astype(np.float64)

    def mean_over_codes(sums_BT: np.ndarray) -> np.ndarray:
        rates_BF = rate(*np.split(sums_BT, len(parts_RF), axis=1))
        defined_BF = np.isfinite(rates_BF)
        return ratio(np.where(defined_BF, rates_BF, 0).sum(axis=1), defined_BF.sum(axis=1))

    return Sums(sums_RT, mean_over_codes)
