"""What is true of phantoms and what one checkpoint said of them -> measures, one of each row of the table.

A finding counts as found where it is stated as present: by the calibrated answer ("cannot say" is not
stated), or by the likelier answer where the model always had to give one. F1 is a mean over the findings that
somebody has; "of 6 mm or more" leaves a patient out for a finding of which all lesions are smaller. A side is
right where a lesion of the finding lies on it; the size is compared with the largest lesion at the stated
place. Knows no files and no pictures.
"""

# R patients, F findings, B resamples, K bins, P statements

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.floors import RANDOM_SEED, best_constant, random_others
from evaluation.seen import Case, foremost
from evaluation.statistics import Measure, median, ratio
from evaluation.text import text_scores
from mla_med.corpus import STYLE
from mla_med.model.calibrate import Calibration
from mla_med.report.parse import parse_report
from mla_med.report.render import body_text, render_report
from mla_med.report.schema import schema_of
from mla_med.report.style import load_style
from mla_med.types import Finding

LEAST_MM = 6.0
BINS = 15
SIZED_F1 = f"macro F1, lesions of {LEAST_MM:.0f} mm or more"
CITED = "first cited slice holds the lesion"


@dataclass(frozen=True, slots=True)
class Told:
    """What one checkpoint said of all patients."""

    name: str
    calibration: Calibration
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Of each patient and finding: whether it is there, is said to be there, and takes part."""

    codes: tuple[str, ...]
    present_RF: np.ndarray
    said_RF: np.ndarray
    counted_RF: np.ndarray

    def f1(self, counts_BR: np.ndarray) -> np.ndarray:
        """By finding (B, F); NaN where nobody has it."""
        right_BF, invented_BF, missed_BF = self.sums(counts_BR)
        f1_BF = ratio(2 * right_BF, 2 * right_BF + invented_BF + missed_BF)
        return np.where(right_BF + missed_BF > 0, f1_BF, np.nan)

    def macro_f1(self, counts_BR: np.ndarray) -> np.ndarray:
        f1_BF = self.f1(counts_BR)
        known_BF = ~np.isnan(f1_BF)
        return ratio(np.where(known_BF, f1_BF, 0).sum(1), known_BF.sum(1))

    def sums(self, counts_BR: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right, invented and missed, by finding (B, F)."""
        present, said, counted = self.present_RF, self.said_RF, self.counted_RF
        parts = (present & said, ~present & said, present & ~said)
        right, invented, missed = (counts_BR @ (part & counted).astype(np.float64) for part in parts)
        return right, invented, missed


# What is true and what was said -> numbers


def counts_of(cases: Sequence[Case], codes: Sequence[str], least_mm: float = 0.0) -> Counts:
    """By the calibrated answer."""
    said_RF = np.array([[code in foremost(case.stated) for code in codes] for case in cases])
    return Counts(tuple(codes), present_of(cases, codes), said_RF, _counted(cases, codes, least_mm))


def likelier_of(told: Told, codes: Sequence[str], least_mm: float = 0.0) -> Counts:
    """By the likelier answer, always given."""
    cuts = told.calibration.answers
    said_RF = np.array([[case.probability[code] >= cuts[code].cut for code in codes] for case in told.cases])
    return Counts(tuple(codes), present_of(told.cases, codes), said_RF, _counted(told.cases, codes, least_mm))


def present_of(cases: Sequence[Case], codes: Sequence[str]) -> np.ndarray:
    return np.array([[code in foremost(case.planted) for code in codes] for case in cases])


def _counted(cases: Sequence[Case], codes: Sequence[str], least_mm: float) -> np.ndarray:
    def counted(case: Case, code: str) -> bool:
        sizes = [f.size_mm for f in case.planted if f.code == code and f.size_mm is not None]
        return not sizes or max(sizes) >= least_mm

    return np.array([[counted(case, code) for code in codes] for case in cases])


def measures_of(told: Told, codes: Sequence[str], examination: str) -> list[Measure]:
    """What can be measured of one checkpoint, in the order of the table."""
    cases = told.cases
    sized, every = counts_of(cases, codes, LEAST_MM), counts_of(cases, codes)
    findings = f"mean over findings that somebody has|n:{len(cases)}"
    return [
        Measure(SIZED_F1, sized.macro_f1, f"calibrated|{findings}"),
        Measure("macro F1, lesions of every size", every.macro_f1, f"calibrated|{findings}"),
        Measure(
            f"macro F1, always answering, {LEAST_MM:.0f} mm or more",
            likelier_of(told, codes, LEAST_MM).macro_f1,
            f"likelier answer|{findings}",
        ),
        _share("cannot say", *_unsaid(cases, codes), "of all answers"),
        *_place_measures(cases),
        *_further_measures(cases, examination),
        _share(CITED, *_cited(cases), "of findings there and stated"),
        _share("a slice drawn by chance holds it", *_chance(cases), "of the same findings"),
        *_knowing_measures(told, codes),
    ]


def _share(name: str, part_R: Any, whole_R: Any, words: str) -> Measure:
    sums_R2 = np.stack([np.asarray(part_R, float), np.asarray(whole_R, float)], 1)

    def statistic(counts_BR: np.ndarray) -> np.ndarray:
        sums_B2 = counts_BR @ sums_R2
        return ratio(sums_B2[:, 0], sums_B2[:, 1])

    return Measure(name, statistic, f"{words}|n:{sums_R2[:, 1].sum():.0f}")


def _unsaid(cases: Sequence[Case], codes: Sequence[str]) -> tuple[list[int], list[int]]:
    return [len(case.unsaid & set(codes)) for case in cases], [len(codes)] * len(cases)


def _cited(cases: Sequence[Case]) -> tuple[list[int], list[int]]:
    return [sum(case.cites.values()) for case in cases], [len(case.cites) for case in cases]


def _chance(cases: Sequence[Case]) -> tuple[list[float], list[int]]:
    return [sum(case.by_chance.values()) for case in cases], [len(case.by_chance) for case in cases]


def _place_measures(cases: Sequence[Case]) -> list[Measure]:
    """Side, site and size of what is there and stated."""
    sides, sites = np.zeros((len(cases), 2)), np.zeros((len(cases), 2))
    first = np.zeros((len(cases), 2))
    errors: list[float] = []
    owners: list[int] = []
    for r, case in enumerate(cases):
        for code, said in foremost(case.stated).items():
            planted = [f for f in case.planted if f.code == code]
            if not planted:
                continue
            places = _places(planted)
            if said.side is not None:
                sides[r] += said.side in {side for side, _ in places}, 1
            if said.site is not None:
                sites[r] += said.site in {site for _, site in places}, 1
            if len(places) > 1:
                first[r] += (said.side, said.site) == places[0], 1
            there = next((f for f in planted if (f.side, f.site) == (said.side, said.site)), planted[0])
            if said.size_mm is not None and there.size_mm is not None:
                errors.append(abs(said.size_mm - there.size_mm))
                owners.append(r)
    values_P, owner_P = np.array(errors), np.array(owners, int)
    return [
        _share("side accuracy", sides[:, 0], sides[:, 1], "of findings there and stated that have a side"),
        _share("site accuracy", sites[:, 0], sites[:, 1], "of findings there and stated that have a site"),
        Measure(
            "size error mm, median",
            lambda counts_BR: median(values_P, owner_P, counts_BR),
            f"of findings there and stated that have a size|n:{len(errors)}",
            higher_is_better=False,
        ),
        _share(
            "of several lesions the largest is stated first",
            first[:, 0],
            first[:, 1],
            "of those at several places",
        ),
    ]


def _further_measures(cases: Sequence[Case], examination: str) -> list[Measure]:
    """Places of a finding after the first that is stated."""
    schema = schema_of(examination)
    there, said, hits = (np.zeros(len(cases)) for _ in range(3))
    for r, case in enumerate(cases):
        for code in foremost(case.stated):
            places = _places([f for f in case.planted if f.code == code])
            if not places or not schema[code].repeats:
                continue
            first, *rest = _places([f for f in case.stated if f.code == code])
            there[r] += len(places) - 1
            said[r] += len(rest)
            hits[r] += min(len(set(rest) & set(places) - {first}), len(places) - 1)
    return [
        _share("further lesions, recall", hits, there, "of further places with a lesion"),
        _share("further lesions, precision", hits, said, "of further places that are stated"),
    ]


def _places(findings: Sequence[Finding]) -> list[tuple[Any, Any]]:
    return list(dict.fromkeys((f.side, f.site) for f in findings))


def _knowing_measures(told: Told, codes: Sequence[str]) -> list[Measure]:
    present_RF = present_of(told.cases, codes)
    before_RF = probabilities(told.cases, codes)
    answers = told.calibration.answers
    after_RF = calibrated(told, codes)
    sets_RF2 = np.array(
        [[answers[code].conforms(p) for code, p in zip(codes, row, strict=True)] for row in before_RF]
    )
    held, absent_RF = f"stated {told.calibration.coverage}", ~present_RF
    return [
        error_measure("ECE before calibration", before_RF, present_RF),
        error_measure("ECE after calibration", after_RF, present_RF),
        _share(
            "coverage among those who have it",
            (sets_RF2[..., 0] & present_RF).sum(1),
            present_RF.sum(1),
            held,
        ),
        _share(
            "coverage among those who do not",
            (sets_RF2[..., 1] & absent_RF).sum(1),
            absent_RF.sum(1),
            held,
        ),
    ]


def probabilities(cases: Sequence[Case], codes: Sequence[str]) -> np.ndarray:
    """(R, F), before calibration."""
    return np.array([[case.probability[code] for code in codes] for case in cases])


def calibrated(told: Told, codes: Sequence[str]) -> np.ndarray:
    """The same (R, F) after calibration."""
    answers = told.calibration.answers
    return np.array([[answers[c].calibrated(case.probability[c]) for c in codes] for case in told.cases])


def error_measure(name: str, probability_RF: np.ndarray, present_RF: np.ndarray) -> Measure:
    """Expected calibration error over all findings of all patients, bins of equal width (Guo et al., ICML
    2017), as model/conformal.py has it. Chance alone raises it, and a resample has more of that: its
    percentiles lie above the value, so no interval is given."""
    patients, findings = probability_RF.shape
    bin_RF = np.clip(np.ceil(probability_RF * BINS).astype(int) - 1, 0, BINS - 1)
    gap_RK = np.zeros((patients, BINS))
    rows = np.repeat(np.arange(patients), findings)
    np.add.at(gap_RK, (rows, bin_RF.ravel()), (probability_RF - present_RF).ravel())

    def statistic(counts_BR: np.ndarray) -> np.ndarray:
        return ratio(np.abs(counts_BR @ gap_RK).sum(1), findings * counts_BR.sum(1))

    return Measure(
        name,
        statistic,
        f"bins:{BINS} equal width|n:{probability_RF.size}",
        higher_is_better=False,
        has_interval=False,
    )


# Words


def ceiling_texts(
    references: Sequence[str], ids: Sequence[str], examination: str, language: str
) -> dict[str, list[str]]:
    """The same findings: in another draw of colleagues' wordings, and each in the usual wording."""
    style = load_style(STYLE, language)
    drawn: list[str] = []
    usual: list[str] = []
    for text, name in zip(references, ids, strict=True):
        true = parse_report(text, style, examination)
        for texts, rng in ((drawn, random.Random(f"ceiling-{name}")), (usual, None)):
            report = render_report(
                true.findings, style, examination, rng=rng, interpretations=true.interpretations
            )
            texts.append(body_text(report, style))
    return {"ceiling: all true, another draw of wordings": drawn, "ceiling: all true, usual wording": usual}


def floor_texts(
    references: Sequence[str], source: Sequence[str] | None, examination: str, language: str
) -> dict[str, list[str]]:
    """`source`: reports of the training; None: the references themselves, nobody their own."""
    style, count = load_style(STYLE, language), len(references)
    if source is None:
        others = [references[k] for k in random_others([str(k) for k in range(count)])]
    else:
        drawn = np.random.default_rng(RANDOM_SEED).integers(len(source), size=count)
        others = [source[k] for k in drawn]
    negative = body_text(render_report((), style, examination), style)
    return {
        "floor: the best constant report": [best_constant(source or references)] * count,
        "floor: a random report": others,
        "floor: everything negative": [negative] * count,
    }


def text_measures(
    tolds: Sequence[Told], others: dict[str, list[str]], language: str
) -> tuple[list[list[Measure]], list[Measure]]:
    """BLEU-4 and duplicates of each checkpoint, and the BLEU-4 of ceilings and floors. Chinese by
    characters: its words have no blanks between them."""
    references = _words([case.reference for case in tolds[0].cases], language)

    def scores(drafts: Sequence[str], names: dict[str, str]) -> list[Measure]:
        found = text_scores(references, _words(drafts, language), "coco")
        return [
            Measure(said, score.statistic, score.signature, score.unit, score.higher_is_better)
            for name, said in names.items()
            for score in [found[name]]
        ]

    wanted = {"BLEU-4": "BLEU-4", "identical outputs": "share of duplicate reports"}
    ours = [scores([case.written for case in told.cases], wanted) for told in tolds]
    beside = scores(references, {"identical outputs": "share of duplicates among the references"})
    for name, texts in others.items():
        beside += scores(texts, {"BLEU-4": f"BLEU-4, {name}"})
    return ours, beside


def _words(texts: Sequence[str], language: str) -> list[str]:
    return [" ".join("".join(text.split())) if language == "zh" else text for text in texts]
