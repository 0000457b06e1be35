"""Findings -> Report: every finding stated once, in the words of a style.

`sentence_choices` lists every legal wording of a statement, which is what the constrained
decoder may choose from; `render_report` chooses itself. Knows nothing of networks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Sequence

from mla_med.errors import ReportError
from mla_med.report.interpret import rules
from mla_med.report.schema import FindingType, Schema, schema_of
from mla_med.report.style import KEY_OF, Style, load_style
from mla_med.types import Change, Finding, Presence, Report, Sentence

_AN = re.compile(r"\b([Aa]) ((?:8\d*|11|18)(?:\.\d+)?\b)")
"""Numbers that are spoken with a vowel first."""


def complete_findings(
    findings: Iterable[Finding], examination: str = "chest_ct", codes: Collection[str] | None = None
) -> tuple[Finding, ...]:
    """The findings in schema order, what was not given as absent: every required code of the schema, or
    `codes`, all that whoever reports has looked for. ReportError where a finding is unknown, illegal,
    said twice, or both present and not."""
    schema = schema_of(examination)
    asked = {code for code, kind in schema.items() if kind.required} if codes is None else set(codes)
    given: dict[str, list[Finding]] = {}
    for finding in findings:
        check_finding(finding, schema)
        given.setdefault(finding.code, []).append(finding)
    for code, same in given.items():
        _check_together(same, schema[code])
    return tuple(
        finding
        for code in schema
        for finding in given.get(code, [Finding(code, Presence.ABSENT)] if code in asked else [])
    )


def check_finding(finding: Finding, schema: Schema) -> None:
    """ReportError where the code is unknown, or a side, site, size, count or change is missing or illegal."""
    if finding.code not in schema:
        raise ReportError(f"Unknown finding code '{finding.code}'; known are: {', '.join(schema)}.")
    kind = schema[finding.code]
    if finding.presence is Presence.PRESENT:
        _check_present(finding, kind)
    elif (finding.side, finding.site, finding.size_mm, finding.count) != (None,) * 4:
        raise ReportError(f"Finding '{kind.key}' is {finding.presence} and has a place, a size or a count.")
    if finding.change is not None and finding.change not in legal_changes(finding.presence):
        raise ReportError(f"Finding '{kind.key}' is {finding.presence} and said to be {finding.change}.")


def legal_changes(presence: Presence) -> set[Change]:
    """What is there cannot have gone, and of what cannot be said no change can."""
    legal = {Presence.PRESENT: set(Change) - {Change.RESOLVED}, Presence.ABSENT: {Change.RESOLVED}}
    return legal.get(presence, set())


def sentence_choices(finding: Finding, style: Style, examination: str = "chest_ct") -> tuple[str, ...]:
    """Every legal sentence of the findings section that states this finding."""
    check_finding(finding, schema_of(examination))
    key = "several" if finding.count else KEY_OF[finding.presence]
    phrases = style.wording(examination).phrases[finding.code][key]
    return tuple(_fill(phrase, finding, style, examination) for phrase in phrases)


def impression_choices(
    findings: Sequence[Finding], style: Style, examination: str = "chest_ct"
) -> tuple[tuple[Sentence, ...], ...]:
    """For each sentence of the impression, its legal wordings. Critical findings come first."""
    schema, wording = schema_of(examination), style.wording(examination)
    present = [f for f in findings if f.presence is Presence.PRESENT]
    unsure = [f.code for f in findings if f.presence is Presence.CANNOT_SAY]
    present.sort(key=lambda f: not schema[f.code].critical)
    slots = [
        tuple(
            Sentence(_fill(p, f, style, examination), (f.code,))
            for p in wording.phrases[f.code]["impression_several" if f.count else "impression"]
        )
        for f in present
    ]
    if unsure:
        terms = style.listed.join(wording.terms[code] for code in unsure)
        slots.append(tuple(Sentence(p.format(terms=terms), tuple(unsure)) for p in wording.cannot_say))
    if not slots:
        slots.append(tuple(Sentence(p) for p in wording.normal))
    return tuple(slots)


def interpretation_choices(
    interpretations: Sequence[str], style: Style, examination: str = "chest_ct"
) -> tuple[tuple[Sentence, ...], ...]:
    """For each of these keys of interpretations.toml, its legal wordings."""
    finding = {rule.key: rule.finding for rule in rules(examination)}
    phrases = style.wording(examination).interpretations
    return tuple(
        tuple(Sentence(phrase, (finding[key],)) for phrase in phrases[key]) for key in interpretations
    )


def render_report(
    findings: Iterable[Finding],
    style: Style | None = None,
    examination: str = "chest_ct",
    technique: str | None = None,
    rng: random.Random | None = None,
    codes: Collection[str] | None = None,
    interpretations: Sequence[str] = (),
) -> Report:
    """The complete report of these findings (of those `codes`, where they are given); with `rng` a
    colleague's phrase instead of the preferred one, in a fifth of the sentences."""
    style = style or load_style()
    complete = complete_findings(findings, examination, codes)

    def pick(choices):
        return rng.choice(choices[1:]) if rng and len(choices) > 1 and rng.random() < 0.2 else choices[0]

    return Report(
        findings=complete,
        sentences=tuple(
            Sentence(pick(sentence_choices(f, style, examination)), (f.code,))
            for f in _in_groups(complete, style, examination)
        ),
        impression=tuple(
            pick(slot)
            for slot in (
                *impression_choices(complete, style, examination),
                *interpretation_choices(interpretations, style, examination),
            )
        ),
        technique=style.wording(examination).technique if technique is None else technique,
        language=style.language,
        examination=examination,
        interpretations=tuple(interpretations),
    )


def report_text(report: Report, style: Style | None = None) -> str:
    """The whole report as text: technique, then `body_text`."""
    style = style or load_style()
    return f"{style.headings['technique']}{_gap(style)}{report.technique}\n{body_text(report, style)}"


def body_text(report: Report, style: Style | None = None) -> str:
    """Findings and impression: what the decoder writes."""
    style = style or load_style()
    findings = _paragraphs(report, style)
    impression = _lay_out(report.impression, style, 1)
    head, gap = style.headings, "\n" if "\n" in style.between else _gap(style)
    below = "\n" if style.wording(report.examination).groups else gap
    return f"{head['findings']}{below}{findings}\n{head['impression']}{gap}{impression}"


def _check_present(finding: Finding, kind: FindingType) -> None:
    if (finding.side, finding.site) not in kind.places:
        legal = ", ".join(" ".join(filter(None, place)) or "none" for place in kind.places)
        raise ReportError(
            f"Finding '{kind.key}' with side {finding.side}, site {finding.site}; legal: {legal}."
        )
    if (finding.size_mm is not None) != kind.has_size:
        raise ReportError(f"Finding '{kind.key}' needs {'a' if kind.has_size else 'no'} size in mm.")
    if finding.size_mm is not None and not (
        0 < finding.size_mm < 1000 and round(finding.size_mm, 1) == finding.size_mm
    ):
        raise ReportError(f"Finding '{kind.key}' of {finding.size_mm} mm; sizes are stated to 0.1 mm.")
    if finding.count is not None and not (kind.countable and 2 <= finding.count <= 99):
        raise ReportError(f"Finding '{kind.key}' cannot state a count of {finding.count}.")


def _check_together(same: Sequence[Finding], kind: FindingType) -> None:
    """Several statements of one code have to be different, present, and at different places or sizes."""
    if len(same) == 1:
        return
    if not kind.repeats or any(f.presence is not Presence.PRESENT for f in same):
        raise ReportError(f"Finding '{kind.key}' is stated {len(same)} times; one statement is legal.")
    if len(set(same)) != len(same):
        raise ReportError(f"Finding '{kind.key}' is stated twice in the same words; give a count.")


def _in_groups(findings: Sequence[Finding], style: Style, examination: str) -> list[Finding]:
    groups = style.wording(examination).groups
    order = {code: n for n, group in enumerate(groups) for code in group.codes}
    return sorted(findings, key=lambda f: order.get(f.code, 0))


def _paragraphs(report: Report, style: Style) -> str:
    groups = style.wording(report.examination).groups
    if not groups:
        return _lay_out(report.sentences, style, 1)
    lines: list[list[Sentence]] = [[] for _ in groups]
    here = len(groups) - 1
    for sentence in report.sentences:
        # what states no finding stays with what was said before it
        here = next((n for n, g in enumerate(groups) if set(sentence.codes) & set(g.codes)), here)
        lines[here].append(sentence)
    parts, done = [], 0
    for group, mine in zip(groups, lines, strict=True):
        if mine:
            parts.append(f"{group.title}{_gap(style)}{_lay_out(mine, style, done + 1)}")
            done += len(mine)
    return "\n".join(parts)


def _lay_out(sentences: Sequence[Sentence], style: Style, first: int) -> str:
    return style.between.join(style.bullet.format(n=n) + s.text for n, s in enumerate(sentences, first))


def _gap(style: Style) -> str:
    """Between a heading and its text."""
    return " " if style.stop == "." else ""


def _fill(phrase: str, finding: Finding, style: Style, examination: str) -> str:
    text = phrase.format(
        place=style.place_words((finding.side, finding.site)),
        side=style.sides[finding.side] if finding.side else "",
        site=style.sites[finding.site] if finding.site else "",
        size="" if finding.size_mm is None else f"{finding.size_mm:g}",
        size_cm="" if finding.size_mm is None else f"{round(finding.size_mm / 10, 2):g}",
        count=finding.count,
    )
    if style.language == "en":
        text = _AN.sub(r"\1n \2", text)
    text = text[:1].upper() + text[1:]
    if finding.change is None:
        return text
    assert text.endswith(style.stop), text
    changes = style.wording(examination).changes[finding.code]
    return text.removesuffix(style.stop) + changes[finding.change] + style.stop
