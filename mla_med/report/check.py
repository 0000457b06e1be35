"""Findings + text + header -> complaints: the linter. Each names the sentence and the rule.

`check_report` holds a report against its findings, its images and its header. `check_text` knows the
text alone, whoever wrote it, and claims only what is a contradiction in itself. What counts as a
comparison, as contrast medium or as an organ of one sex is data: `lexicon/check.toml`. A complaint is a
question to the reader; none of them stops a draft.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path

from mla_med.report.extract import Mention, extract, read_languages
from mla_med.report.interpret import interpret
from mla_med.report.parse import agrees, parse_impression, parse_sentence
from mla_med.report.schema import Schema, schema_of
from mla_med.report.style import Style, load_style
from mla_med.types import ClinicalContext, Complaint, Finding, Presence, Report, Sentence, Sex, Side

MIDLINE_MM = 10.0
"""Evidence nearer to the middle than this says nothing about a side."""
EXTRACTED = "chest_ct"
"""The examination whose words the extractor knows."""
_ONE_SIDE = (Side.RIGHT, Side.LEFT)


def check_report(
    report: Report,
    context: ClinicalContext | None = None,
    contrast_given: bool | None = None,
    midline_mm: float = 0.0,
    style: Style | None = None,
    codes: Collection[str] | None = None,
) -> tuple[Complaint, ...]:
    """Complaints in the order of the sentences. `midline_mm`: the patient's middle along x (RAS).
    `codes`: what this report has to speak of; None is every required finding of the examination."""
    style = style or load_style(language=report.language)
    schema = schema_of(report.examination)
    asked = [c for c, kind in schema.items() if (kind.required if codes is None else c in codes)]
    return (
        *_check_slots(report, schema, asked),
        *_check_sentences(report, style),
        *_check_impression(report, schema, style),
        *_check_sides(report.findings, schema, midline_mm),
        *_check_request(report, schema, context),
        *_check_interpretations(report, context),
        *_check_words(report, context, contrast_given),
    )


def check_text(
    text: str,
    language: str = "en",
    context: ClinicalContext | None = None,
    contrast_given: bool | None = None,
) -> tuple[Complaint, ...]:
    """Complaints about a report that anybody wrote, in any words: what contradicts the header, and what
    cannot be in any patient. `context` of None: nothing is known of the patient or of a prior."""
    words = _words(language)
    complaints: list[Complaint] = []
    for sentence in re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n+", text):
        if match := words["nowhere"].search(sentence):
            complaints.append(Complaint("NO_SUCH_PLACE", f"'{match[0]}' is in no patient.", sentence))
        if match := words["impossible_size"].search(sentence):
            complaints.append(Complaint("SIZE", f"'{match[0]}' is no size that a chest holds.", sentence))
        complaints += _check_contrast(sentence, contrast_given, words)
        if context is not None:
            complaints += _check_against_context(sentence, context, words)
    male, female = words["male"].search(text), words["female"].search(text)
    if male and female:
        complaints.append(Complaint("ORGAN_OF_OTHER_SEX", f"'{male[0]}' and '{female[0]}' in one patient."))
    return tuple(complaints)


def _check_slots(report: Report, schema: Schema, asked: Iterable[str]) -> Iterator[Complaint]:
    said = [code for sentence in report.sentences for code in sentence.codes]
    true = [finding.code for finding in report.findings]
    for code in asked:
        if code not in said:
            yield Complaint("REQUIRED_SLOT", f"{schema[code].term} is not said; a complete report says it.")
    for code in dict.fromkeys(said):
        times = max(1, true.count(code))
        if said.count(code) > times:
            words = f"{schema[code].term} is said {said.count(code)} times, and there is {times} to say."
            yield Complaint("SAID_TWICE", words)


def _check_sentences(report: Report, style: Style) -> Iterator[Complaint]:
    """Each sentence against a finding of its own: two that say the same of two nodules are one too few."""
    unsaid = list(report.findings)
    doubtful: list[tuple[Finding, str]] = []
    for sentence in report.sentences:
        stated = parse_sentence(sentence.text, style, report.examination)
        if stated is None:
            yield from _check_free(sentence.text, report)
        elif stated in unsaid:
            unsaid.remove(stated)
        else:
            doubtful.append((stated, sentence.text))
    for stated, text in doubtful:
        yield from _against(stated, unsaid, report.findings, text)


def _check_free(text: str, report: Report) -> Iterator[Complaint]:
    """A sentence that the style does not have: what the extractor reads in it, against the findings."""
    complaints: list[Complaint] = []
    if report.examination == EXTRACTED and report.language in read_languages():
        for mention in extract(text, report.language):
            same = [f for f in report.findings if f.code == mention.code]
            complaints += _against_mention(mention, same, text)
    if not complaints:
        words = "The sentence states nothing that can be checked."
        complaints.append(Complaint("UNKNOWN_SENTENCE", words, text))
    yield from complaints


def _against_mention(mention: Mention, same: Sequence[Finding], sentence: str) -> Iterator[Complaint]:
    true = {finding.presence for finding in same}
    if {mention.presence, *true} == {Presence.PRESENT, Presence.ABSENT} and mention.presence not in true:
        words = f"The sentence reads as {mention.code} {mention.presence}, the finding is {true.pop()}."
        yield Complaint("NEGATION", words, sentence)
    sides = {finding.side for finding in same if finding.presence is Presence.PRESENT}
    if mention.presence is Presence.PRESENT and mention.side and sides and mention.side not in sides:
        said = " and ".join(sorted(side for side in sides if side))
        if said and Side.BILATERAL not in {mention.side, *sides}:
            words = f"The sentence reads as {mention.code} on the {mention.side}, the finding is {said}."
            yield Complaint("SIDE", words, sentence)


def _against(
    stated: Finding, unsaid: Sequence[Finding], findings: Sequence[Finding], sentence: str
) -> Iterator[Complaint]:
    """What a sentence says against the nearest finding of its code that nothing else speaks of."""
    same = [f for f in unsaid if f.code == stated.code]
    if same:
        yield min((_difference(stated, f, sentence) for f in same), key=lambda row: row[0])[1]
    elif stated not in findings:
        words = f"The sentence states {stated.code} {stated.presence}, which is no finding."
        yield Complaint("NOT_A_FINDING", words, sentence)


def _difference(stated: Finding, true: Finding, sentence: str) -> tuple[int, Complaint]:
    """-> how far from each other, and the first thing that differs, the gravest first."""
    values = (
        ("NEGATION", stated.presence, true.presence),
        ("SIDE", stated.side, true.side),
        ("SITE", stated.site, true.site),
        ("SIZE", stated.size_mm, true.size_mm),
        ("COUNT", stated.count, true.count),
        ("CHANGE", stated.change, true.change),
    )
    faults = [(rule, said, is_) for rule, said, is_ in values if said != is_]
    rule, said, is_ = faults[0]
    return len(faults), Complaint(rule, f"The sentence says {said}, the finding is {is_}.", sentence)


def _check_impression(report: Report, schema: Schema, style: Style) -> Iterator[Complaint]:
    said: set[str] = set()
    for sentence in report.impression:
        stated = parse_impression(sentence.text, style, report.examination)
        said |= {f.code for f in stated} or set(sentence.codes)
        for finding in stated:
            yield from _against_findings(finding, report.findings, schema, sentence)
    present = {f.code for f in report.findings if f.presence is Presence.PRESENT}
    for code in schema:
        if code in present - said:
            words = f"{schema[code].term} is present and not in the impression."
            yield Complaint("IMPRESSION", words)


def _against_findings(
    stated: Finding, findings: Iterable[Finding], schema: Schema, sentence: Sentence
) -> Iterator[Complaint]:
    same = [f for f in findings if f.code == stated.code]
    if any(agrees(stated, f) for f in same):
        return
    term = schema[stated.code].term
    if not any(f.presence is stated.presence for f in same):
        words = f"The impression says {term} {stated.presence}, the findings do not."
    else:
        words = f"The impression describes {term} otherwise than the findings."
    yield Complaint("IMPRESSION", words, sentence.text)


def _check_sides(findings: Iterable[Finding], schema: Schema, midline_mm: float) -> Iterator[Complaint]:
    for finding in findings:
        if finding.evidence is None or finding.side not in _ONE_SIDE:
            continue
        low, high = finding.evidence.box_mm
        x = (low[0] + high[0]) / 2 - midline_mm
        if abs(x) > MIDLINE_MM and (x > 0) != (finding.side is Side.RIGHT):
            seen = "right" if x > 0 else "left"
            yield Complaint(
                "SIDE_OF_EVIDENCE",
                f"{schema[finding.code].term} is said to be {finding.side}, its evidence "
                f"lies {abs(x):.0f} mm to the {seen}.",
            )


def _check_request(report: Report, schema: Schema, context: ClinicalContext | None) -> Iterator[Complaint]:
    """What the request states on one side and the report on the other alone. Both may be right, of two
    lesions; but then one of them is not spoken of."""
    if context is None or report.examination != EXTRACTED:
        return
    for code, asked in _sides_of(context.indication).items():
        there = {f.side for f in report.findings if f.code == code and f.presence is Presence.PRESENT}
        if len(there) == 1 and not there & {asked, Side.BILATERAL, None}:
            stating = (s.text for s in report.sentences if code in s.codes)
            yield Complaint(
                "SIDE_OF_REQUEST",
                f"The request states {schema[code].term} on the {asked}, "
                f"the report on the {there.pop()} alone.",
                next(stating, ""),
            )


def _sides_of(request: str) -> dict[str, Side]:
    """Code -> the one side on which a request, in any language that is read, states the finding. Not what it
    asks for, denies or tells of the past; nor where a side may be that of a pain."""
    named: dict[str, set[Side]] = {}
    stated: dict[str, Side] = {}
    for language in read_languages():
        starts, alone = _sides_by_clause(request, language)
        for mention in extract(request, language):
            if mention.side is None or mention.presence is Presence.ABSENT:
                continue
            named.setdefault(mention.code, set()).add(mention.side)
            # the side has to stand beside the finding, and a doubt need not
            beside = alone[bisect_right(starts, mention.start) - 1]
            if mention.presence is Presence.PRESENT and (mention.code, mention.side) in beside:
                stated[mention.code] = mention.side
    return {code: side for code, side in stated.items() if side in _ONE_SIDE and named[code] == {side}}


def _sides_by_clause(request: str, language: str) -> tuple[list[int], list[set[tuple[str, Side | None]]]]:
    """Where each clause begins, and the codes and sides that it names when read by itself, with the place
    that follows it; none where its words make it a question or something else."""
    words, clauses = _words(language), list(_CLAUSE.finditer(request))
    alone: list[set[tuple[str, Side | None]]] = []
    for clause, following in zip_longest(clauses, clauses[1:]):
        text = clause[0]
        if following and words["place"].search(following[0]):
            text = f"{text}, {following[0]}"
        is_stated = not words["unstated"].search(text)
        alone.append({(m.code, m.side) for m in extract(text, language)} if is_stated else set())
    return [clause.start() for clause in clauses], alone


_CLAUSE = re.compile(r"(?:[^.,;:，。；：\n]|\.(?=\d))+")


def _check_interpretations(report: Report, context: ClinicalContext | None) -> Iterator[Complaint]:
    if context is None:
        return
    legal = interpret(report.findings, context, report.examination)
    for key in report.interpretations:
        if key not in legal:
            words = f"The impression says {key.replace('_', ' ')}, which findings and request do not support."
            yield Complaint("INTERPRETATION", words)


def _check_words(
    report: Report, context: ClinicalContext | None, contrast_given: bool | None
) -> Iterator[Complaint]:
    words = _words(report.language)
    whole = (*report.sentences, *report.impression)
    for sentence in whole:
        yield from _check_against_context(sentence.text, context or ClinicalContext(), words)
    for text in (report.technique, *(s.text for s in whole)):
        yield from _check_contrast(text, contrast_given, words)


def _check_against_context(
    sentence: str, context: ClinicalContext, words: dict[str, re.Pattern[str]]
) -> Iterator[Complaint]:
    if not context.prior and (match := words["comparison"].search(sentence)):
        yield Complaint(
            "COMPARISON_WITHOUT_PRIOR", f"'{match[0]}' compares, and there is no prior.", sentence
        )
    if context.sex in (Sex.FEMALE, Sex.MALE):
        organ = words["male" if context.sex is Sex.FEMALE else "female"].search(sentence)
        if organ:
            words_ = f"'{organ[0]}', and the patient is {context.sex}."
            yield Complaint("ORGAN_OF_OTHER_SEX", words_, sentence)


def _check_contrast(
    text: str, contrast_given: bool | None, words: dict[str, re.Pattern[str]]
) -> Iterator[Complaint]:
    if contrast_given is None:
        return
    if contrast_given and (match := words["no_contrast"].search(text)):
        yield Complaint("CONTRAST", f"'{match[0]}', and the header has a contrast medium.", text)
    if not contrast_given and (match := words["contrast"].search(text)) and not words["advised"].search(text):
        yield Complaint("CONTRAST", f"'{match[0]}', and the header has no contrast medium.", text)


@cache
def _words(language: str) -> dict[str, re.Pattern[str]]:
    """What a language calls each thing that a rule looks for; nothing, in a language without such words."""
    lists = tomllib.loads((Path(__file__).parent / "lexicon" / "check.toml").read_text(encoding="utf-8"))
    own = lists.get(language, {})
    return {name: re.compile("|".join(own.get(name, ["(?!)"])), re.IGNORECASE) for name in lists["en"]}
