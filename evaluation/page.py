"""Scores -> page.html, table.md, per_finding.csv and metrics.json, as text.

The page is one file without scripts or links; every text in it is escaped. It holds the reports
of the worst pairs, so it is as confidential as they are.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined

from evaluation.score import Case, FindingRow, Row, Score, Scores, Unit, show, show_interval

PLOTTED = ("BLEU-4", "F1 macro", "F1 micro", "side accuracy", "site accuracy", "exact match")
FEW_REPORTS = 30
# of one plot, in CSS pixels
_WIDTH, _LEFT, _RIGHT, _BAR, _STEP = 360, 92, 48, 11, 19


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a plot, in pixels; low and high are the ends of the whisker."""

    label: str
    shown: str
    y: float
    x: float
    low: float | None
    high: float | None
    is_draft: bool


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    alt: str
    height: float
    flagged: bool
    bars: tuple[Bar, ...]


def to_markdown(scores: Scores) -> str:
    names = list(scores.floors)
    lines = [
        f"# Evaluation of {scores.facts['num_reports']} draft reports",
        "",
        "Drafts with 95 % interval, beside the floors. " + _clearing(),
        "",
        _cells(["score", "drafts [95 % CI]", *names, "clears every floor"]),
        _cells(["---", "---:", *["---:"] * len(names), "---"]),
        *(_cells([row_name(row), *_values(row, names), verdict(row)]) for row in scores.rows),
        "",
        "Floors:",
        *(f"- {name}: {words}" for name, words in scores.floors.items()),
        "",
        "Signatures:",
        *(f"- {row.score.name}: `{row.score.signature}`" for row in scores.rows),
        *(f"\n{warning}" for warning in warnings(scores)),
    ]
    return "\n".join(lines) + "\n"


def to_csv(scores: Scores) -> str:
    file = io.StringIO()
    floors = list(scores.findings[0].f1.floors) if scores.findings else []
    table = csv.writer(file, lineterminator="\n")
    table.writerow(
        ["finding", "in_references", "in_drafts", "matched"]
        + ["precision", "recall", "f1", "f1_ci95_low", "f1_ci95_high"]
        + [f"f1_of_{name.replace(' ', '_')}" for name in floors]
        + ["not_cleared", "signature"]
    )
    for row in scores.findings:
        values = [row.precision.value, row.recall.value, row.f1.score.value, *row.f1.score.ci95]
        values += [row.f1.floors[name].value for name in floors]
        table.writerow(
            [row.code, row.num_references, row.num_drafts, row.num_matched]
            + ["" if math.isnan(value) else round(value, 6) for value in values]
            + [" ".join(row.f1.not_cleared), row.f1.score.signature]
        )
    return file.getvalue()


def to_json(scores: Scores) -> str:
    content = {
        **scores.facts,
        "floors": scores.floors,
        "scores": [_row_json(row) for row in scores.rows],
        "findings": [_finding_json(row) for row in scores.findings],
        "not_cleared": {row.score.name: list(row.not_cleared) for row in scores.flagged},
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_html(scores: Scores) -> str:
    # scores are shown by the same functions as in the table, so page and table cannot disagree
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(_PAGE).render(
        scores=scores,
        facts=scores.facts,
        plots=[plot(scores[name]) for name in PLOTTED],
        findings=[row for row in scores.findings if row.num_references or row.num_drafts],
        unseen=[row.code for row in scores.findings if not (row.num_references or row.num_drafts)],
        warnings=warnings(scores),
        clearing=_clearing(),
        row_name=row_name,
        verdict=verdict,
        values=_values,
        show=show,
        show_interval=show_interval,
        faults=faults,
        rate=Unit.RATE,
        width=_WIDTH,
        left=_LEFT,
        bar=_BAR,
    )


def row_name(row: Row) -> str:
    arrow = "" if row.higher_is_better else " ↓"
    return f"{row.score.name}{arrow} ({row.unit})"


def verdict(row: Row) -> str:
    if row.not_cleared:
        return f"NO: {', '.join(row.not_cleared)}"
    return "yes" if row.gaps else "not comparable"


def warnings(scores: Scores) -> list[str]:
    facts = scores.facts
    counted = {
        "drafts are missing and score as empty reports": len(facts["missing"]),
        "drafts are empty": facts["empty_drafts"],
        "references are empty": facts["empty_references"],
        "references do not parse and count as stating nothing": facts["references_not_parsed"],
        "drafts do not parse and count as stating nothing": facts["drafts_not_parsed"],
    }
    found = [f"{count} of {facts['num_reports']} {words}." for words, count in counted.items() if count]
    if not any(row.num_references for row in scores.findings):
        found.append("No reference states a finding as present: the scores of findings measure little.")
    if facts["num_reports"] < FEW_REPORTS:
        found.append(f"Only {facts['num_reports']} reports: the intervals are rough.")
    return found


def faults(case: Case) -> list[str]:
    return [
        *(f"missed {code}" for code in case.missed),
        *(f"invented {code}" for code in case.invented),
        *([f"wrong side: {case.wrong_sides}"] if case.wrong_sides else []),
    ]


def plot(row: Row) -> Plot:
    shown: dict[str, Score] = {"drafts": row.score, **row.floors}
    bars = tuple(_bar(name, score, row.unit, place) for place, (name, score) in enumerate(shown.items()))
    return Plot(
        title=row.score.name,
        alt="; ".join(f"{bar.label} {bar.shown}" for bar in bars),
        height=len(bars) * _STEP + 2,
        flagged=bool(row.not_cleared),
        bars=bars,
    )


def _bar(name: str, score: Score, unit: Unit, place: int) -> Bar:
    full = 100 if unit is Unit.POINTS else 1
    low, high = (None if math.isnan(end) else _pixel(end / full) for end in score.ci95)
    x = 0.0 if math.isnan(score.value) else _pixel(score.value / full)
    return Bar(name, show(score.value, unit), place * _STEP + 4, x, low, high, is_draft=place == 0)


def _pixel(share: float) -> float:
    return round(share * (_WIDTH - _LEFT - _RIGHT), 1)


def _clearing() -> str:
    return "A floor is cleared when the 95 % interval of the paired difference lies above zero."


def _values(row: Row, floors: Sequence[str]) -> list[str]:
    beside = [show(row.floors[name].value, row.unit) if name in row.floors else "" for name in floors]
    return [show_interval(row.score, row.unit), *beside]


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _row_json(row: Row) -> dict[str, object]:
    return {
        **_score_json(row.score),
        "unit": row.unit,
        "higher_is_better": row.higher_is_better,
        "floors": {name: _score_json(score) for name, score in row.floors.items()},
        "gaps": {
            name: {"value": gap.value, "ci95": _interval_json(gap.ci95), "clears": gap.clears}
            for name, gap in row.gaps.items()
        },
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
    return {
        "name": score.name,
        "value": None if math.isnan(score.value) else score.value,
        "ci95": _interval_json(score.ci95),
        "signature": score.signature,
        "num_reports": score.num_reports,
    }


def _interval_json(interval: tuple[float, float]) -> list[float] | None:
    return None if math.isnan(interval[0]) else list(interval)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Evaluation of {{ facts.num_reports }} draft reports</title>
<style>
:root { --ink: #22303a; --soft: #64727d; --line: #e3e8eb; --draft: #2b6f78; --floor: #c9d2d8;
        --warn: #8a5410; --warn-bg: #fdf6ea; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 40px 32px 64px; max-width: 1240px; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 4px; font-size: 26px; font-weight: 600; }
h2 { margin: 44px 0 12px; font-size: 18px; font-weight: 600; }
p { margin: 4px 0; max-width: 85ch; }
.soft { color: var(--soft); font-size: 13px; }
.note { margin: 20px 0 0; padding: 12px 16px; border-left: 3px solid var(--draft); background: #f3f8f8; }
.warn { border-color: #d9963a; background: var(--warn-bg); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 22px 28px; }
.plots figure { margin: 0; }
.plots figcaption { font-weight: 600; font-size: 14px; margin-bottom: 4px; }
svg text { fill: var(--soft); } svg .ours text { fill: var(--ink); }
svg rect { fill: var(--floor); } svg .ours rect { fill: var(--draft); }
svg path { fill: none; stroke: #7d8a93; } svg .ours path { stroke: #12393e; }
svg { display: block; width: 100%; max-width: 380px; height: auto; font: 12px system-ui, sans-serif; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; font-size: 13px; color: var(--soft);
     border-bottom: 1px solid #b9c4cb; padding: 6px 10px; vertical-align: bottom; }
td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:last-child { white-space: normal; min-width: 110px; }
td.floor { color: var(--soft); }
.flag { color: var(--warn); font-weight: 600; }
.words { text-align: left; white-space: normal; }
.case { margin: 0 0 20px; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.case header { padding: 8px 14px; background: #f6f8f9; font-size: 13px; overflow-wrap: anywhere; }
.case .pair { display: grid; grid-template-columns: 1fr 1fr; }
.case .pair > div { padding: 10px 14px 12px; overflow-wrap: anywhere; min-width: 0; }
.case .pair > div + div { border-left: 1px solid var(--line); }
.case .text { white-space: pre-wrap; font-size: 14px; }
.chip { display: inline-block; margin-left: 6px; padding: 0 8px; border-radius: 9px;
        color: var(--warn); background: var(--warn-bg); font-size: 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; font-size: 13px; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
code { font: 12px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
@media (max-width: 720px) { .case .pair { grid-template-columns: 1fr; }
  .case .pair > div + div { border-left: 0; border-top: 1px solid var(--line); }
  body { padding: 24px 16px; } }
</style>
</head>
<body>
<h1>Evaluation of {{ facts.num_reports }} draft reports</h1>
<p class="soft">Coverage {{ "%.1f"|format(100 * facts.coverage) }} % ·
{{ facts.distinct_drafts }} distinct drafts ·
95 % intervals from {{ facts.bootstrap.resamples }} resamples by {{ facts.bootstrap.by }} ·
not for clinical use</p>

{% if scores.flagged %}
<div class="note warn"><strong>{{ scores.flagged|length }} of {{ scores.rows|length }} scores
{{ "does" if scores.flagged|length == 1 else "do" }} not clear a floor.</strong>
Not shown to be better than a draft that takes no image:
{% for row in scores.flagged %}
{{ row.score.name }} ({{ row.not_cleared|join(", ") }}){{ "; " if not loop.last else "." }}
{% endfor %}</div>
{% else %}
<div class="note">Every comparable score clears every floor.</div>
{% endif %}
{% for warning in warnings %}
<div class="note warn">{{ warning }}</div>
{% endfor %}

<h2>Drafts beside the floors</h2>
<div class="plots">
{% for plot in plots %}
<figure>
<figcaption>{{ plot.title }}
{% if plot.flagged %}<span class="chip">does not clear</span>{% endif %}</figcaption>
<svg viewBox="0 0 {{ width }} {{ plot.height }}" role="img" aria-label="{{ plot.title }}: {{ plot.alt }}">
<line x1="{{ left }}" x2="{{ left }}" y1="0" y2="{{ plot.height }}" stroke="#b9c4cb"/>
{% for b in plot.bars %}
<g class="{{ 'ours' if b.is_draft else 'floor' }}">
<text x="{{ left - 8 }}" y="{{ b.y + 9.5 }}" text-anchor="end">{{ b.label }}</text>
<rect x="{{ left }}" y="{{ b.y }}" width="{{ b.x }}" height="{{ bar }}" rx="1.5"/>
{% if b.low is not none and b.low < b.high %}
<path d="M{{ left + b.low }} {{ b.y + 2.5 }}v6m0 -3H{{ left + b.high }}m0 -3v6"/>
{% endif %}
<text x="{{ left + [b.x, b.high or 0]|max + 7 }}" y="{{ b.y + 9.5 }}">{{ b.shown }}</text>
</g>
{% endfor %}
</svg>
</figure>
{% endfor %}
</div>
<p class="soft">Bars run from 0 to 100 (BLEU) or from 0 to 1; whiskers are 95 % intervals.</p>

<h2>Scores</h2>
<div class="wide"><table>
<tr><th>score</th><th>drafts [95 % CI]</th>
{% for name in scores.floors %}<th>{{ name }}</th>{% endfor %}<th>clears every floor</th></tr>
{% for row in scores.rows %}
<tr><td title="{{ row.score.signature }}">{{ row_name(row) }}</td>
{% for value in values(row, scores.floors) %}
<td{% if not loop.first %} class="floor"{% endif %}>{{ value }}</td>
{% endfor %}
<td{% if row.not_cleared %} class="flag"{% endif %}>{{ verdict(row) }}</td></tr>
{% endfor %}
</table></div>
<p class="soft">↓ lower is better. {{ clearing }}</p>

<h2>Findings</h2>
<div class="wide"><table>
<tr><th>finding</th><th>in references</th><th>in drafts</th><th>matched</th><th>precision</th><th>recall</th>
<th>F1 [95 % CI]</th>{% for name in scores.floors %}<th>F1 {{ name }}</th>{% endfor %}
<th>clears every floor</th></tr>
{% for row in findings %}
<tr><td title="{{ row.f1.score.signature }}">{{ row.code }}</td><td>{{ row.num_references }}</td>
<td>{{ row.num_drafts }}</td><td>{{ row.num_matched }}</td>
<td>{{ show(row.precision.value, rate) }}</td><td>{{ show(row.recall.value, rate) }}</td>
{% for value in values(row.f1, scores.floors) %}
<td{% if not loop.first %} class="floor"{% endif %}>{{ value }}</td>
{% endfor %}
<td{% if row.f1.not_cleared %} class="flag"{% endif %}>{{ verdict(row.f1) }}</td></tr>
{% endfor %}
</table></div>
{% if unseen %}<p class="soft">Present in no report: {{ unseen|join(", ") }}.</p>{% endif %}

<h2>Worst {{ scores.worst|length }} pairs</h2>
<p class="soft">Most wrong findings first, then the lowest BLEU-4 of the pair.</p>
{% for case in scores.worst %}
<article class="case">
<header><strong>{{ case.id }}</strong> · BLEU-4 {{ "%.1f"|format(case.bleu4) }} of this pair
{%- for fault in faults(case) %}<span class="chip">{{ fault }}</span>{% endfor %}</header>
<div class="pair">
<div><div class="soft">reference</div><div class="text">{{ case.reference or "(empty)" }}</div></div>
<div><div class="soft">draft</div><div class="text">{{ case.draft or "(empty)" }}</div></div>
</div></article>
{% endfor %}

<h2>How it was made</h2>
<dl>
{% for name, words in scores.floors.items() %}<dt>{{ name }}</dt><dd>{{ words }}</dd>
{% endfor %}
{% for role, file in facts.get("inputs", {}).items() %}
<dt>{{ role }}</dt>
<dd>{{ file.file }}, {{ file.reports }} reports, sha256 <code>{{ file.sha256 }}</code></dd>
{% endfor %}
<dt>versions</dt>
<dd>{% for name, number in facts.versions.items() %}{{ name }} {{ number }}{{ ", " if not loop.last }}
{%- endfor %}</dd>
{% for row in scores.rows %}
<dt>{{ row.score.name }}</dt>
<dd><code>{{ row.score.signature }}|n:{{ row.score.num_reports }}</code></dd>
{% endfor %}
</dl>
</body>
</html>
"""
