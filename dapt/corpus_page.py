"""What corpus.json says -> corpus.html and a table for the terminal: is this what I meant to train on?

Without scripts, links or fonts from elsewhere, and without a word of a report. Knows no files.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, StrictUndefined

SPLITS = ("train", "validation", "test")
COUNTS = {
    "examples": "examples",
    "patients": "patients",
    "studies": "studies",
    "images": "with an image",
    "distinct_images": "distinct images",
    "reports": "with a report",
    "both": "with both",
    "contexts": "with a request",
}
ADVICE = {
    "patient": "the same patient",
    "image": "the same image",
    "report": "a report word for word, or with 80 % of its runs of eight words,",
}


def to_page(about: dict[str, Any]) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_PAGE).render(
        about=about,
        counts=[(words, [about["splits"][s][name] for s in SPLITS]) for name, words in COUNTS.items()],
        lengths=[_length(about["splits"][s]["report_words"]) for s in SPLITS],
        prevalence=_prevalence(about),
        warnings=warnings_of(about),
        splits=SPLITS,
    )


def to_table(about: dict[str, Any]) -> str:
    """The same in short, for a terminal."""
    rows: list[tuple[str, ...]] = [("", *SPLITS)]
    rows += [(words, *(f"{about['splits'][s][name]:,}" for s in SPLITS)) for name, words in COUNTS.items()]
    rows.append(("words of a report", *(_length(about["splits"][s]["report_words"]) for s in SPLITS)))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    labels = ", ".join(f"{number:,} {name}" for name, number in about["labels"].items())
    return "\n".join([*(line.rstrip() for line in lines), f"findings: {labels}", *warnings_of(about)])


def warnings_of(about: dict[str, Any]) -> list[str]:
    """What somebody should look at before they train."""
    said = []
    if about["refused"]:
        total = sum(about["refused"].values())
        codes = ", ".join(f"{number} x {code}" for code, number in about["refused"].items())
        said.append(f"refused: {total} ({codes}); see refused.csv")
    for what, number in about["leakage"]["found"].items():
        kind, _, where = what.partition(": ")
        split, _, other = where.partition(" in ")
        beside = ""
        if kind == "report":
            repeated = about["leakage"]["repeated_within"][other]
            beside = f" (within {other}, {repeated:,} share every word with another patient's)"
        said.append(f"leak: {number:,} of {split} have {ADVICE[kind]} in {other}{beside}; see leakage.csv")
    found, masked = about["privacy"]["found"], about["privacy"]["masked"]
    if found:
        kinds = ", ".join(f"{number:,} x {kind}" for kind, number in found.items())
        done = "masked" if masked else "NOT masked (--mask replaces them)"
        said.append(f"may name somebody: {kinds} in {about['privacy']['examples']:,} examples; {done}")
    if about.get("unused_images"):
        said.append(
            f"images of earlier settings or sources: {about['unused_images']:,}; nothing here uses them"
        )
    return said


def _length(quarters: list[int]) -> str:
    """Median, shortest to longest."""
    return f"{quarters[2]} ({quarters[0]}-{quarters[4]})" if quarters else "-"


def _prevalence(about: dict[str, Any]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Of each finding, in each split: words, and per cent of those of whom it is known."""
    codes: dict[str, int] = {}
    for split in SPLITS:
        for code, (present, _) in about["splits"][split]["findings"].items():
            codes[code] = codes.get(code, 0) + present
    rows = []
    for code in sorted(codes, key=lambda c: -codes[c]):
        cells = []
        for split in SPLITS:
            present, known = about["splits"][split]["findings"].get(code, (0, 0))
            share = 100 * present / known if known else 0.0
            cells.append((f"{present:,} of {known:,}" if known else "-", share))
        rows.append((code.replace("_", " "), cells))
    return rows


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Corpus: {{ about.kind }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .9rem .2rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 1px solid #9aa7b4; }
.bar { display: inline-block; height: .6rem; background: #35689a; vertical-align: middle; }
.bar { margin-left: .4rem; }
.room { display: inline-block; width: 6rem; text-align: left; }
li { margin: .2rem 0; } .quiet { color: #5b6875; }
</style></head><body>
<h1>Corpus: {{ about.kind }}</h1>
<p>{{ about.examination or "pictures and texts of any examination" }};
languages: {{ about.languages | join(", ") or "none" }};
findings: {% for name, number in about.labels.items() %}
{{ number }} {{ name }}{{ ", " if not loop.last }}{% endfor %}.</p>
<h2>To look at first</h2>
{% if warnings %}<ul>{% for line in warnings %}<li>{{ line }}</li>{% endfor %}</ul>
{% else %}<p>Nothing was refused, no split has anything of another,
and no rule found what may name somebody.</p>
{% endif %}
<h2>What it holds</h2>
<table><thead><tr><th></th>{% for s in splits %}<th>{{ s }}</th>{% endfor %}</tr></thead><tbody>
{% for words, cells in counts %}
<tr><td>{{ words }}</td>{% for n in cells %}<td>{{ "{:,}".format(n) }}</td>{% endfor %}</tr>
{% endfor %}
<tr><td>words of a report, median (from-to)</td>{% for cell in lengths %}<td>{{ cell }}</td>{% endfor %}</tr>
</tbody></table>
{% if prevalence %}
<h2>Findings</h2>
<p class="quiet">Present, of those of whom it is known; the bar is the share.</p>
<table><thead><tr><th></th>{% for s in splits %}<th>{{ s }}</th>{% endfor %}</tr></thead><tbody>
{% for name, cells in prevalence %}
<tr><td>{{ name }}</td>
{% for words, share in cells %}
<td>{{ words }}<span class="room"><span class="bar" style="width: {{ "%.0f" | format(share) }}%">
</span></span></td>
{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endif %}
{% if about.refused %}
<h2>Refused</h2>
<table><thead><tr><th>what and why</th><th>number</th></tr></thead><tbody>
{% for code, number in about.refused.items() %}
<tr><td>{{ code }}</td><td>{{ number }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
<p class="quiet">Rules find some of what may name a person, not all of it.
confidential/ leads back to the files: it stays where the archive is.</p>
</body></html>
"""
