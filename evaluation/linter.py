"""Clean reports, and the same with one planted fault each -> how many faults the linter finds, and how
often it complains of nothing.

    python -m evaluation.linter --n 1000 [--texts FILE ...]

Reports are rendered from random findings in every packaged style of every language; then one thing is
changed in the text alone: a side, a size times ten, a negation, a comparison put in, contrast medium, an
organ of the other sex, a count, a sentence lost or said twice. Found is what any rule complains of, named
what the rule complains of that is made for it. `--texts`: reports that people wrote (a CSV with
`report_text`, or the annotation file of IU X-ray), on which any complaint of `check_text` that is no
contradiction in the report itself would be a false alarm. The seed is fixed.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mla_med.report.check import check_report, check_text
from mla_med.report.parse import parse_report
from mla_med.report.render import (
    complete_findings,
    impression_choices,
    render_report,
    report_text,
    sentence_choices,
)
from mla_med.report.schema import SCHEMAS
from mla_med.report.style import Style, load_style, packaged_languages, packaged_styles
from mla_med.types import Change, ClinicalContext, Finding, Presence, Report, Sentence, Sex, Side

SEED = 20261124
CONTEXT = ClinicalContext(61.0, Sex.FEMALE, "")


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault: how to plant it, and the share of the planted that has to be found."""

    name: str
    bar: float
    rule: str
    """What has to complain of it."""
    plant: Callable[[Report, Style, random.Random], Report | None]
    """None where this report offers no place for it."""


def random_findings(examination: str, rng: random.Random, prior: bool = False) -> tuple[Finding, ...]:
    """A legal set: a fifth present, one in twenty not to be said."""
    chosen = []
    for code, kind in SCHEMAS[examination].items():
        draw = rng.random()
        if draw > 0.25:
            continue
        if draw > 0.2:
            chosen.append(Finding(code, Presence.CANNOT_SAY))
            continue
        for side, site in rng.sample(kind.places, rng.randint(1, min(2, len(kind.places)))):
            size = rng.randint(10, 900) / 10 if kind.has_size else None
            count = rng.randint(2, 12) if kind.countable and rng.random() < 0.3 else None
            change = rng.choice((None, Change.NEW, Change.STABLE)) if prior else None
            chosen.append(Finding(code, Presence.PRESENT, site, side, size, count, change))
    return complete_findings(chosen, examination)


def swap_side(report: Report, style: Style, rng: random.Random) -> Report | None:
    """One sentence says the other side."""
    return _reworded(report, style, rng, lambda f: _mirrored(f, report.examination))


def tenfold_size(report: Report, style: Style, rng: random.Random) -> Report | None:
    return _reworded(report, style, rng, _tenfold)


def swap_side_of_impression(report: Report, style: Style, rng: random.Random) -> Report | None:
    return _misjudged(report, style, rng, lambda f: _mirrored(f, report.examination))


def tenfold_size_of_impression(report: Report, style: Style, rng: random.Random) -> Report | None:
    return _misjudged(report, style, rng, _tenfold)


def lost_negation(report: Report, style: Style, rng: random.Random) -> Report | None:
    """An absent finding is stated as present."""

    def affirm(finding: Finding) -> Finding | None:
        kind = SCHEMAS[report.examination][finding.code]
        if finding.presence is not Presence.ABSENT:
            return None
        side, site = rng.choice(kind.places)
        return Finding(finding.code, Presence.PRESENT, site, side, 12.0 if kind.has_size else None)

    return _reworded(report, style, rng, affirm)


def struck_negation(report: Report, style: Style, rng: random.Random) -> Report | None:
    """The words that deny are cut out of a sentence, whatever remains."""
    cut = [(k, _DENIALS.sub("", s.text, count=1)) for k, s in enumerate(report.sentences)]
    cut = [(k, text) for k, text in cut if text != report.sentences[k].text]
    if not cut:
        return None
    k, text = rng.choice(cut)
    struck = Sentence(text, report.sentences[k].codes)
    return replace(report, sentences=(*report.sentences[:k], struck, *report.sentences[k + 1 :]))


def comparison(report: Report, style: Style, rng: random.Random) -> Report | None:
    """A change is claimed, and there is no prior."""
    return _reworded(
        report,
        style,
        rng,
        lambda f: (
            replace(f, change=rng.choice((Change.NEW, Change.STABLE, Change.DECREASED)))
            if f.presence is Presence.PRESENT
            else None
        ),
    )


def wrong_count(report: Report, style: Style, rng: random.Random) -> Report | None:
    return _reworded(report, style, rng, lambda f: replace(f, count=f.count + 1) if f.count else None)


def lost_sentence(report: Report, style: Style, rng: random.Random) -> Report | None:
    """A required finding is no longer spoken of."""
    schema = SCHEMAS[report.examination]
    said = [code for s in report.sentences for code in s.codes]
    places = [
        k
        for k, s in enumerate(report.sentences)
        if schema[s.codes[0]].required and said.count(s.codes[0]) == 1
    ]
    k = rng.choice(places)
    return replace(report, sentences=(*report.sentences[:k], *report.sentences[k + 1 :]))


def said_twice(report: Report, style: Style, rng: random.Random) -> Report | None:
    sentence = rng.choice(report.sentences)
    return replace(report, sentences=(*report.sentences, sentence))


def lost_impression(report: Report, style: Style, rng: random.Random) -> Report | None:
    """A present finding is no longer in the impression."""
    present = [s for s in report.impression if len(s.codes) == 1]
    codes = [s.codes[0] for s in present]
    alone = [s for s in present if codes.count(s.codes[0]) == 1]
    if not alone or any(f.presence is Presence.CANNOT_SAY for f in report.findings):
        return None
    lost = rng.choice(alone)
    return replace(report, impression=tuple(s for s in report.impression if s is not lost))


def contrast(report: Report, style: Style, rng: random.Random) -> Report | None:
    words = {"en": "CT after intravenous contrast medium.", "zh": "增强扫描。"}
    return replace(report, technique=words[report.language])


def other_sex(report: Report, style: Style, rng: random.Random) -> Report | None:
    words = {"en": "The prostate is enlarged.", "zh": "前列腺增大。"}
    return replace(report, sentences=(*report.sentences, Sentence(words[report.language])))


def _mirrored(finding: Finding, examination: str) -> Finding | None:
    """On the other side, where it has one and can lie there."""
    other = _OTHER.get(finding.side) if finding.side else None
    if other is None or (other, finding.site) not in SCHEMAS[examination][finding.code].places:
        return None
    return replace(finding, side=other)


def _tenfold(finding: Finding) -> Finding | None:
    return replace(finding, size_mm=round(finding.size_mm * 10, 1)) if finding.size_mm else None


_DENIALS = re.compile(
    r"\b(?:no|not|there (?:is|are) no) |: (?:none|no signs)\b|未见(?:明确)?|：无|无|不", re.IGNORECASE
)
_OTHER = {Side.RIGHT: Side.LEFT, Side.LEFT: Side.RIGHT}
FAULTS = (
    Fault("side swapped", 0.99, "SIDE", swap_side),
    Fault("size times ten", 0.99, "SIZE", tenfold_size),
    Fault("negation lost", 0.95, "NEGATION", lost_negation),
    Fault("word of negation struck out", 0.95, "NEGATION", struck_negation),
    Fault("comparison without prior", 1.0, "COMPARISON_WITHOUT_PRIOR", comparison),
    Fault("count changed", 0.99, "COUNT", wrong_count),
    Fault("sentence lost", 0.99, "REQUIRED_SLOT", lost_sentence),
    Fault("said twice", 0.99, "SAID_TWICE", said_twice),
    Fault("not in the impression", 0.99, "IMPRESSION", lost_impression),
    Fault("side swapped in the impression", 0.99, "IMPRESSION", swap_side_of_impression),
    Fault("size times ten in the impression", 0.99, "IMPRESSION", tenfold_size_of_impression),
    Fault("contrast medium", 0.99, "CONTRAST", contrast),
    Fault("organ of the other sex", 0.99, "ORGAN_OF_OTHER_SEX", other_sex),
)


def clean_reports(n: int, seed: int = SEED) -> Iterator[tuple[Report, Style]]:
    """n random reports over examinations, languages and styles in turn."""
    rng = random.Random(seed)
    packs = [load_style(name, lang) for lang in packaged_languages() for name in packaged_styles(lang)]
    pairs = [(pack, examination) for pack in packs for examination in pack.examinations]
    for k in range(n):
        style, examination = pairs[k % len(pairs)]
        found = random_findings(examination, rng)
        yield render_report(found, style, examination, rng=rng), style


def complaints_of(report: Report, style: Style) -> list[str]:
    """The rules that complain, of a report that went through text as a file would."""
    read = parse_report(report_text(report, style), style, report.examination)
    # the truth is what was found, not what the text says of it
    held = replace(read, findings=report.findings)
    return [c.rule for c in check_report(held, CONTEXT, contrast_given=False, style=style)]


@dataclass(frozen=True, slots=True)
class Row:
    """What became of the planted faults of one kind."""

    fault: Fault
    planted: int
    found: int
    named: int

    @property
    def share(self) -> float:
        return self.found / self.planted if self.planted else float("nan")


def measure(n: int) -> tuple[list[Row], Counter[str], float]:
    """-> a row for each fault; the rules that complain of clean reports; ms a report."""
    reports = list(clean_reports(n))
    began = time.process_time()
    said = [set(complaints_of(report, style)) for report, style in reports]
    ms = (time.process_time() - began) / n * 1000
    alarms = Counter(rule for rules in said for rule in rules)
    alarms["reports"] = sum(map(bool, said))
    return [_measure_fault(fault, reports) for fault in FAULTS], alarms, ms


def _measure_fault(fault: Fault, reports: Sequence[tuple[Report, Style]]) -> Row:
    rng = random.Random(f"{SEED}-{fault.name}")
    planted = [(fault.plant(report, style, rng), style) for report, style in reports]
    said = [complaints_of(broken, style) for broken, style in planted if broken is not None]
    return Row(fault, len(said), sum(map(bool, said)), sum(fault.rule in rules for rules in said))


def read_texts(path: Path) -> list[str]:
    """Reports of people: a CSV with `report_text`, or IU X-ray's annotation.json."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [row["report_text"] for row in csv.DictReader(file)]
    splits = json.loads(path.read_text(encoding="utf-8"))
    return [row["report"] for rows in splits.values() for row in rows]


def _reworded(
    report: Report, style: Style, rng: random.Random, change: Callable[[Finding], Finding | None]
) -> Report | None:
    """The report with the text of one finding changed, and its findings left as they were."""
    altered = [(k, new) for k, f in enumerate(report.findings) if (new := change(f)) is not None]
    if not altered:
        return None
    k, new = rng.choice(altered)
    told = _render_one(new, style, report.examination)
    old = report.findings[k]
    same = [n for n, s in enumerate(report.sentences) if s.codes == (old.code,)]
    of_code = [f for f in report.findings if f.code == old.code]
    n = same[next(i for i, f in enumerate(of_code) if f is old)]
    return replace(report, sentences=(*report.sentences[:n], told, *report.sentences[n + 1 :]))


def _misjudged(
    report: Report, style: Style, rng: random.Random, change: Callable[[Finding], Finding | None]
) -> Report | None:
    """The report whose impression says one finding otherwise."""
    altered = [
        (f, new)
        for f in report.findings
        if f.presence is Presence.PRESENT and (new := change(f)) is not None and new not in report.findings
    ]
    if not altered:
        return None
    old, new = rng.choice(altered)
    (was,), (told,) = (impression_choices([f], style, report.examination) for f in (old, new))
    said = {s.text for s in was}
    return replace(report, impression=tuple(told[0] if s.text in said else s for s in report.impression))


def _render_one(finding: Finding, style: Style, examination: str) -> Sentence:
    return Sentence(sentence_choices(finding, style, examination)[0], (finding.code,))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.linter", description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="clean reports (1000)")
    parser.add_argument("--texts", type=Path, nargs="*", default=(), help="reports that people wrote")
    options = parser.parse_args(arguments)
    rows, alarms, ms = measure(options.n)
    print(
        "| fault | planted | found | share | bar | named | by |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    )
    met = True
    for row in rows:
        met &= row.planted > 0 and row.share >= row.fault.bar
        print(
            f"| {row.fault.name} | {row.planted} | {row.found} | {row.share:.4f} | {row.fault.bar} "
            f"| {row.named} | {row.fault.rule} |"
        )
    false = alarms.pop("reports")
    met &= false < 0.01 * options.n
    print(
        f"\nFalse alarms on clean reports: {false} of {options.n} {dict(alarms) or ''}; {ms:.2f} CPU ms each"
    )
    for path in options.texts:
        met &= _judge_texts(path)
    return 0 if met else 1


def _judge_texts(path: Path) -> bool:
    texts = read_texts(path)
    found = [(text, check_text(text)) for text in texts]
    flagged = [(text, complaints) for text, complaints in found if complaints]
    rules = Counter(c.rule for _, complaints in flagged for c in complaints)
    print(f"{path.name}: {len(flagged)} of {len(texts)} reports complained of {dict(rules)}")
    for _, complaints in flagged[:12]:
        for c in complaints[:1]:
            print(f"  {c.rule}: {c.words} | {re.sub(chr(10), ' ', c.sentence)[:160]}")
    return len(flagged) < 0.01 * len(texts)


if __name__ == "__main__":
    sys.exit(main())
