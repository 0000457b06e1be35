"""Scores -> metrics.json, table.md, a block for a model card, and one CSV for each question, as text.

NaN ("nothing to measure") is null in JSON, an empty cell in CSV and a dash in Markdown. Knows no files.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from evaluation.results import (
    HEADLINES,
    Scores,
    below,
    below_retrieval,
    best_floor,
    verdict_of,
    warnings_of,
)
from evaluation.score import FindingRow, Row, Score, Unit, show, show_interval

CLEARING = "A floor is cleared when the 95 % interval of the paired difference lies above zero."


def to_markdown(scores: Scores) -> str:
    names = list(scores.floors)
    verdict = verdict_of(scores)
    lines = [
        f"# Evaluation of {scores.facts['num_reports']} draft reports",
        "",
        f"**{verdict.words}**",
        *(f"- {reason}" for reason in verdict.reasons),
        *(f"- {warning}" for warning in warnings_of(scores)),
        "",
        f"Drafts with 95 % interval, beside the floors. {CLEARING}",
        "",
        _cells(["score", "drafts [95 % CI]", *names, "clears every floor"]),
        _cells(["---", "---:", *["---:"] * len(names), "---"]),
        *(_cells([row_name(row), *values(row, names), cleared(row)]) for row in scores.rows),
        "",
        "Floors:",
        *(f"- {name}: {words}" for name, words in scores.floors.items()),
        *_comparison_lines(scores),
        *_judge_lines(scores),
        "",
        "Signatures:",
        *(f"- {row.score.name}: `{row.score.signature}`" for row in scores.rows),
    ]
    return "\n".join(lines) + "\n"


def to_model_card(scores: Scores) -> str:
    """A section to paste: the headline scores with floors and signatures, and what they do not show."""
    facts = scores.facts
    lines = [
        "## Evaluation",
        "",
        verdict_of(scores).words,
        "",
        f"{facts['num_reports']} reports ({facts['examination']}, {facts['language']}), coverage "
        f"{facts['coverage']:.1%}, text protocol `{facts['protocol']}`; 95 % intervals from "
        f"{facts['bootstrap']['resamples']} resamples by {facts['bootstrap']['by']}.",
        "",
        "| score | value [95 % CI] | best floor that has seen no image | signature |",
        "| --- | ---: | ---: | --- |",
    ]
    for name in (*HEADLINES, "hallucination", "omission", "side accuracy", "CRG"):
        row = next((r for r in scores.rows if r.score.name == name), None)
        if row is not None:
            floor = best_floor(row)
            lines.append(
                f"| {row_name(row)} | {show_interval(row.score, row.unit)} | "
                f"{'' if floor is None else f'{show(floor[1], row.unit)} ({floor[0]})'} | "
                f"`{row.score.signature}` |"
            )
    lines += ["", "Findings were read from both texts by rules; not for clinical use."]
    return "\n".join(lines) + "\n"


def to_findings_csv(scores: Scores) -> str:
    floors = list(scores.findings[0].f1.floors) if scores.findings else []
    header = ["finding", "in_references", "in_drafts", "matched", "precision", "recall", "f1"]
    header += ["f1_ci95_low", "f1_ci95_high", *(f"f1_of_{name.replace(' ', '_')}" for name in floors)]
    rows = []
    for row in scores.findings:
        values = [row.precision.value, row.recall.value, row.f1.score.value, *row.f1.score.ci95]
        values += [row.f1.floors[name].value for name in floors]
        counts = [row.code, row.num_references, row.num_drafts, row.num_matched]
        rows.append([*counts, *map(_number, values), " ".join(row.f1.not_cleared), row.f1.score.signature])
    return _csv([*header, "not_cleared", "signature"], rows)


def to_cases_csv(scores: Scores) -> str:
    names = list(scores.cases[0].scores) if scores.cases else []
    header = ["id", "errors", "missed", "invented", "contradicted", "differs", "conflicts"]
    rows = [
        [case.id, case.num_errors, *map("; ".join, (case.missed, case.invented, case.contradicted))]
        + ["; ".join(case.differs), "; ".join(case.conflicts), int(case.temporal), int(case.empty)]
        + [_number(case.scores[name]) for name in names]
        for case in scores.cases
    ]
    return _csv([*header, "temporal_claim", "empty", *names], rows)


def to_subgroups_csv(scores: Scores) -> str:
    header = ["field", "group", "n", "score", "value", "ci95_low", "ci95_high", "gap"]
    rows = [
        [row.field, row.group, row.num, row.score]
        + [_number(v) for v in (row.value, *row.ci95, row.gap, *row.gap_ci95, row.p, row.p_adjusted)]
        for row in scores.subgroups
    ]
    return _csv([*header, "gap_ci95_low", "gap_ci95_high", "p", "p_benjamini_hochberg"], rows)


def to_comparison_csv(scores: Scores) -> str:
    header = ["score", "a", "b", "gap", "gap_ci95_low", "gap_ci95_high", "p", "p_holm", "smallest_p"]
    rows = [
        [row.score]
        + [_number(v) for v in (row.a, row.b, row.gap, *row.gap_ci95, row.p, row.p_holm, row.smallest_p)]
        + [row.winner, row.signature]
        for row in scores.comparison
    ]
    return _csv([*header, "better", "signature"], rows)


def to_json(scores: Scores) -> str:
    """`scores` holds each score by its name: value, ci95, signature, n."""
    verdict = verdict_of(scores)
    content = {
        **scores.facts,
        "verdict": {"grade": verdict.grade, "words": verdict.words, "reasons": verdict.reasons},
        "warnings": warnings_of(scores),
        "floors": scores.floors,
        "scores": {row.score.name: _row_json(row) for row in scores.rows},
        "findings": [_finding_json(row) for row in scores.findings],
        "flagged": {row.score.name: below(row) for row in scores.flagged},
        "subgroups": [asdict(row) for row in scores.subgroups],
        "card": [{**asdict(row), "holds": row.holds} for row in scores.card],
        "calibration": [asdict(row) for row in scores.reliabilities],
        "risk_coverage": None if scores.risk is None else asdict(scores.risk),
        "comparison": [{**asdict(row), "better": row.winner} for row in scores.comparison],
        "judges": [
            {
                "name": judged.judge.name,
                "source": judged.judge.source,
                "version": judged.version,
                "values": judged.values,
                "skipped": judged.skipped,
            }
            for judged in scores.judged
        ],
    }
    return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def row_name(row: Row) -> str:
    unit = "" if row.unit is Unit.RATE else f" ({row.unit})"
    return f"{row.score.name}{'' if row.higher_is_better else ' ↓'}{unit}"


def values(row: Row, floors: Sequence[str]) -> list[str]:
    """The drafts' with its interval, then each floor's."""
    beside = [show(row.floors[name].value, row.unit) if name in row.floors else "" for name in floors]
    return [show_interval(row.score, row.unit), *beside]


def cleared(row: Row) -> str:
    if worse := [name for name in below(row) if not row.gaps[name].value > 0]:
        return f"NO: {', '.join(worse)}"
    if below(row):
        return f"not clearly: {', '.join(below(row))}"
    if below_retrieval(row):
        return "yes, but not retrieval"
    return "yes" if row.gaps else ""


def _comparison_lines(scores: Scores) -> Iterable[str]:
    if not scores.comparison:
        return
    yield from (
        "",
        "A is these drafts, B the others; p by approximate randomisation, Holm over the scores.",
        "",
    )
    yield _cells(["score", "A", "B", "B better by [95 % CI]", "p (Holm)", "smallest p", "better"])
    yield _cells(["---", "---:", "---:", "---:", "---:", "---:", "---"])
    for row in scores.comparison:
        gap = f"{row.gap:+.3f} [{row.gap_ci95[0]:+.3f}, {row.gap_ci95[1]:+.3f}]"
        p = f"{row.p:.4f} ({row.p_holm:.4f})"
        cells = [row.score, f"{row.a:.3f}", f"{row.b:.3f}", gap, p, f"{row.smallest_p:.1e}", row.winner]
        yield _cells([cell.replace("nan", "–") for cell in cells])


def _judge_lines(scores: Scores) -> Iterable[str]:
    if scores.judged:
        yield from ("", "Judges:")
    for judged in scores.judged:
        said = ", ".join(f"{name} {value:.3f}" for name, value in judged.values.items())
        yield f"- {judged.judge.name}: {said or f'skipped, {judged.skipped}'}"


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return file.getvalue()


def _number(value: float) -> float | str:
    return "" if math.isnan(value) else round(value, 6)


def _row_json(row: Row) -> dict[str, object]:
    return {
        **_score_json(row.score),
        "unit": row.unit,
        "higher_is_better": row.higher_is_better,
        "floors": {name: _score_json(score) for name, score in row.floors.items()},
        "gaps": {
            name: {"value": gap.value, "ci95": gap.ci95, "clears": gap.clears}
            for name, gap in row.gaps.items()
        },
        "below": below(row),
    }


def _finding_json(row: FindingRow) -> dict[str, object]:
    return {
        "code": row.code,
        "in_references": row.num_references,
        "in_drafts": row.num_drafts,
        "matched": row.num_matched,
        "precision": _score_json(row.precision),
        "recall": _score_json(row.recall),
        "f1": _row_json(row.f1),
    }


def _score_json(score: Score) -> dict[str, object]:
    known = not math.isnan(score.ci95[0])
    return {
        "value": score.value,
        "ci95": score.ci95 if known else None,
        "signature": score.signature,
        "n": score.num_reports,
    }


def _plain(value: object) -> object:
    """NaN and infinity have no place in JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
