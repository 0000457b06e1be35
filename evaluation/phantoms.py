"""Phantoms that no training saw -> the one table of an examination: what is found, where, how large, in which
words, with what evidence, and how well the model knows what it does not know.

    python -m evaluation.phantoms CORPUS --checkpoint A [--checkpoint B ...] --out DIR

Several checkpoints are seeds of one training, or its ablations: a row has their mean, its 95 % interval by
patient, the standard deviation over checkpoints and each of their values. `--split all` is for a corpus of
which no training saw anything; `--floors` then names the one whose training reports the floors come from.

A finding counts as found where it is stated as present: by the calibrated answer ("cannot say" is not
stated), or by the likelier answer where the model always had to give one. F1 is a mean over the findings that
somebody has; "of 6 mm or more" leaves a patient out for a finding of which all lesions are smaller. A side is
right where a lesion of the finding lies on it; the size is compared with the largest lesion at the stated
place. `--out` gets phantoms.json, phantoms.md and phantoms.png.
"""

# R patients, F findings, B resamples, K bins, P statements

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.bar import bar_of
from evaluation.floors import RANDOM_SEED, best_constant, random_others
from evaluation.knowing import Curve, curves_of, reliability_of, rows_of
from evaluation.knowing import table as knowing_table
from evaluation.seen import Case, foremost, look
from evaluation.statistics import (
    RESAMPLES,
    SEED,
    Measure,
    Resamples,
    draw_resamples,
    estimate,
    median,
    ratio,
)
from evaluation.text import text_scores
from mla_med.corpus import LANGUAGES, SPLITS, STYLE, Example, read_about, read_examples
from mla_med.errors import ConfigError, MlaMedError
from mla_med.files import write_text
from mla_med.model.calibrate import Calibration
from mla_med.model.checkpoint import load_checkpoint
from mla_med.report.parse import parse_report
from mla_med.report.render import body_text, render_report
from mla_med.report.schema import schema_of
from mla_med.report.style import load_style
from mla_med.types import Finding

LEAST_MM = 6.0
BINS = 15
SIZED_F1 = f"macro F1, lesions of {LEAST_MM:.0f} mm or more"
CITED = "first cited slice holds the lesion"
HEADLINES = (SIZED_F1, "side accuracy", "size error mm, median", CITED, "BLEU-4")
"""What is also shown by checkpoint."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table. NaN: nothing to measure."""

    name: str
    value: float
    """Mean over the checkpoints."""
    ci95: tuple[float, float]
    spread: float
    """Standard deviation over the checkpoints; NaN with one."""
    each: tuple[float, ...]
    made: str
    """How it was made."""


@dataclass(frozen=True, slots=True)
class FindingLine:
    """One finding, means over the checkpoints; of 6 mm or more, by the calibrated answer."""

    code: str
    num_present: int
    too_small: int
    """Patients left out."""
    precision: float
    recall: float
    f1: float
    f1_ci95: tuple[float, float]
    f1_each: tuple[float, ...]
    right: float
    invented: float
    missed: float
    unsaid: float


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
    return Counts(tuple(codes), _present(cases, codes), said_RF, _counted(cases, codes, least_mm))


def likelier_of(told: Told, codes: Sequence[str], least_mm: float = 0.0) -> Counts:
    """By the likelier answer, always given."""
    cuts = told.calibration.answers
    said_RF = np.array([[case.probability[code] >= cuts[code].cut for code in codes] for case in told.cases])
    return Counts(tuple(codes), _present(told.cases, codes), said_RF, _counted(told.cases, codes, least_mm))


def _present(cases: Sequence[Case], codes: Sequence[str]) -> np.ndarray:
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
    present_RF = _present(told.cases, codes)
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
    2017), as model/conformal.py has it."""
    patients, findings = probability_RF.shape
    bin_RF = np.clip(np.ceil(probability_RF * BINS).astype(int) - 1, 0, BINS - 1)
    gap_RK = np.zeros((patients, BINS))
    rows = np.repeat(np.arange(patients), findings)
    np.add.at(gap_RK, (rows, bin_RF.ravel()), (probability_RF - present_RF).ravel())

    def statistic(counts_BR: np.ndarray) -> np.ndarray:
        return ratio(np.abs(counts_BR @ gap_RK).sum(1), findings * counts_BR.sum(1))

    return Measure(
        name, statistic, f"bins:{BINS} equal width|n:{probability_RF.size}", higher_is_better=False
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
        others = [references[k] for k in random_others(count)]
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


# Several checkpoints -> the table


def line_of(measures: Sequence[Measure], drawn: Resamples) -> Line:
    """The same measure of each checkpoint."""

    def mean(counts_BR: np.ndarray) -> np.ndarray:
        return np.mean([measure.statistic(counts_BR) for measure in measures], axis=0)

    once_1R = np.ones((1, drawn.num_reports))
    each = tuple(float(measure.statistic(once_1R)[0]) for measure in measures)
    measured = estimate(mean, drawn)
    spread = float(np.std(each, ddof=1)) if len(each) > 1 else math.nan
    return Line(measures[0].name, measured.value, measured.ci95, spread, each, measures[0].signature)


def finding_lines(tolds: Sequence[Told], codes: Sequence[str], drawn: Resamples) -> list[FindingLine]:
    counted = [counts_of(told.cases, codes, LEAST_MM) for told in tolds]
    once_1R = np.ones((1, drawn.num_reports))
    sums = np.array([[part[0] for part in counts.sums(once_1R)] for counts in counted]).mean(0)
    unsaid = [np.mean([sum(c in case.unsaid for case in t.cases) for t in tolds]) for c in codes]
    lines = []
    for f, code in enumerate(codes):
        right, invented, missed = sums[:, f]

        def f1(counts_BR: np.ndarray, f: int = f) -> np.ndarray:
            return np.mean([counts.f1(counts_BR)[:, f] for counts in counted], axis=0)

        measured = estimate(f1, drawn)
        present, kept = counted[0].present_RF[:, f], counted[0].counted_RF[:, f]
        lines.append(
            FindingLine(
                code,
                int((present & kept).sum()),
                int((present & ~kept).sum()),
                float(ratio(np.array(right), np.array(right + invented))),
                float(ratio(np.array(right), np.array(right + missed))),
                measured.value,
                measured.ci95,
                tuple(float(counts.f1(once_1R)[0, f]) for counts in counted),
                float(right),
                float(invented),
                float(missed),
                float(unsaid[f]),
            )
        )
    return lines


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that one run found."""

    facts: dict[str, Any]
    lines: tuple[Line, ...]
    findings: tuple[FindingLine, ...]
    curves: dict[str, Curve]
    reliability: dict[str, list[tuple[float, float, int]]]
    """Before and after calibration: mean probability, share that is so, and number of each bin."""
    knowing: dict[str, str]
    """By checkpoint, the table of coverage by finding."""


def bench(
    tolds: Sequence[Told],
    codes: Sequence[str],
    examination: str,
    language: str,
    others: dict[str, list[str]],
    facts: dict[str, Any],
    resamples: int = RESAMPLES,
) -> Bench:
    """`others`: texts of ceilings and floors by name; none: nothing was written."""
    drawn = draw_resamples([case.id for case in tolds[0].cases], "patient", resamples)
    measured = [measures_of(told, codes, examination) for told in tolds]
    lines = [line_of(same, drawn) for same in zip(*measured, strict=True)]
    if others:
        written, beside = text_measures(tolds, others, language)
        lines += [line_of(same, drawn) for same in zip(*written, strict=True)]
        lines += [line_of([measure], drawn) for measure in beside]
    knowing = {}
    for told in tolds:
        stated, present = probabilities(told.cases, codes), _present(told.cases, codes)
        rows = rows_of(told.calibration, codes, stated, present)
        knowing[told.name] = knowing_table(rows, told.calibration.coverage or math.nan)
    return Bench(
        facts | {"ci": drawn.signature},
        tuple(lines),
        tuple(finding_lines(tolds, codes, drawn)),
        _curves(tolds, codes),
        _reliability(tolds, codes),
        knowing,
    )


def _curves(tolds: Sequence[Told], codes: Sequence[str]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for told in tolds:
        found = curves_of(
            told.calibration, codes, probabilities(told.cases, codes), _present(told.cases, codes)
        )
        named = {name if len(tolds) == 1 else f"{told.name} {name}": curve for name, curve in found.items()}
        curves |= named
    return curves


def _reliability(tolds: Sequence[Told], codes: Sequence[str]) -> dict[str, list[tuple[float, float, int]]]:
    """Answers of all checkpoints together."""
    before = np.concatenate([probabilities(told.cases, codes) for told in tolds])
    after = np.concatenate([calibrated(told, codes) for told in tolds])
    present = np.concatenate([_present(told.cases, codes) for told in tolds])
    return {
        "before calibration": reliability_of(before, present, BINS),
        "after calibration": reliability_of(after, present, BINS),
    }


# The table -> files


def to_markdown(found: Bench) -> str:
    facts, several = found.facts, len(found.facts["checkpoints"]) > 1
    names = "; ".join(f"{c['name']} ({c['fusion']}, {c['sha256'][:12]})" for c in facts["checkpoints"])
    head = "| measure | value | 95 % CI |" + (" sd | each |" if several else "") + " made |"
    lines = [
        f"# {facts['examination']}: {facts['patients']} phantoms that training did not see",
        "",
        f"Split {facts['split']} of cohort {facts['cohort']}; reports in {facts['language']}; {names}.",
        f"Intervals: {facts['ci']}.",
        "",
        head,
        "|" + "---|" * (head.count("|") - 1),
    ]
    for line in found.lines:
        more = f" {_number(line.spread)} | {', '.join(map(_number, line.each))} |" if several else ""
        if several and len(line.each) == 1:
            more = " | |"
        made = line.made.replace("|", "; ")
        lines.append(f"| {line.name} | {_number(line.value)} | {_interval(line.ci95)} |{more} {made} |")
    if several:
        lines += ["", *_by_checkpoint(found)]
    lines += [
        "",
        f"By finding, lesions of {LEAST_MM:.0f} mm or more, calibrated answers, means over the checkpoints:",
        "",
        "| finding | with | smaller | precision | recall | F1 | 95 % CI | right | invented | missed | "
        "cannot say |",
        "|" + "---|" * 11,
    ]
    for row in found.findings:
        counts = " | ".join(f"{n:g}" for n in (row.right, row.invented, row.missed, row.unsaid))
        lines.append(
            f"| {row.code} | {row.num_present} | {row.too_small} | {_number(row.precision)} "
            f"| {_number(row.recall)} | {_number(row.f1)} | {_interval(row.f1_ci95)} | {counts} |"
        )
    lines += ["", "Risk where the surest answers are given first:", ""]
    for name, curve in found.curves.items():
        at = ", ".join(f"{curve.risk_at(c):.4f} at {c:.2f}" for c in (0.5, 0.8, 0.95, 1.0))
        lines.append(f"- {name}: {at}; AURC {curve.area:.4f}")
    for name, words in found.knowing.items():
        lines += ["", f"## What {name} knows", "", words]
    return "\n".join(lines) + "\n"


def _by_checkpoint(found: Bench) -> list[str]:
    """Seeds under each other, or ablations."""
    lines = [line for line in found.lines if line.name in HEADLINES and len(line.each) > 1]
    rows = ["| checkpoint | fusion | " + " | ".join(line.name for line in lines) + " |"]
    rows.append("|" + "---|" * (2 + len(lines)))
    for number, (name, about) in enumerate(zip(found.knowing, found.facts["checkpoints"], strict=True)):
        values = " | ".join(_number(line.each[number]) for line in lines)
        rows.append(f"| {name} | {about['fusion']} | {values} |")
    return rows


def to_json(found: Bench) -> str:
    values = {
        "facts": found.facts,
        "rows": [asdict(line) for line in found.lines],
        "findings": [asdict(line) for line in found.findings],
        "curves": {name: asdict(curve) | {"aurc": curve.area} for name, curve in found.curves.items()},
        "reliability": found.reliability,
    }
    return json.dumps(_without_nan(values), indent=1) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _interval(ci95: tuple[float, float]) -> str:
    return "–" if math.isnan(ci95[0]) else f"{ci95[0]:.3f} to {ci95[1]:.3f}"


def draw(found: Bench, path: Path) -> None:
    """F1 of each finding with its number, reliability, and risk against coverage."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = sorted(found.findings, key=lambda row: 1.0 if math.isnan(row.f1) else -row.f1)
    height = max(3.6, 0.24 * len(rows) + 1.2)
    figure, (bars, sure, risk) = pyplot.subplots(
        1, 3, figsize=(14, height), dpi=110, width_ratios=(1.5, 1, 1)
    )
    places = np.arange(len(rows))
    bars.barh(places, [row.f1 for row in rows], color="#7aa6c2")
    for place, row in zip(places, rows, strict=True):
        low, high = row.f1_ci95
        bars.plot([low, high], [place, place], color="#24506b", linewidth=1)
        bars.plot(row.f1_each, [place] * len(row.f1_each), "|", color="black", markersize=6)
    bars.set_yticks(places, [f"{row.code} ({row.num_present})" for row in rows], fontsize=8)
    bars.invert_yaxis()
    bars.set(
        xlim=(0, 1), xlabel="F1, with 95 % interval", title=f"lesions of {LEAST_MM:.0f} mm or more (patients)"
    )
    sure.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    for (name, bins), marker in zip(found.reliability.items(), ("o", "s"), strict=True):
        some = [(p, so, n) for p, so, n in bins if n]
        most = max((n for *_, n in some), default=1)
        sure.plot([p for p, *_ in some], [so for _, so, _ in some], linewidth=1, label=name)
        sure.scatter(
            [p for p, *_ in some],
            [so for _, so, _ in some],
            [8 + 60 * math.sqrt(n / most) for *_, n in some],
            marker=marker,
            alpha=0.7,
        )
    sure.set(xlabel="probability that it is there", ylabel="share that is there", title="reliability")
    sure.legend(frameon=False, fontsize=8, loc="upper left")
    for number, (name, curve) in enumerate(found.curves.items()):
        if number > 1 and "random" in name:
            continue  # one of them is enough to compare with
        risk.plot(curve.coverage, curve.risk, linewidth=1, label=f"{name} (AURC {curve.area:.4f})")
    risk.set(xlabel="share of answers given", ylabel="share of them wrong", title="risk against coverage")
    risk.set_xlim(0, 1)
    risk.set_ylim(bottom=0)
    risk.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


# From the command line


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        found = run(given)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    words = to_markdown(found)
    print(words)
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / "phantoms.md", words)
    write_text(given.out / "phantoms.json", to_json(found))
    draw(found, given.out / "phantoms.png")
    print(f"{given.out} written after {time.perf_counter() - began:.0f} s")
    return 0


def run(given: argparse.Namespace) -> Bench:
    about = read_about(given.corpus)
    examples = read_examples(given.corpus, given.split)[: given.n]
    if not examples:
        raise ConfigError(f"The split {given.split} of {given.corpus} is empty.", code="NO_EXAMPLES")
    examination, language = about["examination"], given.language
    tolds, facts, keys = [], [], set()
    for number, folder in enumerate(given.checkpoint, 1):
        checkpoint = load_checkpoint(folder)
        if checkpoint.scope.examination != examination:
            raise ConfigError(
                f"{folder} drafts {checkpoint.scope.examination}, and {given.corpus} holds {examination}.",
                code="OTHER_EXAMINATION",
            )
        if not checkpoint.calibration.answers:
            raise ConfigError(
                f"{folder} is not calibrated. Run python -m dapt.finish on it first.", code="NOT_CALIBRATED"
            )
        name = folder.name if len(given.checkpoint) == 1 else f"{number}: {folder.name}"
        with bar_of(name, len(examples)) as say:
            cases, _ = look(checkpoint, examples, language, given.batch, not given.no_writing, say)
        tolds.append(Told(name, checkpoint.calibration, tuple(cases)))
        config = checkpoint.model.config
        keys.add(config.finding_keys)
        facts.append(
            {
                "name": checkpoint.name,
                "version": checkpoint.version,
                "fusion": config.fusion_type,
                "sha256": checkpoint.weights_sha256,
            }
        )
    if len(keys) > 1:
        raise ConfigError("The checkpoints know different findings.", code="OTHER_FINDINGS")
    others = {} if given.no_writing else _others(given, examples, examination, language)
    return bench(
        tolds,
        keys.pop(),
        examination,
        language,
        others,
        {
            "examination": examination,
            "patients": len(examples),
            "split": given.split,
            "cohort": about["cohort"],
            "language": language,
            "checkpoints": facts,
        },
        given.resamples,
    )


def _others(
    given: argparse.Namespace, examples: Sequence[Example], examination: str, language: str
) -> dict[str, list[str]]:
    references = [example.reports[language] for example in examples]
    source = None
    if given.floors is not None or given.split != "all":
        train = read_examples(given.floors or given.corpus, "train")
        source = [example.reports[language] for example in train] or None
    return ceiling_texts(references, [e.id for e in examples], examination, language) | floor_texts(
        references, source, examination, language
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation.phantoms", description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--checkpoint", type=Path, action="append", required=True, help="may be repeated")
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test")
    parser.add_argument("--n", type=int, help="so many patients at most")
    parser.add_argument("--language", choices=LANGUAGES, default=LANGUAGES[0])
    parser.add_argument("--floors", type=Path, help="another corpus, whose training reports are the floors")
    parser.add_argument("--no-writing", action="store_true", help="findings only, without their words")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap, seed {SEED}")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
