"""Findings -> Report: every finding of the schema stated once, in the words of a style.

`sentence_choices` lists every legal wording of a statement, which is what the constrained
decoder may choose from; `render_report` chooses itself. Knows nothing of networks.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from mla_med.errors import ReportError
from mla_med.report.schema import CHEST_CT, FindingType
from mla_med.report.styles import Style, load_style
from mla_med.types import Finding, Presence, Report, Sentence, Side

TECHNIQUE = "CT of the chest without contrast medium."


def complete_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings in schema order, every code that was not given as absent."""
    given = {f.code: f for f in findings}
    unknown = sorted(set(given) - set(CHEST_CT))
    if unknown:
        raise ReportError(f"Unknown finding code '{unknown[0]}'; known are: {', '.join(CHEST_CT)}.")
    return tuple(given.get(code, Finding(code, Presence.ABSENT)) for code in CHEST_CT)


def check_finding(finding: Finding) -> None:
    """ReportError where a present finding lacks, or has illegally, a side, site or size."""
    kind = CHEST_CT[finding.code]
    if finding.presence is not Presence.PRESENT:
        return
    if (finding.side is not None) != bool(kind.sides) or (kind.sides and finding.side not in kind.sides):
        raise ReportError(f"Finding '{kind.key}' with side {finding.side}; legal: {_words(kind.sides)}.")
    if (finding.site is not None) != bool(kind.sites) or (kind.sites and finding.site not in kind.sites):
        raise ReportError(f"Finding '{kind.key}' with site {finding.site}; legal: {_words(kind.sites)}.")
    if finding.site == "middle_lobe" and finding.side is not Side.RIGHT:
        raise ReportError(
            f"Finding '{kind.key}' in a middle lobe on the {finding.side}: only the right lung has one."
        )
    if (finding.size_mm is not None) != kind.has_size:
        raise ReportError(f"Finding '{kind.key}' needs {'a' if kind.has_size else 'no'} size in mm.")


def sentence_choices(finding: Finding, style: Style) -> tuple[str, ...]:
    """Every legal sentence of the findings section that states this finding."""
    check_finding(finding)
    key = {Presence.PRESENT: "present", Presence.ABSENT: "absent", Presence.CANNOT_SAY: "cannot_say"}
    return tuple(_fill(p, finding, style) for p in style[finding.code][key[finding.presence]])


def impression_choices(findings: Sequence[Finding], style: Style) -> tuple[tuple[Sentence, ...], ...]:
    """For each sentence of the impression, its legal wordings. Critical findings come first."""
    present = [f for f in findings if f.presence is Presence.PRESENT]
    unsure = [f for f in findings if f.presence is Presence.CANNOT_SAY]
    present.sort(key=lambda f: not CHEST_CT[f.code].critical)
    slots = [
        tuple(Sentence(_fill(p, f, style), (f.code,)) for p in style[f.code]["impression"]) for f in present
    ]
    if unsure:
        terms = ", ".join(CHEST_CT[f.code].term for f in unsure)
        codes = tuple(f.code for f in unsure)
        slots.append(tuple(Sentence(p.format(terms=terms), codes) for p in style["impression"]["cannot_say"]))
    if not slots:
        slots.append(tuple(Sentence(p) for p in style["impression"]["normal"]))
    return tuple(slots)


def render_report(
    findings: Iterable[Finding],
    style: str = "prose",
    language: str = "en",
    technique: str = TECHNIQUE,
    rng: random.Random | None = None,
) -> Report:
    """The report of these findings; with `rng` a colleague's phrase instead of the preferred one,
    in a fifth of the sentences."""
    pack = load_style(style, language)
    complete = complete_findings(findings)

    def pick(choices):
        return rng.choice(choices[1:]) if rng and len(choices) > 1 and rng.random() < 0.2 else choices[0]

    return Report(
        findings=complete,
        sentences=tuple(Sentence(pick(sentence_choices(f, pack)), (f.code,)) for f in complete),
        impression=tuple(pick(slot) for slot in impression_choices(complete, pack)),
        technique=technique,
        language=language,
    )


def report_text(report: Report, style: str = "prose") -> str:
    """The whole report as text: technique, then `body_text`."""
    headings = load_style(style, report.language)["headings"]
    return f"{headings['technique']} {report.technique}\n{body_text(report, style)}"


def body_text(report: Report, style: str = "prose") -> str:
    """Findings and impression: what the decoder writes."""
    headings = load_style(style, report.language)["headings"]
    findings = " ".join(s.text for s in report.sentences)
    impression = " ".join(s.text for s in report.impression)
    return f"{headings['findings']} {findings}\n{headings['impression']} {impression}"


def _fill(phrase: str, finding: Finding, style: Style) -> str:
    return phrase.format(
        side=style["sides"].get(finding.side or "", ""),
        site=style["sites"].get(finding.site or "", ""),
        size="" if finding.size_mm is None else f"{finding.size_mm:.0f}",
    )


def _words(legal: FindingType | Sequence[str]) -> str:
    return ", ".join(map(str, legal)) or "none"  # type: ignore[arg-type]
