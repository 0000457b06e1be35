"""Measures of several checkpoints -> the one table of an examination, as Markdown, JSON and a picture."""

# R patients, F findings, B resamples

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.knowing import Curve, curves_of, reliability_of, rows_of
from evaluation.knowing import table as knowing_table
from evaluation.phantom_measures import (
    BINS,
    CITED,
    LEAST_MM,
    SIZED_F1,
    Told,
    calibrated,
    counts_of,
    measures_of,
    present_of,
    probabilities,
    text_measures,
)
from evaluation.statistics import RESAMPLES, Measure, Resamples, draw_resamples, estimate, ratio

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


def line_of(measures: Sequence[Measure], drawn: Resamples) -> Line:
    """The same measure of each checkpoint."""

    def mean(counts_BR: np.ndarray) -> np.ndarray:
        return np.mean([measure.statistic(counts_BR) for measure in measures], axis=0)

    once_1R = np.ones((1, drawn.num_reports))
    each = tuple(float(measure.statistic(once_1R)[0]) for measure in measures)
    measured = estimate(mean, drawn)
    spread = float(np.std(each, ddof=1)) if len(each) > 1 else math.nan
    ci95 = measured.ci95 if measures[0].has_interval else (math.nan, math.nan)
    return Line(measures[0].name, measured.value, ci95, spread, each, measures[0].signature)


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
        stated, present = probabilities(told.cases, codes), present_of(told.cases, codes)
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
            told.calibration, codes, probabilities(told.cases, codes), present_of(told.cases, codes)
        )
        named = {name if len(tolds) == 1 else f"{told.name} {name}": curve for name, curve in found.items()}
        curves |= named
    return curves


def _reliability(tolds: Sequence[Told], codes: Sequence[str]) -> dict[str, list[tuple[float, float, int]]]:
    """Answers of all checkpoints together."""
    before = np.concatenate([probabilities(told.cases, codes) for told in tolds])
    after = np.concatenate([calibrated(told, codes) for told in tolds])
    present = np.concatenate([present_of(told.cases, codes) for told in tolds])
    return {
        "before calibration": reliability_of(before, present, BINS),
        "after calibration": reliability_of(after, present, BINS),
    }


# The table -> files


def _own(facts: dict[str, Any]) -> str:
    """Of a split, whose corpus may be that of the training."""
    if facts["split"] == "all":
        return ""
    return (
        " Where these come from the corpus of the training, thresholds and calibration were set on them: "
        "numbers for others want a corpus of other patients."
    )


def to_markdown(found: Bench) -> str:
    facts, several = found.facts, len(found.facts["checkpoints"]) > 1
    names = "; ".join(f"{c['name']} ({c['fusion']}, {c['sha256'][:12]})" for c in facts["checkpoints"])
    head = "| measure | value | 95 % CI |" + (" sd | each |" if several else "") + " made |"
    lines = [
        f"# {facts['examination']}: {facts['patients']} phantoms",
        "",
        f"Split {facts['split']} of cohort {facts['cohort']}; reports in {facts['language']}; {names}."
        + _own(facts),
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
        counts = " | ".join(f"{round(n, 1):g}" for n in (row.right, row.invented, row.missed, row.unsaid))
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
    risk.legend(frameon=False, fontsize=7 if len(found.curves) <= 2 else 6)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
