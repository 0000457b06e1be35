"""Free text of a report -> mentions: which finding, present or not, where, how large, since when.

Rules only, no weights: terms and triggers are data (`lexicon/<language>.toml`), this is the engine.
Scope follows ConText (Harkema et al., J Biomed Inform 2009): a trigger holds for the terms after or
before it, up to a word that ends its scope, and pseudo-triggers hold for nothing. Time is linear in
the text. Knows no grammar and no anatomy beyond the lexicon: what refers back over several sentences,
or is said in words that the lexicon does not have, is missed.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

from mla_med.errors import ReportError
from mla_med.types import Change, Presence, Side

_LEXICON = Path(__file__).parent / "lexicon"
_SENTENCE_END = re.compile(
    r"""[.!?](?=[\s"“”•·]|$)              # a stop, not the point of a decimal
      | (?<=[a-z)])\.(?=[A-Z])            # a stop without its space
      | [。！？]
      | \n(?=[^\S\n]*(?:\n|[A-Z0-9•·*-]|$))  # a line of its own, not one that was wrapped
      | (?<=[.\s])["“”]+(?=\s)           # a quotation mark that stands alone is a bullet
      | [•·]""",
    re.VERBOSE,
)
_NEW_TOPIC = frozenset('\n"“”•·')
_SIGN = re.compile(r"[;；,，。\[]|\\\?")
_ONE_SPACE = str.maketrans(dict.fromkeys("\n\r\t\u00a0\u3000/-–‐‑", " "))
_REACH = 3
"""How many sentences back an organ is looked for."""
_COUNT_REACH = 80
"""How many characters before a term its count is looked for."""
_BOUND_REACH = 20
"""The same, before a size, for the words that make it a bound."""
_LONGEST = 1500
"""Characters of a sentence: what goes on without a stop would take ever longer to read."""
_MARGIN = ' \t\r\n"“”•·-'

Span = tuple[int, int]
"""Characters [start, end)."""


@dataclass(frozen=True, slots=True)
class Mention:
    """One place where a text speaks of a finding."""

    code: str
    """A key of the chest CT schema."""
    presence: Presence
    """Absent also where it has gone; cannot say where it is doubted, asked, or history."""
    side: Side | None
    site: str | None
    """A key of the lexicon's sites; None where none or several are named."""
    size_mm: float | None
    """The largest dimension stated."""
    change: Change | None
    count: int | None
    start: int
    """Characters [start, end) of the text are the term."""
    end: int
    sentence: Span
    """Characters of the text that are its sentence."""


def extract(text: str, language: str = "en") -> tuple[Mention, ...]:
    """Mentions in the order of the text; ReportError LANGUAGE_UNKNOWN names the languages there are.

    A lymph node counts as lymphadenopathy whatever its size, as in the labels of CT-RATE
    (Hamamci et al., 2024)."""
    lexicon = _load_lexicon(language)
    page = _read_page(text, lexicon)
    hits = sorted(_find_terms(page.plain, lexicon), key=lambda hit: hit.span)
    mentions: list[Mention] = []
    for k, group in _by_sentence(hits, page):
        mentions += _read_sentence(page, k, group, lexicon)
    return tuple(mentions)


@cache
def read_languages() -> tuple[str, ...]:
    """Those that there is a lexicon for."""
    return tuple(sorted(path.stem for path in _LEXICON.glob("??.toml")))


def find_names(text: str, language: str = "en") -> list[tuple[str, Span]]:
    """(code, characters) wherever a finding is named, in whatever sense: what another reader of negation
    would have to judge. Wordings that are normal by themselves ("heart size is normal") name nothing."""
    lexicon = _load_lexicon(language)
    page = _read_page(text, lexicon)
    hits = sorted(_find_terms(page.plain, lexicon), key=lambda hit: hit.span)
    return [
        (hit.kind.code, hit.span)
        for k, group in _by_sentence(hits, page)
        for hit in _keep_own(page, k, group, lexicon)
        if not hit.normal
    ]


def find_present(mentions: Iterable[Mention]) -> set[str]:
    """The codes that the report as a whole asserts: present in one place at least."""
    return {m.code for m in mentions if m.presence is Presence.PRESENT}


# ---------------------------------------------------------------- the lexicon


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a finding is called, and what can be said of it."""

    code: str
    terms: re.Pattern[str]
    normal: re.Pattern[str] | None
    needs: re.Pattern[str] | None
    unless: re.Pattern[str] | None
    organs: frozenset[str]
    any_organ: bool
    alone: bool
    sites: frozenset[str]
    sided: bool
    sized: bool
    counted: bool


@dataclass(frozen=True, slots=True)
class _Lexicon:
    kinds: tuple[_Kind, ...]
    abbreviations: tuple[str, ...]
    # in each of these the name of the group that matched says what it is
    triggers: re.Pattern[str]
    organs: re.Pattern[str]
    sides: re.Pattern[str]
    sites: re.Pattern[str]
    changes: re.Pattern[str]
    site_sides: Mapping[str, Side]
    site_over: Mapping[str, frozenset[str]]
    """Sites that a more exact one stands for."""
    divider: re.Pattern[str]
    clause: re.Pattern[str] | None
    strong: re.Pattern[str]
    """A divider that goes before any other."""
    size: re.Pattern[str]
    bound: re.Pattern[str]
    units_mm: Mapping[str, float]
    lead: re.Pattern[str]
    """How a sentence begins that names the place first."""
    number: re.Pattern[str]
    count_before: re.Pattern[str]
    count_after: re.Pattern[str] | None
    numbers: Mapping[str, int]


@cache
def _load_lexicon(language: str) -> _Lexicon:
    path = _LEXICON / f"{language}.toml"
    if language not in read_languages():
        raise ReportError(
            f"No lexicon for the language '{language}'; there are: {', '.join(read_languages())}.",
            code="LANGUAGE_UNKNOWN",
        )
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    word, sites, size = table["text"]["word"], table["sites"], table["size"]
    units = "|".join(f"(?P<u{n}>{unit})" for n, unit in enumerate(size["units"]))
    number = f"(?:{size['number']})"
    return _Lexicon(
        kinds=tuple(_to_kind(row, word) for row in table["findings"]),
        abbreviations=tuple(f" {short}" for short in table["text"]["abbreviations"]),
        triggers=_compile_groups(table["triggers"], word),
        organs=_compile_groups(table["organs"], word),
        sides=_compile_groups(table["sides"], word),
        sites=_compile_groups({site: row["terms"] for site, row in sites.items()}, word),
        changes=_compile_groups(table["change"], word),
        site_sides={site: Side(row["side"]) for site, row in sites.items() if "side" in row},
        site_over={site: frozenset(row.get("over", ())) for site, row in sites.items()},
        divider=re.compile(table["parts"]["divider"]),
        clause=re.compile(table["parts"]["clause"]) if "clause" in table["parts"] else None,
        strong=re.compile(table["parts"]["strong"]),
        size=re.compile(
            f"(?<![a-z0-9_.,])({number}(?:{size['times']}{number}){{0,2}}) ?(?:{units})(?![a-z0-9])"
        ),
        bound=re.compile(size["bound"]),
        units_mm={f"u{n}": float(mm) for n, mm in enumerate(size["units"].values())},
        lead=re.compile(table["parts"]["lead"]),
        number=re.compile(number),
        count_before=_compile_count(table["count"]["before"], table),
        count_after=_compile_count(table["count"]["after"], table) if "after" in table["count"] else None,
        numbers=table["count"]["words"],
    )


def _compile_count(expression: str, table: Mapping) -> re.Pattern[str]:
    return re.compile(expression.format(number="|".join([r"\d{1,2}", *table["count"]["words"]])))


def _to_kind(row: Mapping, word: str) -> _Kind:
    def pattern(name: str) -> re.Pattern[str] | None:
        return re.compile(_any_of(row[name], word)) if name in row else None

    return _Kind(
        code=row["code"],
        terms=re.compile(_any_of(row["terms"], word)),
        normal=pattern("normal"),
        needs=pattern("needs"),
        unless=pattern("unless"),
        organs=frozenset(row.get("organs", ())),
        any_organ=row.get("any", False),
        alone=row.get("alone", False),
        sites=frozenset(row.get("sites", ())),
        sided=row.get("sided", False),
        sized=row.get("sized", False),
        counted=row.get("counted", False),
    )


def _compile_groups(lists: Mapping[str, Sequence[str]], word: str) -> re.Pattern[str]:
    groups = "|".join(f"(?P<{name}>{_any_of(words, word)})" for name, words in lists.items())
    # in the middle of a word no group has to be tried; only a language with spaces has such middles
    return re.compile(rf"(?=\b|[^\w\s])(?:{groups})" if r"\b" in word else groups)


def _any_of(expressions: Iterable[str], word: str) -> str:
    """Words are bounded as the language bounds them, signs are not."""
    signs = [e for e in expressions if _SIGN.match(e)]
    words = [e for e in expressions if not _SIGN.match(e)]
    return "|".join([*signs, *([word.format("|".join(words))] if words else [])])


# ---------------------------------------------------------------- the page


@dataclass(frozen=True, slots=True)
class _Page:
    """A text in lower case, character for character, and where its sentences lie."""

    lower: str
    plain: str
    """With spaces for hyphens, slashes and line breaks."""
    sentences: tuple[Span, ...]
    topics: tuple[bool, ...]
    """Whether a sentence begins a new line or bullet."""
    organs: dict[int, _Found[str]] = field(default_factory=dict)
    """Those of the sentences that were asked for so far."""


@dataclass(frozen=True, slots=True)
class _Hit:
    kind: _Kind
    span: Span
    normal: bool


def _read_page(text: str, lexicon: _Lexicon) -> _Page:
    lower = text.lower()
    if len(lower) != len(text):
        # some capitals (a Turkish I with its dot) have small letters of two characters
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    plain = lower.translate(_ONE_SPACE)
    ends, topics = [0], [True]
    for match in _SENTENCE_END.finditer(text):
        if match[0] == "." and lower[max(0, match.start() - 8) : match.start()].endswith(
            lexicon.abbreviations
        ):
            continue
        ends.append(match.end())
        topics.append(not _NEW_TOPIC.isdisjoint(match[0]))
    ends.append(len(text))
    spans = list(pairwise(ends))
    if any(end - start > _LONGEST for start, end in spans):
        pieces = [_pieces(span, plain) for span in spans]
        topics = [t for t, own in zip(topics, pieces, strict=True) for t in (t, *(False,) * (len(own) - 1))]
        spans = [piece for own in pieces for piece in own]
    return _Page(lower, plain, tuple(spans), tuple(topics))


def _pieces(sentence: Span, plain: str) -> list[Span]:
    """The sentence, cut between words where it is too long."""
    start, end = sentence
    cuts = [start]
    while end - cuts[-1] > _LONGEST:
        space = plain.rfind(" ", cuts[-1] + _LONGEST // 2, cuts[-1] + _LONGEST)
        cuts.append(cuts[-1] + _LONGEST if space < 0 else space + 1)
    return list(pairwise([*cuts, end]))


def _find_terms(plain: str, lexicon: _Lexicon) -> Iterator[_Hit]:
    for kind in lexicon.kinds:
        for match in kind.terms.finditer(plain):
            yield _Hit(kind, match.span(), False)
        if kind.normal:
            for match in kind.normal.finditer(plain):
                yield _Hit(kind, match.span(), True)


def _by_sentence(hits: Sequence[_Hit], page: _Page) -> Iterator[tuple[int, list[_Hit]]]:
    starts = [start for start, _ in page.sentences]
    groups: dict[int, list[_Hit]] = {}
    for hit in hits:
        k = bisect_right(starts, hit.span[0]) - 1
        if hit.span[1] <= page.sentences[k][1]:
            groups.setdefault(k, []).append(hit)
    yield from groups.items()


# ---------------------------------------------------------------- a sentence


def _read_sentence(page: _Page, k: int, hits: list[_Hit], lexicon: _Lexicon) -> Iterator[Mention]:
    sentence = page.sentences[k]
    kept = _keep_own(page, k, hits, lexicon)
    if not kept:
        return
    words = _read_words(page, sentence, kept, lexicon)
    outer = _outer(page.plain, sentence, kept, lexicon)
    parts = _parts(page.plain, sentence, kept, lexicon)
    for hit, held, part in zip(kept, _held(page.plain, sentence, kept, lexicon), parts, strict=True):
        kind, spans = hit.kind, (*_clause(page.plain, hit, part, lexicon), part, *outer)
        site = _site(words, kind, spans, lexicon)
        implied = lexicon.site_sides.get(site or "")
        sizes = words.sizes.within(part) if kind.sized else []
        yield Mention(
            code=kind.code,
            presence=_to_presence(held),
            side=(implied or _side(words, spans)) if kind.sided else None,
            site=site,
            size_mm=max((mm for _, mm in sizes), default=None),
            change=_change(words, held, spans),
            count=_count(page.lower, sentence, hit, lexicon) if kind.counted else None,
            start=hit.span[0],
            end=hit.span[1],
            sentence=_trim(page.lower, sentence),
        )


def _keep_own(page: _Page, k: int, hits: list[_Hit], lexicon: _Lexicon) -> list[_Hit]:
    """Without what stands in another organ, or beside words that make it something else."""
    sentence = page.sentences[k]
    parts = _parts(page.plain, sentence, hits, lexicon)
    organs = _organs(page, k, lexicon) if any(h.kind.organs for h in hits) else None
    kept = []
    fits: dict[tuple[str, Span], bool] = {}
    for hit, part in zip(hits, parts, strict=True):
        kind = hit.kind
        if (kind.code, part) not in fits:
            fits[kind.code, part] = not (kind.unless and kind.unless.search(page.plain, *part)) and not (
                kind.needs and not kind.needs.search(page.plain, *sentence)
            )
        if not fits[kind.code, part]:
            continue
        if kind.organs and organs is not None:
            wide = (_listed_from(page.plain, part, hits, lexicon), part[1]) if kind.any_organ else part
            if not _in_organ(page, k, hit, wide, organs, lexicon):
                continue
        kept.append(hit)
    return kept


def _listed_from(plain: str, part: Span, hits: Sequence[_Hit], lexicon: _Lexicon) -> int:
    """Where a list that ends in this part begins ("aortic and coronary calcification"): at the first divider
    after the hit before it, not at the last."""
    n = bisect_left(hits, part[0], key=lambda hit: hit.span[0])
    if n == 0:
        return part[0]
    divider = lexicon.divider.search(plain, hits[n - 1].span[1], part[0])
    return divider.start() if divider else part[0]


def _in_organ(page: _Page, k: int, hit: _Hit, part: Span, organs: _Found[str], lexicon: _Lexicon) -> bool:
    here = organs.within(part) or organs.within(page.sentences[k])
    if not here:
        before = _organ_before(page, k, lexicon)
        return before in hit.kind.organs if before else hit.kind.alone
    if hit.kind.any_organ:
        return any(name in hit.kind.organs for _, name in here)
    start, end = hit.span
    distances = [max(0, organ[0] - end, start - organ[1]) for organ, _ in here]
    nearest = min(distances)
    return any(
        name in hit.kind.organs
        for (_, name), distance in zip(here, distances, strict=True)
        if distance == nearest
    )


def _organs(page: _Page, k: int, lexicon: _Lexicon) -> _Found[str]:
    if k not in page.organs:
        page.organs[k] = _find(lexicon.organs, page.plain, page.sentences[k])
    return page.organs[k]


def _organ_before(page: _Page, k: int, lexicon: _Lexicon) -> str | None:
    """The last organ that the sentences before name, within the topic."""
    for back in range(k, max(k - _REACH, 0), -1):
        if page.topics[back]:
            return None
        found = _organs(page, back - 1, lexicon)
        if found.items:
            return found.items[-1][1]
    return None


def _parts(plain: str, sentence: Span, hits: Sequence[_Hit], lexicon: _Lexicon) -> list[Span]:
    """What of the sentence belongs to each hit: up to the last divider before the next one."""
    ends, first = [], 0
    for n, (hit, following) in enumerate(pairwise(hits)):
        between = hit.span[1], following.span[0]
        dividers = list(lexicon.divider.finditer(plain, *between)) if between[0] < between[1] else []
        dividers = [d for d in dividers if lexicon.strong.fullmatch(d[0])] or dividers
        if dividers:
            ends.append((first, n + 1, dividers[-1].start()))
            first = n + 1
    ends.append((first, len(hits), sentence[1]))
    parts, start = [], sentence[0]
    for low, high, end in ends:
        parts += [(start, end)] * (high - low)
        start = end
    return parts


def _clause(plain: str, hit: _Hit, part: Span, lexicon: _Lexicon) -> tuple[Span, ...]:
    """Where a place is looked for first, in a language whose commas divide clauses."""
    if lexicon.clause is None:
        return ()
    before = [match.end() for match in lexicon.clause.finditer(plain, part[0], hit.span[0])]
    after = lexicon.clause.search(plain, hit.span[1], part[1])
    return ((before[-1] if before else part[0], after.start() if after else part[1]),)


def _outer(plain: str, sentence: Span, hits: Sequence[_Hit], lexicon: _Lexicon) -> tuple[Span, ...]:
    """Where words stand that hold for every hit: after the last, and before the first if it leads in."""
    after = (hits[-1].span[1], sentence[1])
    before = (sentence[0], hits[0].span[0])
    return (before, after) if lexicon.lead.match(plain, *before) else (after,)


# ---------------------------------------------------------------- present or not


def _held(plain: str, sentence: Span, hits: Sequence[_Hit], lexicon: _Lexicon) -> list[set[str]]:
    """What the triggers say of each hit: absent, gone, unsure, past, doubt, or nothing."""
    triggers = [(m.lastgroup or "", m.span()) for m in lexicon.triggers.finditer(plain, *sentence)]
    before = _sweep([(t, span[1]) for t, span in triggers], [h.span[0] for h in hits], "_before")
    # read backwards, what follows comes first: the same sweep, on negative positions
    after = _sweep([(t, -span[0]) for t, span in reversed(triggers)], [-h.span[1] for h in hits], "_after")
    return [
        {"absent"} | ((ahead | behind) & {"gone"}) if hit.normal else ahead | behind
        for hit, ahead, behind in zip(hits, before, after, strict=True)
    ]


def _sweep(triggers: Sequence[tuple[str, int]], places: Sequence[int], direction: str) -> list[set[str]]:
    """What holds at each place, from the triggers passed on the way there."""
    order = sorted(range(len(places)), key=places.__getitem__)
    held: list[set[str]] = [set() for _ in places]
    now: set[str] = set()
    passed = 0
    for n in order:
        while passed < len(triggers) and triggers[passed][1] <= places[n]:
            now = _pass(triggers[passed][0], now, direction)
            passed += 1
        held[n] = now
    return held


def _pass(trigger: str, now: set[str], direction: str) -> set[str]:
    """What holds behind a trigger. Sets are not shared: each step makes its own."""
    if trigger == "pseudo":
        return now
    if trigger == "pause":
        return now - {"doubt"}
    if trigger == "doubt":
        return now | {"doubt"} if direction == "_after" else now
    if trigger.endswith(direction):
        return now | {trigger.removesuffix(direction)}
    if trigger in _ENDS[direction]:
        return set()
    return now


_ENDS = {
    "_before": frozenset(("stop", "verb", "absent_after", "gone_after", "unsure_after")),
    "_after": frozenset(("stop", "verb", "absent_before")),
}


def _to_presence(held: set[str]) -> Presence:
    if held & {"absent", "gone"}:
        return Presence.ABSENT
    return Presence.CANNOT_SAY if held else Presence.PRESENT


# ---------------------------------------------------------------- where, how large, how many, since when


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Found(Generic[T]):
    """Things found in a text, in order."""

    starts: list[int]
    items: list[tuple[Span, T]]

    def within(self, span: Span) -> list[tuple[Span, T]]:
        return self.items[bisect_left(self.starts, span[0]) : bisect_left(self.starts, span[1])]

    def first_within(self, spans: Iterable[Span]) -> list[T]:
        """Of the first span that holds any."""
        return next((found for span in spans if (found := [v for _, v in self.within(span)])), [])


@dataclass(frozen=True, slots=True)
class _Words:
    """What a sentence says of its findings."""

    sides: _Found[str]
    sites: _Found[str]
    changes: _Found[str]
    sizes: _Found[float]


def _read_words(page: _Page, sentence: Span, hits: Sequence[_Hit], lexicon: _Lexicon) -> _Words:
    """Only what one of the findings can have: most of the time goes into these four."""
    kinds = [hit.kind for hit in hits]
    nowhere = (sentence[0], sentence[0])
    sized = sentence if any(kind.sized for kind in kinds) else nowhere
    return _Words(
        sides=_find(lexicon.sides, page.plain, sentence if any(k.sided for k in kinds) else nowhere),
        sites=_find(lexicon.sites, page.plain, sentence if any(k.sites for k in kinds) else nowhere),
        changes=_find(lexicon.changes, page.plain, sentence),
        sizes=_to_found(_sizes_mm(page.lower, sized, lexicon)),
    )


def _find(pattern: re.Pattern[str], text: str, span: Span) -> _Found[str]:
    return _to_found((m.span(), m.lastgroup or "") for m in pattern.finditer(text, *span))


def _to_found(items: Iterable[tuple[Span, T]]) -> _Found[T]:
    listed = list(items)
    return _Found([span[0] for span, _ in listed], listed)


def _sizes_mm(lower: str, span: Span, lexicon: _Lexicon) -> Iterator[tuple[Span, float]]:
    """The largest dimension of each size; "less than 1 cm" is none."""
    for match in lexicon.size.finditer(lower, *span):
        if not lexicon.bound.search(lower, max(span[0], match.start() - _BOUND_REACH), match.start()):
            numbers = [float(n.replace(",", ".")) for n in lexicon.number.findall(match[1])]
            yield match.span(), round(max(numbers) * lexicon.units_mm[match.lastgroup or ""], 2)


def _site(words: _Words, kind: _Kind, spans: Iterable[Span], lexicon: _Lexicon) -> str | None:
    """The one site named; a more exact one stands for those it lies in."""
    for span in spans:
        named = {site for _, site in words.sites.within(span)} & kind.sites
        if named:
            named -= {wide for site in named for wide in lexicon.site_over[site]}
            return named.pop() if len(named) == 1 else None
    return None


def _side(words: _Words, spans: Iterable[Span]) -> Side | None:
    named = set(words.sides.first_within(spans))
    if not named:
        return None
    return Side(named.pop()) if len(named) == 1 else Side.BILATERAL


def _change(words: _Words, held: set[str], spans: Iterable[Span]) -> Change | None:
    if "gone" in held:
        return Change.RESOLVED
    if "absent" in held:
        return None
    named = words.changes.first_within(spans)
    return Change(named[0]) if named else None


def _count(lower: str, sentence: Span, hit: _Hit, lexicon: _Lexicon) -> int | None:
    start = max(sentence[0], hit.span[0] - _COUNT_REACH)
    match = lexicon.count_before.search(lower, start, hit.span[1])
    if match is None and lexicon.count_after:
        match = lexicon.count_after.match(lower, hit.span[1], sentence[1])
    if match is None:
        return None
    number = lexicon.numbers.get(match[1]) or int(match[1])
    return number if number > 0 else None


def _trim(lower: str, sentence: Span) -> Span:
    words = lower[slice(*sentence)]
    start = sentence[0] + len(words) - len(words.lstrip(_MARGIN))
    return start, max(start, sentence[0] + len(words.rstrip(_MARGIN)))
