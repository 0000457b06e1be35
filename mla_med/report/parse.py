"""Text -> Report: the inverse of render, for text in a known style.

A sentence that the style does not hold is kept without a code: nothing is guessed, nothing is lost.
Width of punctuation, digits and spaces does not matter, nor does the case of letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from mla_med.report.interpret import Interpretation, rules
from mla_med.report.render import impression_choices, legal_changes, sentence_choices
from mla_med.report.schema import FindingType, schema_of
from mla_med.report.style import KEY_OF, Style, load_style
from mla_med.types import Change, Finding, Presence, Report, Sentence

_BULLET = re.compile(r"^\s*(?:[-•*·]\s+|\(?\d{1,2}(?:[)）、]|[.．](?!\d))\s*)")


@dataclass(frozen=True, slots=True)
class _Pattern:
    code: str
    presence: Presence
    words: re.Pattern[str]
    before: str
    after: str
    """What stands before the first slot and after the last: most sentences fail at these."""


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Phrases without slots by their text, those with slots as expressions."""

    literal: dict[str, Finding]
    slotted: tuple[_Pattern, ...]


def parse_report(text: str, style: Style | None = None, examination: str = "chest_ct") -> Report:
    """-> Report with a finding for each sentence that the style knows, in the order of the schema.
    What no sentence states is not among them."""
    style = style or load_style()
    order = list(schema_of(examination))
    sections = _split_sections(text, style)
    sentences, findings = [], []
    for words in _split_sentences(sections["findings"], style, examination):
        finding = parse_sentence(words, style, examination)
        sentences.append(Sentence(words, (finding.code,) if finding else ()))
        if finding and finding not in findings:
            findings.append(finding)
    findings.sort(key=lambda f: order.index(f.code))
    impression, meanings = [], []
    for words in _split_sentences(sections["impression"], style, examination):
        rule = parse_interpretation(words, style, examination)
        if rule is not None:
            meanings.append(rule.key)
        codes = [rule.finding] if rule else [f.code for f in parse_impression(words, style, examination)]
        impression.append(Sentence(words, tuple(dict.fromkeys(codes))))
    return Report(
        findings=tuple(findings),
        sentences=tuple(sentences),
        impression=tuple(impression),
        technique=sections["technique"],
        language=style.language,
        examination=examination,
        interpretations=tuple(dict.fromkeys(meanings)),
    )


def parse_sentence(
    sentence: str, style: Style | None = None, examination: str = "chest_ct"
) -> Finding | None:
    """The finding that one sentence of the findings states, None where the style has no such sentence."""
    style = style or load_style()
    return next(iter(_read(sentence, style, examination, "findings")), None)


def parse_impression(
    sentence: str, style: Style | None = None, examination: str = "chest_ct"
) -> list[Finding]:
    """The findings that one sentence of the impression states: none, one, or all that cannot be said."""
    style = style or load_style()
    return _read(sentence, style, examination, "impression") or _read_cannot_say(sentence, style, examination)


def parse_interpretation(
    sentence: str, style: Style | None = None, examination: str = "chest_ct"
) -> Interpretation | None:
    """The rule whose words a sentence of the impression has, None if it has no rule's."""
    style = style or load_style()
    return _interpretations(style, examination).get(_normal(sentence, style))


def check_style(style: Style) -> list[str]:
    """What is wrong with a style's phrases, a line each: every statement it can make is made and read back.

    Sites, sides and change are tried one by one, sizes and counts with two values."""
    return [fault for examination in style.examinations for fault in _faults(style, examination)]


def _read(sentence: str, style: Style, examination: str, section: str) -> list[Finding]:
    patterns = _patterns(style, examination, section)
    words = _normal(sentence, style)
    for change, codes, bare in _without_change(words, style, examination):
        finding = patterns.literal.get(bare)
        if finding is None:
            for pattern in patterns.slotted:
                if not (bare.startswith(pattern.before) and bare.endswith(pattern.after)):
                    continue
                if match := pattern.words.fullmatch(bare):
                    finding = _to_finding(pattern, match.groupdict(), style, examination)
                    break
        if finding is not None and finding.code in codes:
            stated = replace(finding, change=change)
            return [stated] if _can_be(stated) else []
    return []


def _can_be(finding: Finding) -> bool:
    """Whether render would say it: no nodule of 0 mm, no count of one, nothing present and resolved."""
    legal = legal_changes(finding.presence)
    return (
        (finding.change is None or finding.change in legal)
        and (finding.size_mm is None or finding.size_mm > 0)
        and (finding.count is None or finding.count >= 2)
    )


def _without_change(
    words: str, style: Style, examination: str
) -> Iterator[tuple[Change | None, Container[str], str]]:
    """The sentence as it stands, then without words for a change, and which findings change in these."""
    yield None, schema_of(examination), words
    for (change, ending), codes in _endings(style, examination).items():
        if words.endswith(ending):
            yield change, codes, words.removesuffix(ending) + _normal(style.stop, style)


@cache
def _endings(style: Style, examination: str) -> dict[tuple[Change, str], set[str]]:
    """A change and the end of its sentences -> the findings that are said to have changed so."""
    endings: dict[tuple[Change, str], set[str]] = {}
    for code, changes in style.wording(examination).changes.items():
        for change, said in changes.items():
            endings.setdefault((change, _normal(said + style.stop, style)), set()).add(code)
    return endings


@cache
def _patterns(style: Style, examination: str, section: str) -> _Patterns:
    literal, slotted = {}, []
    phrases = style.wording(examination).phrases
    for code, kind in schema_of(examination).items():
        for presence, key in _keys(kind, section):
            for phrase in phrases[code][key]:
                if "{" in phrase:
                    slotted.append(_to_pattern(code, presence, phrase, kind, style))
                else:
                    literal[_normal(phrase, style)] = Finding(code, presence)
    return _Patterns(literal, tuple(slotted))


def _keys(kind: FindingType, section: str) -> Iterator[tuple[Presence, str]]:
    several = ("several",) if kind.countable else ()
    if section == "impression":
        yield from ((Presence.PRESENT, key) for key in ("impression", *(f"impression_{s}" for s in several)))
        return
    yield from ((Presence.PRESENT, key) for key in several)
    yield from KEY_OF.items()


def _to_pattern(code: str, presence: Presence, phrase: str, kind: FindingType, style: Style) -> _Pattern:
    def any_of(words) -> str:
        texts = {_normal(word, style) for word in words if word}
        return "|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True))

    slots = {
        "place": any_of(style.place_words(place) for place in kind.places),
        "side": any_of(style.sides[side] for side in kind.sides),
        "site": any_of(style.sites[site] for site in kind.sites),
        "size": r"\d{1,3}(?:\.\d)?",
        "size_cm": r"\d{1,2}(?:\.\d{1,2})?",
        "count": r"\d{1,2}",
    }
    # the slots are kept whole while the words around them are normalised
    parts = re.split(r"(\{\w+\})", phrase)
    words = [f"\ue000{part[1:-1]}\ue001" if part.startswith("{") else part for part in parts]
    text = _normal("".join(words), style)
    pattern = re.escape(text)
    for slot, legal in slots.items():
        pattern = pattern.replace(f"\ue000{slot}\ue001", f"(?P<{slot}>{legal})", 1)
    before, after = text[: text.index("\ue000")], text[text.rindex("\ue001") + 1 :]
    return _Pattern(code, presence, re.compile(pattern), before, after)


def _to_finding(pattern: _Pattern, slots: dict[str, str], style: Style, examination: str) -> Finding | None:
    """None where the words name a place that the finding cannot have."""
    kind = schema_of(examination)[pattern.code]
    places = [place for place in kind.places if _says(slots, place, style)]
    if pattern.presence is Presence.PRESENT and not places:
        return None
    side, site = places[0] if pattern.presence is Presence.PRESENT else (None, None)
    size = float(slots["size"]) if "size" in slots else None
    if "size_cm" in slots:
        size = round(float(slots["size_cm"]) * 10, 1)
    count = int(slots["count"]) if "count" in slots else None
    return Finding(pattern.code, pattern.presence, site, side, size, count)


def _says(slots: dict[str, str], place, style: Style) -> bool:
    side, site = place
    said = {
        "place": style.place_words(place),
        "side": style.sides[side] if side else "",
        "site": style.sites[site] if site else "",
    }
    return all(slots[slot] == _normal(words, style) for slot, words in said.items() if slot in slots)


def _read_cannot_say(sentence: str, style: Style, examination: str) -> list[Finding]:
    wording = style.wording(examination)
    words = _normal(sentence, style)
    between = _normal(style.listed, style)
    codes = {_normal(term, style): code for code, term in wording.terms.items()}
    for phrase in wording.cannot_say:
        before, _, after = (_normal(part, style) for part in phrase.partition("{terms}"))
        if words.startswith(before) and words.endswith(after) and len(words) > len(before) + len(after):
            terms = words[len(before) : len(words) - len(after)].split(between)
            if all(term in codes for term in terms):
                return [Finding(codes[term], Presence.CANNOT_SAY) for term in terms]
    return []


@cache
def _interpretations(style: Style, examination: str) -> dict[str, Interpretation]:
    rule_of = {rule.key: rule for rule in rules(examination)}
    phrases = style.wording(examination).interpretations
    return {_normal(words, style): rule_of[key] for key in rule_of for words in phrases[key]}


@lru_cache(maxsize=8192)
def _normal(text: str, style: Style) -> str:
    """One spelling for what reads the same: width, case and spaces. Chinese has no spaces to keep."""
    text = unicodedata.normalize("NFKC", text).casefold()
    if style.language == "zh":
        return re.sub(r"\s+", "", text)
    return re.sub(r"\ban (?=\d|\ue000)", "a ", re.sub(r"\s+", " ", text))


def _split_sections(text: str, style: Style) -> dict[str, str]:
    """Section name -> its text. Text without headings is all findings."""
    heads = {_normal(style.headings[name], style): name for name in ("technique", "findings", "impression")}
    sections = dict.fromkeys(heads.values(), "")
    section = "findings"
    for line in re.split(
        "(" + "|".join(map(_loosely, style.headings.values())) + r")|(\n)", text, flags=re.IGNORECASE
    ):
        if line is None:
            continue
        if _normal(line, style) in heads:
            section = heads[_normal(line, style)]
        else:
            sections[section] += line
    return {name: body.strip() for name, body in sections.items()}


def _loosely(heading: str) -> str:
    """A heading with its colon of either width."""
    return re.sub("[:：]", "[:：]", re.escape(heading)) if heading.strip(", ") else r"(?!)"


def _split_sentences(text: str, style: Style, examination: str) -> list[str]:
    """Sentences without their bullets and without the titles of groups."""
    titles = sorted((g.title for g in style.wording(examination).groups), key=len, reverse=True)
    ends = r"(?<=[.!?])\s+|\n+" if style.stop == "." else r"(?<=[。！？])\s*|(?<=；)\s*|\n+"
    sentences = []
    for line in re.split(r"\n+", text):
        line = _without_title(line.strip(), titles)
        line = _BULLET.sub("", line, count=1)
        sentences += [s.strip() for s in re.split(ends, line)]
    return [s for s in sentences if s]


def _without_title(line: str, titles: Sequence[str]) -> str:
    for title in titles:
        if match := re.match(_loosely(title), line, re.IGNORECASE):
            return line[match.end() :].strip()
    return line


def _faults(style: Style, examination: str) -> Iterator[str]:
    for rule in rules(examination):
        for words in style.wording(examination).interpretations[rule.key]:
            meant = parse_interpretation(words, style, examination)
            if meant is not rule or parse_impression(words, style, examination):
                yield f"{examination} [interpretations] {rule.key}: '{words}' is read as something else."
            if len(_split_sentences(words, style, examination)) != 1:
                yield f"{examination} [interpretations] {rule.key}: '{words}' is read as two sentences."
    for code, kind in schema_of(examination).items():
        for finding in _every_statement(kind):
            for text in sentence_choices(finding, style, examination):
                yield from _fault(
                    text, finding, [parse_sentence(text, style, examination)], style, examination
                )
                if len(_split_sentences(text, style, examination)) != 1:
                    yield f"{examination} [{code}]: '{text}' is read as more than one sentence."
            if finding.presence is Presence.PRESENT:
                for slot in impression_choices([finding], style, examination):
                    for sentence in slot:
                        read = parse_impression(sentence.text, style, examination)
                        yield from _fault(sentence.text, finding, read, style, examination, whole=False)


def _fault(
    text: str,
    meant: Finding,
    read: Sequence[Finding | None],
    style: Style,
    examination: str,
    whole: bool = True,
) -> Iterator[str]:
    """An impression need not repeat size or place, but must not contradict them."""
    where = f"{examination} [{meant.code}]: '{text}'"
    if len(read) != 1 or read[0] is None:
        yield f"{where} is not read as a statement."
    elif (read[0] != meant) if whole else not agrees(read[0], meant):
        yield f"{where} is read as {_brief(read[0])}, and means {_brief(meant)}."


def agrees(said: Finding, meant: Finding) -> bool:
    """Whether everything that `said` states is so in `meant`; what it leaves open is no contradiction."""
    return (said.code, said.presence) == (meant.code, meant.presence) and all(
        said_value is None or said_value == meant_value
        for said_value, meant_value in (
            (said.side, meant.side),
            (said.site, meant.site),
            (said.size_mm, meant.size_mm),
            (said.count, meant.count),
            (said.change, meant.change),
        )
    )


def _every_statement(kind: FindingType) -> Iterator[Finding]:
    yield from (Finding(kind.key, p) for p in (Presence.ABSENT, Presence.CANNOT_SAY))
    yield Finding(kind.key, Presence.ABSENT, change=Change.RESOLVED)
    for side, site in kind.places:
        for size in (7.0, 12.5) if kind.has_size else (None,):
            for count in (None, 3, 12) if kind.countable else (None,):
                for change in (None, *(c for c in Change if c is not Change.RESOLVED)):
                    yield Finding(kind.key, Presence.PRESENT, site, side, size, count, change)


def _brief(finding: Finding) -> str:
    values = (finding.presence, finding.side, finding.site, finding.size_mm, finding.count, finding.change)
    return " ".join([finding.code, *(str(v) for v in values if v is not None)])
