"""Reports that people wrote and labelled -> how well the extractor finds their labels, beside negspacy.

    python -m evaluation.extractor DIR [--half held-out|tuned|all] [--errors LABEL]
    python -m evaluation.extractor --styles 200

DIR holds train.csv as CT-RATE publishes it (Hamamci et al., 2024): AccessionNo, report_text, and a column
of 0 or 1 for each of 18 labels. A report whose number is odd belongs to the half that the lexicon may be
tuned on, an even one to the half that is only scored. `--errors` shows the sentences behind the errors of
one label, of the tuned half alone. negspacy is a peer and no dependency: without it its rows are missing.
It gets the names that our lexicon found, in the right organs, and decides on negation only.

`--styles`: chest reports of random findings in every packaged style, of both languages, whose truth is
known to the last millimetre: how many sentences the extractor reads as they are meant. It does not know the
styles, but its lexicons were completed on them: this measures that nothing was lost since.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.findings import code_measures, count_findings, finding_measures
from evaluation.roundtrip import SEED, FindingSet, finding_sets, write
from evaluation.score import Unit, show, show_interval
from evaluation.statistics import Resamples, draw_resamples, estimate, to_score
from mla_med.errors import ConfigError, MlaMedError
from mla_med.report.extract import extract, find_names, find_present
from mla_med.report.parse import parse_sentence
from mla_med.report.render import body_text
from mla_med.report.schema import CHEST_CT, SCHEMAS
from mla_med.report.style import Style, load_style, packaged_languages, packaged_styles
from mla_med.types import Finding, Presence

LABELS = {kind.label: code for code, kind in CHEST_CT.items() if kind.label}
BAR_MACRO_F1 = 0.93
BAR_MS = 5.0
HALVES = ("held-out", "tuned", "all")
Reader = Callable[[str], set[str]]
"""Text -> the codes that it states as present."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """One report and what a radiologist's label says is present in it."""

    name: str
    text: str
    present: frozenset[str]

    @property
    def half(self) -> str:
        return "tuned" if int(re.sub(r"\D", "", self.name)) % 2 else "held-out"


@dataclass(frozen=True, slots=True)
class Result:
    """What one reader made of every report."""

    name: str
    found: tuple[frozenset[str], ...]
    ms: float
    """Of processor time, per report."""


def read_labelled(folder: Path) -> list[Labelled]:
    path = folder / "train.csv"
    if not path.is_file():
        raise ConfigError(f"{folder} holds no train.csv of CT-RATE.", code="DATA_MISSING")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = sorted(set(LABELS) - set(rows[0] if rows else ()))
    if missing:
        raise ConfigError(f"{path} has no column '{missing[0]}', or no row.", code="DATA_INVALID")
    return [
        Labelled(
            row["AccessionNo"],
            row["report_text"],
            frozenset(code for label, code in LABELS.items() if row[label] == "1"),
        )
        for row in rows
    ]


def read_ours(text: str) -> set[str]:
    return find_present(extract(text))


def read_names(text: str) -> set[str]:
    """Every finding that is named counts: what it costs to know no negation."""
    return {code for code, _ in find_names(text)}


def negspacy_reader() -> Reader:
    """negspacy (NegEx: Chapman et al., J Biomed Inform 2001) with its own English triggers."""
    spacy: Any = importlib.import_module("spacy")
    importlib.import_module("negspacy.negation")
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    negex = nlp.create_pipe("negex", config={"span_keys": ["sc"]})

    def read(text: str) -> set[str]:
        doc = nlp(text)
        named = find_names(text)
        spans = [doc.char_span(*span, label=code, alignment_mode="expand") for code, span in named]
        doc.spans["sc"] = [span for span in spans if span is not None]
        return {span.label_ for span in negex(doc).spans["sc"] if not span._.negex}

    return read


def default_readers() -> dict[str, Reader]:
    readers: dict[str, Reader] = {"mla_med": read_ours}
    if importlib.util.find_spec("negspacy"):
        readers[f"negspacy {version('negspacy')}"] = negspacy_reader()
    readers["names alone"] = read_names
    return readers


def read_all(name: str, reader: Reader, reports: Sequence[Labelled]) -> Result:
    reader(reports[0].text)  # compiles what is compiled once
    began = time.process_time()
    found = tuple(frozenset(reader(report.text)) for report in reports)
    return Result(name, found, (time.process_time() - began) / len(reports) * 1000)


@dataclass(frozen=True, slots=True)
class Row:
    """One label: precision, recall, F1 as text with intervals, and how many reports have it."""

    label: str
    num: int
    cells: tuple[str, ...]


def score(reports: Sequence[Labelled], result: Result) -> tuple[list[Row], dict[str, float]]:
    """-> a row for each label and the two means, and their values by name."""
    codes = list(LABELS.values())
    counts = count_findings(
        [_to_findings(report.present) for report in reports],
        [_to_findings(found & set(codes)) for found in result.found],
        codes,
    )
    resamples = draw_resamples([report.name for report in reports], "report")
    rows = [
        Row(label, sum(code in r.present for r in reports), _cells(code_measures(counts, code), resamples))
        for label, code in LABELS.items()
    ]
    means = {m.name: m for m in finding_measures(counts)}
    for mean in ("macro", "micro"):
        three = [means[f"{rate} {mean}"] for rate in ("precision", "recall", "F1")]
        rows.append(Row(f"**{mean}**", sum(row.num for row in rows[:18]), _cells(three, resamples)))
    values = {
        mean: float(means[f"F1 {mean}"].statistic(np.ones((1, len(reports))))[0])
        for mean in ("macro", "micro")
    }
    return rows, values


def _cells(measures: Sequence, resamples: Resamples) -> tuple[str, ...]:
    scores = [to_score(m, estimate(m.statistic, resamples), "", resamples) for m in measures]
    return (*(show(s.value, Unit.RATE) for s in scores[:-1]), show_interval(scores[-1], Unit.RATE))


def _to_findings(codes: frozenset[str]) -> tuple[Finding, ...]:
    return tuple(Finding(code) for code in sorted(codes))


def explain(reports: Sequence[Labelled], label: str) -> list[str]:
    """A line for each error of a label: invented with its sentence, or missed with all that was read."""
    if label not in LABELS:
        raise ConfigError(f"No label '{label}'; there are: {', '.join(LABELS)}.", code="LABEL_UNKNOWN")
    code, lines = LABELS[label], []
    for report in reports:
        mentions = [m for m in extract(report.text) if m.code == code]
        found = any(m.presence is Presence.PRESENT for m in mentions)
        if found == (code in report.present):
            continue
        kind = "invented" if found else "missed"
        said = [
            f"[{m.presence}: {report.text[m.start : m.end]}] {report.text[slice(*m.sentence)]}"
            for m in mentions
            if not found or m.presence is Presence.PRESENT
        ]
        lines.append(f"{report.name} {kind}: " + (" | ".join(said) or "not named"))
    return lines


@dataclass(frozen=True, slots=True)
class StyleRow:
    """One style: sentences, and in how many of them each thing is read otherwise than it was meant; whole
    texts, and how many state other findings as present than were found."""

    name: str
    sentences: int
    wrong: Mapping[str, int]
    texts: int
    texts_wrong: int


ASPECTS = ("finding", "presence", "side", "site", "size", "count", "change")


def read_style(style: Style, sets: Sequence[FindingSet], seed: int = SEED) -> StyleRow:
    rng, wrong, sentences, texts_wrong = random.Random(seed), Counter[str](), 0, 0
    for chosen in sets:
        # an interpretation speaks of what may be, in words that no finding stands for
        report = write(replace(chosen, interpretations=()), style, rng)
        for sentence in report.sentences:
            meant = parse_sentence(sentence.text, style)
            assert meant is not None, sentence
            sentences += 1
            if (odd := _misread(meant, sentence.text, style.language)) is not None:
                wrong[odd] += 1
        present = {f.code for f in chosen.findings if f.presence is Presence.PRESENT}
        texts_wrong += find_present(extract(body_text(report, style), style.language)) != present
    return StyleRow(f"{style.language}/{style.name}", sentences, wrong, len(sets), texts_wrong)


def _misread(meant: Finding, text: str, language: str) -> str | None:
    """The first thing that the extractor reads otherwise. What is absent or doubted has only a presence."""
    mentions = extract(text, language)
    mine = [m for m in mentions if m.code == meant.code]
    others = [m for m in mentions if m.code != meant.code and m.presence is Presence.PRESENT]
    if not mine or others:
        return "finding"
    if any(m.presence is not meant.presence for m in mine):
        return "presence"
    said, there = mine[0], meant.presence is Presence.PRESENT
    pairs = {
        "side": (meant.side, said.side),
        "site": (meant.site, said.site),
        "size": (meant.size_mm, said.size_mm),
        "count": (meant.count, said.count),
    }
    if there:
        for aspect, (is_, read) in pairs.items():
            if is_ is not None and is_ != read:
                return aspect
    return "change" if said.change is not meant.change else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.extractor", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="folder with CT-RATE's train.csv")
    parser.add_argument("--half", choices=HALVES, default="held-out", help="which reports (%(default)s)")
    parser.add_argument("--errors", metavar="LABEL", help="show the errors of one label in the tuned half")
    parser.add_argument("--styles", type=int, metavar="N", help="read N reports of each packaged style")
    options = parser.parse_args(arguments)
    if not (options.folder or options.styles):
        parser.error("nothing to read: give DIR, or --styles N")
    if options.styles:
        return _print_styles(options.styles)
    try:
        reports = read_labelled(options.folder)
        if options.errors:
            tuned = [r for r in reports if r.half == "tuned"]
            print("\n".join(explain(tuned, options.errors)))
            return 0
        return _print_tables([r for r in reports if options.half in (r.half, "all")], options.half)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1


def _print_styles(n: int) -> int:
    sets = [chosen for chosen in finding_sets(n * len(SCHEMAS)) if chosen.examination == "chest_ct"]
    print(
        f"{n} chest reports of random findings in each style; sentences and texts read otherwise than meant\n"
    )
    print("| style | sentences | " + " | ".join(ASPECTS) + " | whole texts | findings |")
    print("| --- |" + " ---: |" * (3 + len(ASPECTS)))
    wrong = 0
    for language in packaged_languages():
        for name in packaged_styles(language):
            row = read_style(load_style(name, language), sets)
            wrong += sum(row.wrong.values()) + row.texts_wrong
            counts = " | ".join(str(row.wrong.get(aspect, 0)) for aspect in ASPECTS)
            print(f"| {row.name} | {row.sentences} | {counts} | {row.texts} | {row.texts_wrong} |")
    return 1 if wrong else 0


def _print_tables(reports: Sequence[Labelled], half: str) -> int:
    results = [read_all(name, reader, reports) for name, reader in default_readers().items()]
    scored = [score(reports, result) for result in results]
    print(f"{len(reports)} reports of CT-RATE ({half}); F1 with 95 % interval (bootstrap by report)\n")
    print("| label | reports | precision | recall | F1 |" + "".join(f" F1 {r.name} |" for r in results[1:]))
    print("| --- |" + " ---: |" * (3 + len(results)))
    for n, row in enumerate(scored[0][0]):
        others = "".join(f" {rows[n].cells[-1]} |" for rows, _ in scored[1:])
        print(f"| {row.label} | {row.num} | {' | '.join(row.cells)} |{others}")
    print("\n| reader | macro-F1 | micro-F1 | CPU ms a report |\n| --- | ---: | ---: | ---: |")
    for result, (_, values) in zip(results, scored, strict=True):
        print(f"| {result.name} | {values['macro']:.3f} | {values['micro']:.3f} | {result.ms:.1f} |")
    met = scored[0][1]["macro"] >= BAR_MACRO_F1 and results[0].ms < BAR_MS
    print(f"\nBar: macro-F1 >= {BAR_MACRO_F1}, < {BAR_MS:g} ms a report: {'met' if met else 'NOT met'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
