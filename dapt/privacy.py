"""Text of a report -> where it may say who somebody is; the text with that masked.

Rules for what 45 CFR 164.514(b)(2)(i) (HIPAA, safe harbor) lists and reports hold: dates finer than a year,
names behind a title or a signature, record and accession numbers, telephone numbers, e-mail addresses, UIDs,
ages over 89; in English and Chinese. A name without a title, an address or a rare occupation is not found:
what passes here is not therefore anonymous. Knows no patient; what a header says of one is taken out by
`mla_med.dicom.context.without_identity`. Nothing here keeps or shows what was found, only where.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

KINDS = ("e-mail", "uid", "accession", "number", "date", "phone", "name", "age over 89")
"""In the order in which they are looked for: a date is not a telephone number."""


@dataclass(frozen=True, slots=True)
class Identifier:
    """Characters [start, end) of a text."""

    kind: str
    start: int
    end: int


def find_identifiers(text: str) -> tuple[Identifier, ...]:
    """In the order of the text, none within another."""
    found: list[Identifier] = []
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            # a label or a title tells nobody who it is: the part behind it does
            start, end = match.span("who" if "who" in pattern.groupindex else 0)
            if not any(start < other.end and other.start < end for other in found):
                found.append(Identifier(kind, start, end))
    return tuple(sorted(found, key=lambda one: one.start))


def mask_identifiers(text: str) -> str:
    """The text with [date], [name] ... in the place of what was found."""
    pieces, done = [], 0
    for one in find_identifiers(text):
        pieces += [text[done : one.start], f"[{one.kind}]"]
        done = one.end
    return "".join((*pieces, text[done:]))


def count_kinds(found: Iterable[Identifier]) -> dict[str, int]:
    counts = Counter(one.kind for one in found)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_YEAR, _DAY, _NUMBER = r"(?:19|20)\d\d", r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])"
_DATES = (
    rf"(?<![\d.]){_YEAR}([-/.]){_NUMBER}\1{_DAY}(?!\d)",
    rf"(?<![\d./-])(?:{_DAY}([-/.]){_NUMBER}\1|{_NUMBER}([-/.]){_DAY}\2){_YEAR}(?!\d)",
    # two digits of a year stand behind strokes; 2.5.12 may be a level or a version
    rf"(?<![\d./-])(?:{_DAY}/{_NUMBER}|{_NUMBER}/{_DAY})/\d\d(?![\d/])",
    rf"(?<!\d){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)",
    rf"\b{_DAY}(?:st|nd|rd|th)?(?: of)?[ -]{_MONTH},?[ -](?:{_YEAR}|\d\d)(?!\d)",
    rf"\b{_MONTH} {_DAY}(?:st|nd|rd|th)?,? {_YEAR}(?!\d)",
    rf"\b{_MONTH},? (?:of )?{_YEAR}(?!\d)",
    rf"\b(?:on|dated|from|since) {_NUMBER}/{_DAY}(?![\d/-]| ?[mc]m)",
    rf"\b(?:on|dated|from|since) {_MONTH} {_DAY}(?:st|nd|rd|th)?\b",
    rf"{_YEAR}\s?年\s?\d{{1,2}}\s?月(?:\s?\d{{1,2}}\s?日)?",
    rf"(?<!\d){_YEAR}[-/.]{_NUMBER}(?![\d./-])",
)
_CODE = r"[A-Za-z]{0,5}[-/]?\d[A-Za-z0-9/-]{2,}"
_SIGN = r"\s*(?:no\.?|number|nr\.?|id|#|号)?\s*[:：#]?\s*"
_ACCESSION = rf"(?:\baccession|\bacc(?:\.|\s?#|\sno\.?)|检查号|影像号|放射号|申请单号){_SIGN}(?P<who>{_CODE})"
_NUMBERS = (
    rf"(?:\bMRN|\bmedical record|\brecord no\.?|\bpatient[ -]?id|\bpat[. ]?id|\bhospital (?:no\.?|number|id)"
    rf"|\bcase (?:no\.?|number)|\bssn"
    rf"|病历号|病案号|住院号|门诊号|患者编号|登记号|身份证号?){_SIGN}(?P<who>{_CODE})",
    r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])",
)
_LONG_NUMBER = r"(?<!PMID:)(?<!PMID: )(?<![\d.,])\d{7,}(?![\d.,]*\d)"
_PHONES = (
    r"(?:\bphone|\btel(?:ephone)?|\bpager|\bfax|\bmobile|\bcell|\bext(?:ension)?|电话|手机)\.?\s*(?:no\.?|number|"
    r"#)?\s*[:：#]?\s*(?P<who>\+?\(?\d[\d ()./-]{2,}\d)",
    r"(?<![\d.])\+\d{1,3}[ .-]?\(?\d[\d ()./-]{6,}\d",
    r"(?<![\d.])(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\d.])",
    r"(?<!\d)1[3-9]\d{9}(?!\d)",
)
# a surname is capitalised, and so is the first word of a sentence: behind a title or a verb it is a name
_WORD = r"[A-ZÀ-ÖØ-Þ](?:[a-zß-öø-ÿ]+|')(?:[A-ZÀ-Þ][a-zß-ÿ]+)?(?:-[A-ZÀ-Þ][a-zß-ÿ]+)?"
_PARTICLE = r"(?:van|von|der|den|de|del|della|di|da|dos|el|al|bin|ben|le|la)"
_INITIAL = r"[A-Z]\."
_PLACES = (
    r"(?:The|Radiology|Emergency|Department|Team|Service|Surgery|Clinic|Hospital|Physician|Doctor|Patient|"
    r"Resident|Attending|Phone|Telephone|Axial|Contrast|Chest|Plain|Dictation|Findings|Impression|University|Institute|"
    r"Consultant|Radiologist|Courtesy)\b"
)
_NAME = (
    rf"(?:{_INITIAL}\s?)*(?:{_PARTICLE} ){{0,2}}{_WORD}"
    rf"(?:,? (?!{_PLACES})(?:{_INITIAL} ?|{_PARTICLE} )*{_WORD}){{0,2}}"
)
_CAPITALS = r"[A-ZÀ-Þ][A-ZÀ-Þ'-]+(?:,? [A-ZÀ-Þ][A-ZÀ-Þ'-]*\.?){0,2}"
_NAMES = (
    rf"(?<![A-Za-z])(?:[Dd]r|[Pp]rof(?:essor)?|[Dd]octor|Mr|Mrs|Ms|Miss|Herr|Frau)\b\.?\s(?:[Mm]ed\.? )?"
    rf"(?!{_PLACES})(?P<who>{_NAME})",
    rf"(?<![A-Za-z])(?:DR\.?|PROF\.?|MRS\.) (?:MED\.? )?(?P<who>{_CAPITALS})",
    rf"(?i:(?:\bpatient(?:'s)? name|^name|\breferring (?:physician|doctor)|radiologist|attending|referred by|"
    rf"transcriptionist|physician|technologist)\s*:\s*)(?!{_PLACES})(?P<who>{_NAME}|{_CAPITALS})",
    rf"(?i:\b(?:dictated|signed|reported|read|verified|transcribed|reviewed|approved|interpreted) by\s*:?\s*)"
    rf"(?!{_PLACES})(?P<who>{_NAME}|{_CAPITALS})",
    rf"(?i:\b(?:discussed with|communicated (?:to|with)|reported to|notified)\s+)(?!{_PLACES})"
    rf"(?P<who>{_WORD} (?:{_INITIAL} )?{_WORD})",
    r"\b[A-ZÀ-Þ][A-Za-zÀ-ÿ'-]+\^[A-ZÀ-Þ][A-Za-zÀ-ÿ'^.-]*",
    r"(?:姓名|报告医[师生]|审核医[师生]|检查医[师生]|记录者|签名|医[师生])\s*[:：]\s*(?P<who>[\u4e00-\u9fff·]{2,4})",
)
_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林郑谢罗梁宋唐许韩冯邓曹彭曾肖田董袁潘蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭"
    "陆汪范廖贾夏韦付邹孟熊秦邱江尹薛闫雷侯龙陶黎贺顾毛郝龚邵钱严覃武戴莫孔"
)
_TITLED = (
    rf"(?<![\u4e00-\u9fff])(?P<who>[{_SURNAMES}][\u4e00-\u9fff]{{0,2}})(?:医生|医师|主任|教授|先生|女士)"
)
_AGES = r"\b(?P<who>(?:9\d|1[01]\d))(?=[ -]?(?:years?\b|yrs?\b|y/?o\b)|\s?岁)"


def _compile() -> Iterator[tuple[str, re.Pattern[str]]]:
    yield "e-mail", re.compile(r"[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+")
    yield "uid", re.compile(r"(?<![\d.])\d+(?:\.\d+){5,}")
    yield "accession", re.compile(_ACCESSION, re.IGNORECASE)
    for pattern in _NUMBERS:
        yield "number", re.compile(pattern, re.IGNORECASE)
    for pattern in _DATES:
        yield "date", re.compile(pattern, re.IGNORECASE)
    for pattern in _PHONES:
        yield "phone", re.compile(pattern, re.IGNORECASE)
    yield "number", re.compile(_LONG_NUMBER)
    for pattern in (*_NAMES, _TITLED):
        yield "name", re.compile(pattern, re.MULTILINE)
    yield "age over 89", re.compile(_AGES, re.IGNORECASE)


_PATTERNS = tuple(_compile())
