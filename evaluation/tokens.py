"""Text -> the words that image captioning scores count: Penn Treebank tokens, lower case, no punctuation.

The words of pycocoevalcap, which calls the Java PTBTokenizer 3.4.1 with -preserveLines -lowerCase and then
drops 18 marks (tokenizer/ptbtokenizer.py). The rules were found from its inputs and outputs alone. Like a
lexer, the longest rule wins at every place. What stands between two blanks is split once and remembered;
white space of any kind ends a word and nothing else, so no newline can shift a pair. Knows English only.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

DROPPED = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
"""Upper case as in pycocoevalcap, whose brackets are lower case by then and so stay in."""

_NEXT_IS_NUMBER = "\x00"
"""Behind a point; the next word is out of sight when a word is split."""
_JOINED = "\x01"
"""A blank inside a token, as in 3 1/2, for which the Java tokenizer writes a no-break space."""

_UNLIKE = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209f\u2100-\u218f"
"""Letters or digits to Unicode, marks to the Java tokenizer: superscripts, fractions, signs like №."""
_ALNUM = rf"(?:(?![_{_UNLIKE}])[\w\u02c2-\u02df])"
_LETTER = rf"(?:(?![\d_{_UNLIKE}])[\w\u02c2-\u02df])"
_WORD = f"{_LETTER}{_ALNUM}*"

_ABBREVIATIONS_LISTED = """
    adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif capt cf cie
    cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs ens esq est etc ext feb fla fri ft
    ga gen gov hon inc ind insp intl jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich
    minn mme mo mon mont mr mrs ms mt natl neb nev nov oct okla penn ph plc pres prof profs pty pvt rd rep
    reps rev rt sen sens sep sept seq sgt sr st ste supt sys tel tenn thu thurs tue tues univ va vs vt wed
    wis wisc wm wyo
"""
_ABBREVIATIONS = frozenset(_ABBREVIATIONS_LISTED.split())
_CAPITAL_ABBREVIATIONS = frozenset(
    ("ark", "az", "del", "ill", "la", "mass", "miss", "ore", "pa", "tex", "wash")
)
"""Words of their own in lower case."""
_COUNTED = frozenset(("no", "nos", "fig", "figs", "art", "ca", "op", "pp", "prop"))
"""Abbreviations only before a number."""

_RULES = tuple(
    re.compile(pattern)
    for pattern in (
        # tags, addresses of pages and people
        r"</?[a-z][a-z0-9._-]*/?>|<!--[^>]*-->|<\?[^<>]*\?>|<[^\s<>@]+@[^\s<>@]+>",
        r"https?://[^\s\"<>|()]*[^\s\"<>|.!?(){},-]",
        r"(?:www\.(?:[^\s\"<>|.!?(){},/]+\.)+[a-z]{2,4}|(?:[^\s\"`'<>|.!?(){},_$/-]+\.)+(?:com|net|org|edu))"
        r"(?:/[^\s\"<>|()]*[^\s\"<>|.!?(){},-])?",
        r"(?:mailto:)?[a-z0-9][^\s\"<>|(),;:@]*@(?:[^\s\"<>|().,@]+\.)*[a-z0-9]+",
        # numbers: 1,000.5 -0.5 .5 12:30
        r"[-+]?(?:[0-9]*(?:[.,:][0-9]+)+|[0-9]+)",
        # dates and fractions: 12/03/2019 11/2-12 5-6/7
        r"[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}",
        rf"[0-9]+[-{_JOINED}][0-9]+/[0-9]+",
        # words, also those of letters and digits: nodule 5mm t12
        rf"{_ALNUM}+",
        # before one of these, any word keeps its point
        rf"{_ALNUM}+\.(?=[,;:])",
        # hyphens join, also behind the point or comma of an abbreviation or a number; low lines join words
        rf"{_ALNUM}+(?:[.,]{_ALNUM}+)*[.,]?(?:[-\u2010\u2011](?!\u00b5){_ALNUM}+)+",
        rf"{_ALNUM}+(?:[-_]{_ALNUM}+)+",
        rf"{_ALNUM}+-[a-z](?:\.[a-z])+\.",
        # one or two slashes join, with at most two hyphens on either side
        r"[a-z0-9]+(?:-[a-z]+){0,2}(?:/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}",
        # points join words that lack the blank behind a sentence: clear.no; initials keep their last one
        rf"{_WORD}(?:\.{_WORD})+",
        rf"{_LETTER}+(?:[.!?]{_LETTER}+)+",
        rf"[a-z](?:\.[a-z])+\.|ph\.d\.|[a-z]\.(?!{_LETTER})",
        # apostrophes inside a word: o'brien l'eau ne'er
        rf"[dlno]'{_LETTER}{{2,}}(?:-{_ALNUM}+)*|{_LETTER}+[aeiouy]'[aeiou]{_LETTER}*",
        rf"[dl]'(?={_LETTER}|$)|y'(?={_LETTER})|(?:c'mon|c'est|e'er|cap'n|ol'|anti-)(?!{_LETTER})",
        # and before one: 's 'll 'em '90s
        r"'n'|''|'(?:s|d|m|ll|re|ve|n|[0-9]{2}s)(?![a-z0-9])|'[0-9]{2}$|'(?:em|till?|cause|n'|t(?=is|was))",
        r"n't(?![a-z0-9])",
        # marks and money
        r"[cf]#|c\+\+|(?:us|hk|nz|[acsru])\$|[?!]{2,}|<{2}|>{2}|-{5,}|-{2,4}|_+|\*+|\.{3,5}|\u00bb{2}",
        rf"#{_LETTER}+|@{_LETTER}\w*|#+|@+",
        r"[<>]?[:;=]['o-]?[()](?![a-z0-9])|[:=;]-?[dp\]\[](?![a-z0-9])|\^_\^",
        r"[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+",
        r"&(?:amp|lt|gt|quot|apos|nbsp|#[0-9]+);",
    )
)
_IN_TWO = re.compile(
    rf"(?:(can)(not)|(gon)(na)|(got)(ta)|(wan)(na)|(lem)(me)|(gim)(me)|({_LETTER}+)(n['`]t))"
    rf"(?!{_ALNUM}|-{_ALNUM})"
)
_ABBREVIATION = re.compile(r"([a-z]+)\.(?![a-z])")
_CAPITALS = re.compile(r"[A-Z]+(?:[&+][A-Z]+)+|[A-HJ-XZ]'(?!(?:[Ll][Ll]|[RrVv][Ee])\b)[A-Za-z]{2,}")
"""Only in capitals: A&B; of the letters before an apostrophe not I and Y: I've, Y'all."""
_CURLY = re.compile(r"\u2019|(?<=[^\W_])\u2018(?=[^\W_])")

# what the next word decides
_POINT = re.compile(r"\.\s(?=[0-9ABEHILMNOSTWY])")
_COUNTED_BEFORE = re.compile(rf"(?:^|[\W_])(?:{'|'.join(sorted(_COUNTED))})$", re.IGNORECASE)
_LETTER_BEFORE = re.compile(r"(?:^|[^\w.])[A-Za-z]$")
_OPENER = re.compile(
    r"(?:A(?i:bout|ccording|dditionally|fter|n|s|t)?|B(?i:ut)|E(?i:arlier)|H(?i:er?|ere|owever)|I[fntFNT]"
    r"|L(?i:ast)|M(?i:any|ore)|N(?i:ow)|O(?i:nce|ne|ther|ur)|S(?i:he|ince|o|ome|uch)"
    r"|T(?i:hat|he|heir|hen|here|hese|hey|his)|W(?i:e|hat|hen|hile)|Y(?i:et|ou))(?![^\W_]|[.:])"
)
"""A single letter keeps its point, except where one of these opens a sentence behind it."""
_MIXED_FRACTION = re.compile(r"(?<![\w.,:+-])(?<![0-9]/)([0-9]{1,4})\s([0-9]{1,4}/[0-9]{1,4})")
_SPACED_TAG = re.compile(
    r"<[a-z][a-z0-9]*(?:\s+[a-z][a-z0-9:.-]*\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s<>\"']+))*\s*/?>",
    re.IGNORECASE,
)

_WRITTEN = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    **{"\u00a3": "#", "\u00a2": "cents", "\u20ac": "$", "\x80": "$"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'"},
    **{'"': "''", "\u201c": "``", "\u201d": "''", "\u2018": "`", "\u2019": "'"},
    **{"\u00ab": "``", "\u00bb": "''", "\u00bb\u00bb": "''''"},
    **{"\u2013": "--", "\u2014": "--", "---": "--", "----": "--", "\u2010": "-", "\u2011": "-"},
    "\u2026": "...",
}
_UNSEEN = ("Cc", "Cf", "Co", "Cn")
"""Control, format and private characters leave nothing."""


def tokenise(text: str) -> list[str]:
    text = _POINT.sub(_decide, text)
    if "/" in text:
        text = _MIXED_FRACTION.sub(rf"\1{_JOINED}\2", text)
    if "<" in text and (tags := _SPACED_TAG.findall(text)):
        tokens: list[str] = []
        for part, tag in zip(_SPACED_TAG.split(text), [*tags, ""], strict=True):
            tokens += _tokens_of(part)
            tokens += ["\xa0".join(tag.lower().split())] if tag else []
        return tokens
    return _tokens_of(text)


def _decide(point: re.Match[str]) -> str:
    text, at = point.string, point.start()
    before = text[max(0, at - 5) : at]
    if text[point.end()].isdigit():
        return f".{_NEXT_IS_NUMBER} " if _COUNTED_BEFORE.search(before) else point[0]
    if _LETTER_BEFORE.search(before) and _OPENER.match(text, point.end()):
        return " . "
    return point[0]


def _tokens_of(text: str) -> list[str]:
    tokens: list[str] = []
    for chunk in text.split():
        tokens += _split(chunk)
    return tokens


@lru_cache(maxsize=1 << 17)
def _split(chunk: str) -> tuple[str, ...]:
    """What stands between two blanks -> its words."""
    text = _CURLY.sub("'", chunk)
    lower = text.lower()
    if len(lower) != len(text):  # a few letters grow: İ
        chunk = text = lower
    tokens: list[str] = []
    at = 0
    while at < len(lower):
        words, at = _next(chunk, text, lower, at)
        tokens += [word for word in words if word not in DROPPED]
    return tuple(tokens)


def _next(chunk: str, text: str, lower: str, at: int) -> tuple[tuple[str, ...], int]:
    """The longest token from here, or the two that one word becomes, and the place behind it."""
    end = max((match.end() for rule in _RULES if (match := rule.match(lower, at))), default=0)
    end = max(end, at + 1)
    if (both := _IN_TWO.match(lower, at)) and both.end() >= end:
        return tuple(part for part in both.groups() if part), both.end()
    if (short := _ABBREVIATION.match(lower, at)) and short.end() > end and _is_short(short, text):
        end = short.end()
    if (capitals := _CAPITALS.match(text, at)) and capitals.end() > end:
        end = capitals.end()
    word = lower[at:end]
    if word.strip("'") and "'" in word[1:]:  # a curly one stays as it is inside a word
        word = chunk[at:end].lower()
    return (_write(word),), end


def _is_short(short: re.Match[str], text: str) -> bool:
    word, behind = short[1], text[short.end() : short.end() + 1]
    if word in _COUNTED:
        return behind == _NEXT_IS_NUMBER or behind.isdigit()
    if word in _CAPITAL_ABBREVIATIONS:
        return text[short.start()].isupper()
    return word in _ABBREVIATIONS


def _write(word: str) -> str:
    if word in _WRITTEN:
        return _WRITTEN[word]
    if not word.strip(".") or unicodedata.category(word[0]) in _UNSEEN:
        return "."
    return word.replace(_JOINED, "\xa0").replace("(", "-lrb-").replace(")", "-rrb-")
