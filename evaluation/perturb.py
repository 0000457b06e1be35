"""References -> the perturbation card: what a perfect report loses when it is made wrong, or only reworded.

Each reference is changed in one way and scored against itself. A fault that costs a score nothing is a
fault this score cannot see; a rewording that raises an alarm is a false alarm. Caught is what any check
of the suite complains of: a finding that appears, goes, is denied or changes its place or size, a
sentence that says otherwise, a comparison where the reference has none. The seed is fixed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from evaluation.conflicts import find_conflicts
from evaluation.findings import Reader, Reading, count_findings, finding_measures, match_findings, sizes_agree
from evaluation.text import text_scores
from mla_med.report.check import check_text
from mla_med.types import ClinicalContext, Presence, Side

SEED = 20261126
MOST = 150
"""References that the card is made of: enough for shares within 4 %, and a matter of seconds."""
BARS = {"fault": 0.9, "harmless": 0.05, "identity": 0.0}
_SENTENCE = {
    "en": re.compile(r"[^\n]+?(?:\.[\"”]?(?=\s|$)|[!?][\"”]?(?=\s+[\"“A-Z]|\s*$)|\n|$)\s*"),
    "zh": re.compile(r"[^。！？\n]+[。！？\n]*"),
}
_DENY = {
    "en": re.compile(
        r"\b(?:there (?:is|are|was|were) )?(?:no|without|not|cannot)\b(?: evidence of| signs? of)?\s*", re.I
    ),
    "zh": re.compile("未见明显|未见|未及|没有|无(?!法)|未(?!来)"),
}
_SIZE = re.compile(
    r"(?<![A-Za-z0-9_.,-])(\d+(?:[.,]\d+)?)((?:\s*(?:x|×|\*|-|–|~)\s*\d+(?:[.,]\d+)?)*)(\s*)(mm|cm)(?![a-z])",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_INVENTED = {
    "en": (
        ("pneumothorax", "There is a large pneumothorax on the left."),
        ("lung_mass", "There is a 45 mm mass in the right upper lobe."),
        ("pericardial_effusion", "There is a pericardial effusion."),
        ("pleural_effusion", "There is a right pleural effusion."),
        ("hiatal_hernia", "There is a hiatal hernia."),
        ("emphysema", "There is emphysema."),
    ),
    "zh": (
        ("pneumothorax", "左侧气胸。"),
        ("pericardial_effusion", "心包积液。"),
        ("pleural_effusion", "右侧胸腔积液。"),
        ("hiatal_hernia", "食管裂孔疝。"),
        ("emphysema", "两肺肺气肿。"),
    ),
}
_COMPARED = {
    "en": "Compared with the previous examination, the findings are unchanged.",
    "zh": "与前片对比，病变较前无明显变化。",
}
_SYNONYMS = {
    "en": (
        (r"\b(is|are|was|were) (?:not observed|not detected)\b", r"\1 not seen"),
        (r"\b(is|are|was|were) (?:observed|detected)\b", r"\1 seen"),
        (r"\bthere is no evidence of\b", "there is no"),
        (r"\bwithin normal limits\b", "normal"),
        (r"\bunremarkable\b", "normal"),
        (r"\bapproximately\b", "about"),
    ),
    "zh": (("可见", "见"), ("约", "大约"), ("未见明显", "未见")),
}
_BRITISH = (
    (r"\bedema", "oedema"),
    (r"\besophag", "oesophag"),
    (r"\bhemorrhag", "haemorrhag"),
    (r"\btumor", "tumour"),
    (r"\bcenter", "centre"),
    (r"\bvisualized\b", "visualised"),
)


Pool = tuple[tuple[str, str], ...]
"""Finding code and a sentence that states it as present."""


@dataclass(frozen=True, slots=True)
class Perturbation:
    """One way to change a report; `change` gives None where there is nothing to change."""

    name: str
    kind: str
    """identity, fault or harmless."""
    words: str
    change: Callable[[str, Reading, random.Random], str | None]


@dataclass(frozen=True, slots=True)
class CardRow:
    """What one perturbation does, over the references it applies to."""

    name: str
    kind: str
    words: str
    num: int
    caught: float
    """Share that a check complains of: wanted for a fault, a false alarm otherwise."""
    scores: Mapping[str, float]
    """BLEU-4 and others of the changed texts against themselves."""

    @property
    def holds(self) -> bool:
        """Whether the bar of its kind is kept; vacuously where it applies to nothing."""
        if not self.num:
            return True
        return self.caught >= BARS["fault"] if self.kind == "fault" else self.caught <= BARS[self.kind]


def perturbation_card(
    references: Sequence[str],
    read: Reader,
    codes: Sequence[str],
    language: str = "en",
    protocol: str = "coco",
    most: int = MOST,
) -> tuple[CardRow, ...]:
    texts = [text for text in dict.fromkeys(references) if text.strip()]
    rng = random.Random(SEED)
    chosen = sorted(rng.sample(range(len(texts)), min(most, len(texts))))
    pairs = [(texts[k], read(texts[k])) for k in chosen]
    pool = _pool(pairs, codes, language)
    return tuple(_row(p, pairs, read, codes, language, protocol) for p in perturbations(language, pool))


def perturbations(language: str = "en", pool: Pool | None = None) -> tuple[Perturbation, ...]:
    """`pool`: sentences to invent findings with; None takes those of a chest."""
    return (
        Perturbation("identity", "identity", "nothing is changed", lambda text, _, __: text),
        Perturbation(
            "negations dropped", "fault", "every “no”, “not” and “without” is struck", _deny(language)
        ),
        Perturbation("sides swapped", "fault", "left becomes right, right becomes left", _swap(language)),
        Perturbation("sizes times ten", "fault", "every size is ten times as large", _times_ten),
        Perturbation("findings omitted", "fault", "sentences with a present finding go", _omit(language)),
        Perturbation(
            "findings invented", "fault", "three findings that are not there", _invent(language, pool)
        ),
        Perturbation("prior invented", "fault", "a comparison with no prior", _compare(language)),
        Perturbation("order", "harmless", "the second half of the report first", _turn(language)),
        Perturbation("synonyms", "harmless", "other words for seen, normal, about", _reword(language)),
        Perturbation("units", "harmless", "sizes in mm told in cm, and the reverse", _convert),
        Perturbation("spacing and case", "harmless", "capitals, double spaces, line breaks", _respace),
        *(
            (Perturbation("British spelling", "harmless", "oedema for edema", _british),)
            if language == "en"
            else ()
        ),
    )


def alarms(
    reference: str, draft: str, theirs: Reading, ours: Reading, language: str = "en"
) -> tuple[str, ...]:
    """What the suite complains of in one draft: codes in SCREAMING_SNAKE_CASE, each once."""
    if reference == draft:
        return ()
    found = []
    present = [{f.code for f in r.findings if f.presence is Presence.PRESENT} for r in (theirs, ours)]
    denied = {f.code for f in theirs.findings if f.presence is Presence.ABSENT}
    if present[1] - present[0]:
        found.append("CONTRADICTED" if (present[1] - present[0]) & denied else "INVENTED")
    if present[0] - present[1]:
        found.append("OMITTED")
    for a, b in match_findings(theirs.findings, ours.findings):
        if a.side is not b.side and a.side in (Side.LEFT, Side.RIGHT):
            found.append("SIDE")
        if a.site and a.site != b.site:
            found.append("SITE")
        if not sizes_agree(a.size_mm, b.size_mm):
            found.append("SIZE")
    found += [conflict.kind.upper() for conflict in find_conflicts(reference, draft, language)]
    if compares(draft, language) and not compares(reference, language):
        found.append("PRIOR")
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=1 << 15)
def compares(text: str, language: str = "en") -> bool:
    """Whether a text compares with an earlier examination."""
    complaints = check_text(text, language, ClinicalContext())
    return any(complaint.rule == "COMPARISON_WITHOUT_PRIOR" for complaint in complaints)


def _row(
    perturbation: Perturbation,
    pairs: Sequence[tuple[str, Reading]],
    read: Reader,
    codes: Sequence[str],
    language: str,
    protocol: str,
) -> CardRow:
    rng = random.Random(SEED)
    changed = [(text, reading, perturbation.change(text, reading, rng)) for text, reading in pairs]
    made = [
        (text, reading, new, read(new))
        for text, reading, new in changed
        if new is not None and (new != text or perturbation.kind == "identity")
    ]
    caught = [bool(alarms(text, new, before, after, language)) for text, before, new, after in made]
    return CardRow(
        name=perturbation.name,
        kind=perturbation.kind,
        words=perturbation.words,
        num=len(made),
        caught=float(np.mean(caught)) if made else float("nan"),
        scores=_scores(made, codes, protocol) if made else {},
    )


def _scores(
    made: Sequence[tuple[str, Reading, str, Reading]], codes: Sequence[str], protocol: str
) -> dict[str, float]:
    wording = ("BLEU-4", "ROUGE-L")
    texts = text_scores([text for text, *_ in made], [new for _, _, new, _ in made], protocol, wording)
    counts = count_findings([b.findings for _, b, _, _ in made], [a.findings for *_, a in made], codes)
    measures = {m.name: m.statistic for m in finding_measures(counts)}
    whole = np.ones((1, len(made)))
    values: dict[str, float] = {name: texts[name].value for name in wording}
    for name in ("F1 micro", "side accuracy", "size agreement", "hallucination", "omission"):
        values[f"findings {name}" if name.startswith("F1") else name] = float(measures[name](whole)[0])
    return values


def _sentences(text: str, language: str) -> list[str]:
    return _SENTENCE[language].findall(text)


def _deny(language: str) -> Callable[..., str | None]:
    return lambda text, _, __: _DENY[language].sub("", text)


def _swap(language: str) -> Callable[..., str | None]:
    words = {"en": {"left": "right", "right": "left"}, "zh": {"左": "右", "右": "左"}}[language]
    pattern = re.compile(r"\b(left|right)\b" if language == "en" else "[左右]", re.IGNORECASE)

    def swap(text: str, _: Reading, __: random.Random) -> str | None:
        def other(match: re.Match[str]) -> str:
            word = words[match[0].lower()]
            return word.capitalize() if match[0][0].isupper() else word

        swapped = pattern.sub(other, text)
        # "the right lung is clear. the left lung is clear." says the same when swapped
        before, after = (sorted(s.strip().lower() for s in _sentences(t, language)) for t in (text, swapped))
        return None if before == after else swapped

    return swap


def _times_ten(text: str, _: Reading, __: random.Random) -> str | None:
    return _SIZE.sub(lambda m: _scaled(m, 10, m[4]), text)


def _convert(text: str, _: Reading, __: random.Random) -> str | None:
    def convert(match: re.Match[str]) -> str:
        to_cm = match[4].lower() == "mm"
        return _scaled(match, 0.1 if to_cm else 10, "cm" if to_cm else "mm")

    return _SIZE.sub(convert, text)


def _scaled(match: re.Match[str], factor: float, unit: str) -> str:
    numbers = _NUMBER.sub(lambda n: f"{float(n[0].replace(',', '.')) * factor:.6g}", match[1] + match[2])
    return f"{numbers}{match[3]}{unit}"


def _omit(language: str) -> Callable[..., str | None]:
    def omit(text: str, reading: Reading, _: random.Random) -> str | None:
        places = [m.start for m in reading.marks if m.presence is Presence.PRESENT]
        if not places:
            return None
        kept, at = [], 0
        for sentence in _sentences(text, language):
            if not any(at <= place < at + len(sentence) for place in places):
                kept.append(sentence)
            at += len(sentence)
        return "".join(kept)

    return omit


def _pool(pairs: Sequence[tuple[str, Reading]], codes: Sequence[str], language: str) -> Pool:
    """Sentences of a chest where chests are read, of these reports otherwise."""
    if {code for code, _ in _INVENTED[language]} & set(codes):
        return _INVENTED[language]
    found: dict[str, str] = {}
    for text, reading in pairs:
        at = 0
        for sentence in _sentences(text, language):
            for mark in reading.marks:
                if mark.presence is Presence.PRESENT and at <= mark.start < at + len(sentence):
                    found.setdefault(mark.code, sentence.strip())
            at += len(sentence)
    return tuple(found.items())


def _invent(language: str, pool: Pool | None) -> Callable[..., str | None]:
    def invent(text: str, reading: Reading, rng: random.Random) -> str | None:
        present = {f.code for f in reading.findings if f.presence is Presence.PRESENT}
        free = [sentence for code, sentence in pool or _INVENTED[language] if code not in present]
        if len(free) < 3:
            return None
        return text.rstrip() + _joint(language) + _joint(language).join(rng.sample(free, 3))

    return invent


def _compare(language: str) -> Callable[..., str | None]:
    def compare(text: str, _: Reading, __: random.Random) -> str | None:
        if compares(text, language):
            return None
        return text.rstrip() + _joint(language) + _COMPARED[language]

    return compare


def _joint(language: str) -> str:
    return " " if language == "en" else ""


def _turn(language: str) -> Callable[..., str | None]:
    # not shuffled: a sentence may lean on the one before it ("it measures 8 mm")
    def turn(text: str, _: Reading, __: random.Random) -> str | None:
        sentences = [s.strip() for s in _sentences(text, language) if s.strip()]
        if len(sentences) < 3 or not all(s.rstrip('"”')[-1:] in tuple(".!?。！？") for s in sentences):
            return None
        half = len(sentences) // 2
        return _joint(language).join(sentences[half:] + sentences[:half])

    return turn


def _reword(language: str) -> Callable[..., str | None]:
    def reword(text: str, _: Reading, __: random.Random) -> str | None:
        for old, new in _SYNONYMS[language]:
            text = re.sub(old, new, text, flags=re.IGNORECASE)
        return text

    return reword


def _british(text: str, _: Reading, __: random.Random) -> str | None:
    for old, new in _BRITISH:
        text = re.sub(old, new, text, flags=re.IGNORECASE)
    return text


def _respace(text: str, _: Reading, __: random.Random) -> str | None:
    """Sentences begin with small letters, and two spaces stand between them."""
    return re.sub(r"(?<=[.!?])\s+(\w)", lambda m: "  " + m[1].lower(), text[:1].lower() + text[1:])
