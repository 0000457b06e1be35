"""A report and one change of it -> the report after it: fields and sentences, each following the other.

A field that changes is rendered into its sentence; a sentence that changes is parsed into its fields. What
the style cannot read is kept as it was typed, and the linter says so. Pure: knows no rows, pages or readers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from mla_med.documents.json import report_from_json, report_to_json
from mla_med.documents.text import sentence_findings
from mla_med.errors import MlaMedError, ReportError
from mla_med.report.check import check_report
from mla_med.report.parse import parse_impression, parse_interpretation, parse_sentence
from mla_med.report.render import (
    check_finding,
    complete_findings,
    impression_choices,
    interpretation_choices,
    sentence_choices,
)
from mla_med.report.schema import schema_of
from mla_med.report.style import Style, load_style, packaged_styles
from mla_med.report.technique import technique_words
from mla_med.types import (
    Change,
    ClinicalContext,
    Complaint,
    Draft,
    Evidence,
    Finding,
    Presence,
    Prior,
    Report,
    Sentence,
    Side,
)

LONGEST_SENTENCE = 2000
"""Characters; a report is no place for more."""


@dataclass(frozen=True, slots=True)
class Edited:
    """A draft's report as it stands."""

    report: Report
    style: str

    def to_bytes(self) -> bytes:
        data = {"style": self.style, "report": report_to_json(self.report)}
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def edited_from(content: bytes) -> Edited:
    data = json.loads(content)
    return Edited(report_from_json(data["report"]), str(data["style"]))


def edited_of(draft: Draft) -> Edited:
    """As drafted."""
    assert draft.report is not None
    return Edited(draft.report, style_of(draft.report))


def style_of(report: Report) -> str:
    """Of the packaged styles of its language the one that reads the most of its sentences."""
    texts = tuple(s.text for s in report.sentences)
    best, most = "prose", -1
    for name in sorted(packaged_styles(report.language), key=lambda n: n != "prose"):
        style = load_style(name, report.language)
        if report.examination not in style.examinations:
            continue
        read = sum(parse_sentence(text, style, report.examination) is not None for text in texts)
        if read > most:
            best, most = name, read
    return best


def finding_from(code: str, fields: dict[str, str], examination: str) -> Finding:
    """What a form says of a finding. `place`: "side site", either of them "-". ReportError where it is not
    legal, in words for whoever filled it in."""
    kind = schema_of(examination).get(code)
    if kind is None:
        raise ReportError(f"There is no finding '{code}' in this examination.", code="FINDING_UNKNOWN")
    try:
        presence = Presence(fields.get("presence", ""))
        if presence is not Presence.PRESENT:
            change = Change.RESOLVED if fields.get("change") == Change.RESOLVED else None
            if presence is Presence.CANNOT_SAY:
                change = None
            return Finding(code, presence, change=change)
        side_word, _, site_word = (fields.get("place") or "- -").partition(" ")
        side = None if side_word in ("", "-") else Side(side_word)
        size = fields.get("size_mm", "").strip().replace(",", ".").replace("．", ".")
        count = fields.get("count", "").strip()
        change = Change(fields["change"]) if fields.get("change") else None
        finding = Finding(
            code,
            presence,
            site=None if site_word in ("", "-") else site_word,
            side=side,
            size_mm=float(size) if size and kind.has_size else None,
            count=int(count) if count and kind.countable else None,
            change=change,
        )
    except ValueError:
        raise ReportError("A field holds what it cannot hold: a size is a number of mm.") from None
    check_finding(finding, schema_of(examination))
    return finding


def change_finding(edited: Edited, number: int, finding: Finding) -> Edited:
    """Finding `number` (from 1) says something else now, and so does its sentence."""
    report, style = edited.report, _style(edited)
    old = _numbered(report.findings, number)
    assert old.code == finding.code
    if finding == old:
        return edited
    # the images are what they were; the model's confidence was in something else
    new = replace(finding, evidence=_kept_evidence(old, finding))
    sentence = _sentence_of(report, number - 1)
    findings = _checked([*report.findings[: number - 1], new, *report.findings[number:]], report)
    sentences = list(report.sentences)
    if sentence is None:
        sentences = _inserted(sentences, new, report, style)
    else:
        words = _worded(new, old, sentences[sentence].text, style, report)
        sentences[sentence] = Sentence(words, (new.code,))
    return _settled(edited, findings, sentences)


def _kept_evidence(old: Finding, new: Finding) -> Evidence | None:
    """What shows a lesion on the right shows neither that there is none nor one on the left."""
    moved = old.side is not None and new.side is not old.side
    return None if new.presence is Presence.ABSENT or moved else old.evidence


def add_finding(edited: Edited, finding: Finding) -> Edited:
    """One more. What said that it is absent, or cannot be said, says so no more."""
    report, style = edited.report, _style(edited)
    rest = [f for f in report.findings if f.code != finding.code or f.presence is Presence.PRESENT]
    for number, old in enumerate(report.findings, start=1):
        if old.code == finding.code and old.presence is not Presence.PRESENT:
            return change_finding(edited, number, finding)
    order = list(schema_of(report.examination))
    place = sum(order.index(f.code) <= order.index(finding.code) for f in rest)
    findings = _checked([*rest[:place], finding, *rest[place:]], report)
    return _settled(edited, findings, _inserted(list(report.sentences), finding, report, style))


def remove_finding(edited: Edited, number: int) -> Edited:
    """Of several of its kind, one less; else it is absent, and where a report need not speak of it, gone."""
    report = edited.report
    old = _numbered(report.findings, number)
    others = [f for f in report.findings if f.code == old.code and f is not old]
    if not others and schema_of(report.examination)[old.code].required:
        return change_finding(edited, number, Finding(old.code, Presence.ABSENT))
    sentence = _sentence_of(report, number - 1)
    findings = tuple(f for n, f in enumerate(report.findings, start=1) if n != number)
    sentences = [s for n, s in enumerate(report.sentences) if n != sentence]
    return _settled(edited, findings, sentences)


def change_sentence(edited: Edited, number: int, text: str) -> Edited:
    """Sentence `number` (from 1; those of the impression go on counting) reads so now, and the fields follow
    where the style can read it. Without a text it is gone, and with it what it alone stated."""
    report, style = edited.report, _style(edited)
    text = clean_text(text)
    if number > len(report.sentences):
        return _change_impression(edited, number - len(report.sentences), text)
    old = _numbered(report.sentences, number)
    if text == old.text:
        return edited
    sentences = list(report.sentences)
    stated_before = sentence_findings(report.sentences, report)[number - 1]
    if not text:
        del sentences[number - 1]
        gone = [f for f in stated_before if not any(f.code in s.codes for s in sentences)]
        findings = tuple(f for f in report.findings if not any(f is one for one in gone))
        if len(stated_before) == 1 and not gone and len(old.codes) == 1:
            findings = tuple(f for f in report.findings if f is not stated_before[0])
        return _settled(edited, findings, sentences)
    stated = parse_sentence(text, style, report.examination)
    if stated is None:
        # nothing is guessed: what it stated it is taken to state still, and the linter looks at the words
        sentences[number - 1] = Sentence(text, old.codes)
        return replace(edited, report=replace(report, sentences=tuple(sentences)))
    sentences[number - 1] = Sentence(text, (stated.code,))
    return _settled(edited, _followed(report, stated_before, stated), sentences)


def _followed(report: Report, before: Sequence[Finding], stated: Finding) -> tuple[Finding, ...]:
    """The findings after a sentence that stated those `before` states this one."""
    findings = list(report.findings)
    same = [f for f in before if f.code == stated.code]
    if len(before) == 1 and same:
        at = next(n for n, f in enumerate(findings) if f is same[0])
        kept = same[0].confidence if same[0] == stated else None
        findings[at] = replace(stated, evidence=_kept_evidence(same[0], stated), confidence=kept)
    else:
        findings = [f for f in findings if not (len(before) == 1 and f is before[0])]
        if stated.presence is Presence.PRESENT:
            findings = [f for f in findings if f.code != stated.code or f.presence is Presence.PRESENT]
        if stated not in findings:
            findings.append(stated)
    order = list(schema_of(report.examination))
    findings.sort(key=lambda f: order.index(f.code))
    return _checked(findings, report)


def add_sentence(edited: Edited, text: str, *, impression: bool = False) -> Edited:
    report, style = edited.report, _style(edited)
    text = clean_text(text)
    if not text:
        return edited
    if impression:
        codes = tuple(f.code for f in parse_impression(text, style, report.examination))
        said = (*report.impression, Sentence(text, codes))
        return replace(edited, report=replace(report, impression=said))
    stated = parse_sentence(text, style, report.examination)
    if stated is None:
        said = (*report.sentences, Sentence(text))
        return replace(edited, report=replace(report, sentences=said))
    for number, old in enumerate(report.findings, start=1):
        if old.code == stated.code and old.presence is not Presence.PRESENT:
            return change_finding(edited, number, stated)
    sentences = [*report.sentences, Sentence(text, (stated.code,))]
    return _settled(edited, _followed(report, (), stated), sentences)


def _change_impression(edited: Edited, number: int, text: str) -> Edited:
    report, style = edited.report, _style(edited)
    old = _numbered(report.impression, number)
    if text == old.text:
        return edited
    said = list(report.impression)
    if text:
        stated = tuple(f.code for f in parse_impression(text, style, report.examination))
        rule = parse_interpretation(text, style, report.examination)
        said[number - 1] = Sentence(text, (rule.finding,) if rule else stated or old.codes)
    else:
        del said[number - 1]
    keys = [parse_interpretation(s.text, style, report.examination) for s in said]
    meanings = tuple(dict.fromkeys(rule.key for rule in keys if rule))
    return replace(edited, report=replace(report, impression=tuple(said), interpretations=meanings))


def change_language(edited: Edited, language: str, draft: Draft) -> Edited:
    """The same findings in the words of another language, and how it was examined if it still says what the
    `draft` said. What was typed freely cannot be translated: it stays as it is."""
    report = edited.report
    if language == report.language:
        return edited
    old, name = _style(edited), edited.style
    style = load_style(name if name in packaged_styles(language) else "prose", language)
    stated = sentence_findings(report.sentences, report)
    sentences = tuple(
        Sentence(sentence_choices(found[0], style, report.examination)[0], (found[0].code,))
        if len(found) == 1 and parse_sentence(s.text, old, report.examination) is not None
        else s
        for s, found in zip(report.sentences, stated, strict=True)
    )
    known = {_technique(draft, old): _technique(draft, style)}
    known |= {old.wording(report.examination).technique: style.wording(report.examination).technique}
    technique = known.get(report.technique, report.technique)
    free = [s for s in report.impression if not _is_known(s.text, old, report)]
    blank = replace(
        report, language=language, sentences=sentences, technique=technique, impression=tuple(free)
    )
    return Edited(_with_impression(blank, style), style.name)


def _technique(draft: Draft, style: Style) -> str:
    assert draft.report is not None
    codes = [finding.code for finding in draft.report.findings]
    return technique_words(draft.report.examination, draft.verdicts, style, codes, draft.prior)


def complaints_of(
    edited: Edited, draft: Draft, request: ClinicalContext | None = None
) -> tuple[Complaint, ...]:
    """What the linter says of the report as it stands. `request`: as the images state it; None: they are not
    here, and what was meant when it was drafted is all that is known."""
    report = edited.report
    assert draft.report is not None
    given = [v.certificate for v in draft.verdicts if v.chosen and v.certificate is not None]
    stated = {c.contrast_header for c in given}
    known = request or ClinicalContext()
    if draft.prior:
        known = replace(known, prior="compared by measurement")
    # what was supported when it was drafted still is: more was known then, a prior report perhaps
    meant = set(draft.report.interpretations)
    unsure = tuple(key for key in report.interpretations if key not in meant)
    found = check_report(
        replace(report, interpretations=unsure),
        known,
        contrast_given=stated.pop() if len(stated) == 1 else None,
        midline_mm=_midline_mm(draft),
        style=_style(edited),
        codes=[f.code for f in draft.report.findings if schema_of(report.examination)[f.code].required],
    )
    return tuple(dict.fromkeys(found))


def still_compared(draft: Draft, report: Report) -> Prior | None:
    """The prior, and what was measured of findings that still say what they said then."""
    if draft.prior is None or draft.report is None:
        return None

    def said(of: Report, code: str) -> list[Finding]:
        return [finding for finding in of.findings if finding.code == code]

    kept = tuple(c for c in draft.prior.comparisons if said(draft.report, c.code) == said(report, c.code))
    return replace(draft.prior, comparisons=kept)


def _midline_mm(draft: Draft) -> float:
    """The middle of the first chosen volume along the patient's x, as when it was drafted."""
    for verdict in draft.verdicts:
        if verdict.chosen and verdict.certificate is not None:
            row, shape = verdict.certificate.affine[0], verdict.certificate.shape
            return row[0] * shape[0] / 2 + row[1] * shape[1] / 2 + row[2] * shape[2] / 2 + row[3]
    return 0.0


def clean_text(text: str) -> str:
    """One line of what was typed, without what no document can hold. ReportError where it is too long."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(words) > LONGEST_SENTENCE:
        raise ReportError(f"A sentence of {len(words)} characters; {LONGEST_SENTENCE} at most.")
    return words


# What became of it


@dataclass(frozen=True, slots=True)
class Became:
    """One finding of a draft after the review."""

    code: str
    outcome: str
    """kept, changed, removed, added."""
    drafted: Presence | None
    decided: Presence | None
    confidence: float | None


def became(draft: Report, decided: Report) -> tuple[Became, ...]:
    """Per finding of the draft: kept as it was, changed in place, side, size, count or change, removed, or
    added. Absent stays absent is kept; to call absent what was present is to remove it."""
    rows = []
    for code in schema_of(draft.examination):
        old = [f for f in draft.findings if f.code == code]
        new = [f for f in decided.findings if f.code == code]
        left = list(new)
        unmatched = []
        for finding in old:
            if finding in left:
                left.remove(finding)
                rows.append(_row(code, "kept", finding, finding))
            else:
                unmatched.append(finding)
        for finding in unmatched:
            alike = (f for f in left if f.presence is finding.presence)
            partner = next(alike, None) or next(iter(left), None)
            if partner is not None:
                left.remove(partner)
            rows.append(_row(code, _outcome(finding, partner), finding, partner))
        rows += [_row(code, _outcome(None, finding), None, finding) for finding in left]
    return tuple(rows)


def _outcome(old: Finding | None, new: Finding | None) -> str:
    was = old is not None and old.presence is Presence.PRESENT
    is_ = new is not None and new.presence is Presence.PRESENT
    if was and not is_:
        return "removed"
    if is_ and not was:
        return "added"
    return "changed"


def _row(code: str, outcome: str, old: Finding | None, new: Finding | None) -> Became:
    return Became(
        code,
        outcome,
        old.presence if old else None,
        new.presence if new else None,
        old.confidence if old else None,
    )


def difference(before: Report, after: Report) -> list[tuple[str, str, str]]:
    """What another reader changed: (where, what stood there, what stands there). Sentences by their number,
    findings by their code."""
    changes = []
    olds, news = (*before.sentences, *before.impression), (*after.sentences, *after.impression)
    if len(before.sentences) == len(after.sentences):
        for number in range(max(len(olds), len(news))):
            was = olds[number].text if number < len(olds) else ""
            is_ = news[number].text if number < len(news) else ""
            if was != is_:
                changes.append((f"{number + 1}", was, is_))
        return changes
    was_said, is_said = [s.text for s in olds], [s.text for s in news]
    changes += [("−", text, "") for text in was_said if text not in is_said]
    changes += [("+", "", text) for text in is_said if text not in was_said]
    return changes


# Within


@cache
def _load(name: str, language: str) -> Style:
    return load_style(name, language)


def _style(edited: Edited) -> Style:
    return _load(edited.style, edited.report.language)


def check_line(edited: Edited, number: int, code: str) -> None:
    """ReportError where finding `number` is not of this code any more: a page that is behind must not change
    another finding than the one that it shows."""
    if _numbered(edited.report.findings, number).code != code:
        _numbered((), number)


def _numbered(items: Sequence[Any], number: int) -> Any:
    if not 1 <= number <= len(items):
        raise ReportError("That line is not there any more; load the draft again.", code="LINE_GONE")
    return items[number - 1]


def _sentence_of(report: Report, finding: int) -> int | None:
    """The sentence that states this finding and nothing else."""
    stated = sentence_findings(report.sentences, report)
    wanted = report.findings[finding]
    return next((n for n, found in enumerate(stated) if len(found) == 1 and found[0] is wanted), None)


def _worded(new: Finding, old: Finding, text: str, style: Style, report: Report) -> str:
    """In the phrase that the sentence had, where both are of a kind."""
    choices = sentence_choices(new, style, report.examination)
    try:
        before = sentence_choices(old, style, report.examination)
    except MlaMedError:
        before = ()
    same = old.presence is new.presence and len(before) == len(choices) and text in before
    return choices[before.index(text)] if same else choices[0]


def _inserted(sentences: list[Sentence], finding: Finding, report: Report, style: Style) -> list[Sentence]:
    """Its sentence behind those that come before it in the layout of the style."""
    groups = style.wording(report.examination).groups
    order = {code: (n, k) for n, group in enumerate(groups) for k, code in enumerate(group.codes)}
    if not groups:
        order = {code: (0, k) for k, code in enumerate(schema_of(report.examination))}
    mine = order.get(finding.code, (0, 0))
    place = 0
    for number, sentence in enumerate(sentences):
        if any(order.get(code, (0, 0)) <= mine for code in sentence.codes):
            place = number + 1
    text = sentence_choices(finding, style, report.examination)[0]
    return [*sentences[:place], Sentence(text, (finding.code,)), *sentences[place:]]


def _checked(findings: Sequence[Finding], report: Report) -> tuple[Finding, ...]:
    """ReportError where they cannot all be stated."""
    complete_findings(findings, report.examination, codes=())
    return tuple(findings)


def _settled(edited: Edited, findings: Sequence[Finding], sentences: Sequence[Sentence]) -> Edited:
    style = _style(edited)
    paired = _as_worded(findings, sentences, edited.report.examination, style)
    report = replace(edited.report, findings=paired, sentences=tuple(sentences))
    return replace(edited, report=_with_impression(report, style, edited.report))


def _as_worded(
    findings: Sequence[Finding], sentences: Sequence[Sentence], examination: str, style: Style
) -> tuple[Finding, ...]:
    """Findings of one code in the order of their sentences, by which they are paired with them."""
    found = list(findings)
    for code in {f.code for f in findings}:
        at = [n for n, f in enumerate(findings) if f.code == code]
        texts = [s.text for s in sentences if code in s.codes]
        if len(at) < 2 or len(texts) != len(at):
            continue
        left = [findings[n] for n in at]
        stated = [parse_sentence(text, style, examination) for text in texts]
        ordered: list[Finding | None] = []
        for one in stated:
            same = next((f for f in left if f == one), None)
            ordered.append(same)
            left = [f for f in left if f is not same]
        # what cannot be read stands for what is left, in its order
        for n, finding in zip(at, ordered, strict=True):
            found[n] = finding if finding is not None else left.pop(0)
    return tuple(found)


def _with_impression(report: Report, style: Style, before: Report | None = None) -> Report:
    """The impression of these findings. A sentence that still says so keeps its words, and what was typed
    freely stays, at the end. `before`: the report that was edited; what a reader has changed or deleted in
    its impression stays so, where its finding is what it was."""
    present = {f.code for f in report.findings if f.presence is Presence.PRESENT}
    legal = {choice.text: choice for slot in _slots(report, report.interpretations, style) for choice in slot}
    keys = [
        key
        for key in report.interpretations
        if interpretation_choices([key], style, report.examination)[0][0].codes[0] in present
    ]
    said = {s.text for s in report.impression}
    old = [] if before is None else _slots(before, before.interpretations, style)
    new = []
    for slot in _slots(report, keys, style):
        choice = next((choice for choice in slot if choice.text in said), None)
        if choice is not None or slot not in old:
            new.append(choice or slot[0])
    if before is None:
        free = [s for s in report.impression if s.text not in legal and not _is_known(s.text, style, report)]
    else:
        drafted = {choice.text for slot in old for choice in slot}
        free = [s for s in report.impression if s.text not in legal and s.text not in drafted]
    return replace(report, impression=(*new, *free), interpretations=tuple(keys))


def _slots(report: Report, keys: Sequence[str], style: Style) -> list[tuple[Sentence, ...]]:
    return [
        *impression_choices(report.findings, style, report.examination),
        *interpretation_choices(keys, style, report.examination),
    ]


def _is_known(text: str, style: Style, report: Report) -> bool:
    """Whether a sentence of the impression is one of the style's, and not typed freely."""
    return (
        bool(parse_impression(text, style, report.examination))
        or parse_interpretation(text, style, report.examination) is not None
        or text in style.wording(report.examination).normal
    )
