"""Random findings -> text -> findings: how many of what went in come out again, style by style.

    python -m evaluation.roundtrip --n 10000

The same n finding sets are written in every packaged style of every language, over the three examinations
in turn: any presence, up to four places of a finding, any size to 0.1 mm, counts, changes, interpretations,
and each sentence in any of its phrases. Read back has to be equal: findings, sentences, impression,
technique, interpretations. "Retyped" is the text of every tenth report as another keyboard gives it, with
punctuation of half width in Chinese and capitals in English; there the findings have to be equal. The seed
is fixed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mla_med.report.interpret import rules
from mla_med.report.parse import parse_report
from mla_med.report.render import impression_choices, interpretation_choices, report_text, sentence_choices
from mla_med.report.schema import SCHEMAS, FindingType
from mla_med.report.style import Style, load_style, packaged_languages, packaged_styles
from mla_med.types import Change, Finding, Presence, Report, Sentence

SEED = 20261125
MOST_PLACES = 4
RETYPED = 10
"""One report in so many is read once more, retyped."""


@dataclass(frozen=True, slots=True)
class FindingSet:
    """What goes in: an examination, findings in the order of its schema, and what they mean."""

    examination: str
    findings: tuple[Finding, ...]
    interpretations: tuple[str, ...]


@dataclass(slots=True)
class Tally:
    """What came out of one style."""

    reports: int = 0
    findings: int = 0
    lost: int = 0
    """Findings that went in and did not come out."""
    invented: int = 0
    unequal: int = 0
    """Reports that are not read back as themselves in every respect."""
    retyped: int = 0
    retyped_unequal: int = 0
    """Retyped reports whose findings are not read back as themselves."""
    examples: list[str] = field(default_factory=list)


def finding_sets(n: int, seed: int = SEED) -> Iterator[FindingSet]:
    rng = random.Random(seed)
    examinations = tuple(SCHEMAS)
    for k in range(n):
        yield random_set(examinations[k % len(examinations)], rng)


def random_set(examination: str, rng: random.Random) -> FindingSet:
    """Anything that the schema allows; a code in ten is not spoken of."""
    findings: list[Finding] = []
    for code, kind in SCHEMAS[examination].items():
        draw = rng.random()
        if draw < 0.5:
            findings += _present(kind, rng)
        elif draw < 0.75:
            findings.append(Finding(code, Presence.ABSENT, change=rng.choice((None, Change.RESOLVED))))
        elif draw < 0.9:
            findings.append(Finding(code, Presence.CANNOT_SAY))
    present = {f.code for f in findings if f.presence is Presence.PRESENT}
    legal = [rule.key for rule in rules(examination) if rule.finding in present]
    return FindingSet(
        examination, tuple(findings), tuple(rng.sample(legal, rng.randint(0, min(3, len(legal)))))
    )


def write(chosen: FindingSet, style: Style, rng: random.Random) -> Report:
    """The report in the order of its findings, each sentence in any of its phrases."""
    examination, findings = chosen.examination, chosen.findings
    groups = style.wording(examination).groups
    order = {code: n for n, group in enumerate(groups) for code in group.codes}
    told = sorted(findings, key=lambda f: order.get(f.code, 0))
    return Report(
        findings=findings,
        sentences=tuple(_say(f, style, examination, rng) for f in told),
        impression=tuple(
            rng.choice(slot)
            for slot in (
                *impression_choices(findings, style, examination),
                *interpretation_choices(chosen.interpretations, style, examination),
            )
        ),
        technique=style.wording(examination).technique,
        language=style.language,
        examination=examination,
        interpretations=chosen.interpretations,
    )


def measure(style: Style, sets: Sequence[FindingSet], seed: int = SEED) -> Tally:
    rng, tally = random.Random(seed), Tally()
    for k, chosen in enumerate(sets):
        report = write(chosen, style, rng)
        text = report_text(report, style)
        read = parse_report(text, style, chosen.examination)
        went, came = set(chosen.findings), set(read.findings)
        tally.reports += 1
        tally.findings += len(went)
        tally.lost += len(went - came)
        tally.invented += len(came - went)
        tally.unequal += read != report
        if read != report:
            tally.examples.append(text)
        if k % RETYPED == 0:
            again = parse_report(retype(text, style.language), style, chosen.examination)
            tally.retyped += 1
            tally.retyped_unequal += again.findings != chosen.findings
    return tally


def retype(text: str, language: str) -> str:
    return unicodedata.normalize("NFKC", text) if language == "zh" else text.upper()


def _present(kind: FindingType, rng: random.Random) -> Iterator[Finding]:
    for side, site in rng.sample(kind.places, rng.randint(1, min(MOST_PLACES, len(kind.places)))):
        # small ones oftener: they are what is reported
        size = rng.randint(1, rng.choice((99, 999, 9999))) / 10 if kind.has_size else None
        count = rng.randint(2, 99) if kind.countable and rng.random() < 0.4 else None
        change = rng.choice((None, *(c for c in Change if c is not Change.RESOLVED)))
        yield Finding(kind.key, Presence.PRESENT, site, side, size, count, change)


def _say(finding: Finding, style: Style, examination: str, rng: random.Random) -> Sentence:
    return Sentence(rng.choice(sentence_choices(finding, style, examination)), (finding.code,))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.roundtrip", description=__doc__)
    parser.add_argument(
        "--n", type=int, default=1000, help="finding sets, each written in every style (1000)"
    )
    options = parser.parse_args(arguments)
    sets = list(finding_sets(options.n))
    print("| style | reports | findings | lost | invented | unequal | retyped | unequal | CPU ms |")
    print("| --- |" + " ---: |" * 8)
    faults = 0
    for language in packaged_languages():
        for name in packaged_styles(language):
            began = time.process_time()
            tally = measure(load_style(name, language), sets)
            ms = (time.process_time() - began) / max(1, tally.reports) * 1000
            faults += tally.lost + tally.invented + tally.unequal + tally.retyped_unequal
            print(
                f"| {language}/{name} | {tally.reports} | {tally.findings} | {tally.lost} | {tally.invented} "
                f"| {tally.unequal} | {tally.retyped} | {tally.retyped_unequal} | {ms:.1f} |",
                flush=True,
            )
            for text in tally.examples[:1]:
                print(text, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
