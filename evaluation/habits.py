"""Drafts -> how they are written: sentences against the reference, comparisons with no prior, the template.

What no list of findings can see. Each is a share of reports. Knows nothing of scores and floors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.conflicts import find_conflicts
from evaluation.findings import Reader
from evaluation.perturb import compares
from evaluation.statistics import Measure, mean, share
from mla_med.report.schema import Schema
from mla_med.types import Presence

_PLACEHOLDER = re.compile(
    r"_{2,}|\bX{3,}\b|<unk>|\[(?:\s|[A-Z ]+)\]|\bTODO\b|\{\w+\}|\bN/?A\b", re.IGNORECASE
)
_NO_UNIT = {
    "en": re.compile(
        r"\b(?:measur(?:es|ing)|sized?)\s+(?:about |approximately |up to |of )?\d+(?:\.\d+)?"
        r"(?!\s*(?:mm|cm|x|×|\*|by|\.?\d|-|to))",
        re.I,
    ),
    "zh": re.compile(r"(?:大小|直径|最大径)约?\s*\d+(?:\.\d+)?(?!\s*(?:mm|cm|毫米|厘米|x|×|\*|\.?\d))", re.I),
}
_PERSON = {
    "en": re.compile(r"\b(?:I|we|my|our)\b(?! (?:-|\d))"),
    "zh": re.compile("我们?|本人"),
}
_IMPRESSION = {
    "en": re.compile(r"\b(?:impression|conclusion|summary)\s*:", re.I),
    "zh": re.compile("(?:印象|诊断意见|影像诊断|结论)[:：]"),
}
_FINDINGS = {"en": re.compile(r"\bfindings\s*:", re.I), "zh": re.compile("(?:影像)?(?:所见|表现)[:：]")}


def habit_measures(
    references: Sequence[str],
    drafts: Sequence[str],
    priors: Sequence[bool | None],
    template_R: np.ndarray,
    language: str,
) -> list[Measure]:
    """`priors`: whether each case has an earlier examination; None where it is not known."""
    conflict_R = np.array(
        [bool(find_conflicts(r, d, language)) for r, d in zip(references, drafts, strict=True)], float
    )
    without_R = np.array(
        [has_no_prior(p, r, language) for p, r in zip(priors, references, strict=True)], float
    )
    compares_R = np.array([compares(draft, language) for draft in drafts], float)
    known = sum(prior is not None for prior in priors)
    return [
        Measure.of(
            "conflicting drafts",
            mean(conflict_R),
            "a sentence with another side, denial or size than its counterpart|of drafts",
            higher_is_better=False,
        ),
        Measure.of(
            "temporal claims without prior",
            share(compares_R * without_R, without_R),
            f"prior known:{known}, else the reference compares|of {without_R.sum():.0f} drafts without",
            higher_is_better=False,
        ),
        Measure.of(
            "template adherence",
            mean(template_R),
            "mean of: required findings said, no placeholder, units, no first person, impression and order",
        ),
    ]


def has_no_prior(prior: bool | None, reference: str, language: str) -> bool:
    """Where nobody says, a reference that compares had something to compare with."""
    return not (compares(reference, language) if prior is None else prior)


def prior_of(meta: Mapping[str, object]) -> bool | None:
    from evaluation.subgroups import group_of

    return None if meta.get("prior") is None else group_of("prior", meta["prior"]) == "yes"


def template_score(text: str, read: Reader, schema: Schema, language: str = "en") -> float:
    """Mean of the checks that apply; 0 for an empty report."""
    if not text.strip():
        return 0.0
    required = {code for code, kind in schema.items() if kind.required}
    said = {f.code for f in read(text).findings}
    checks = [
        len(required & said) / len(required),
        not _PLACEHOLDER.search(text),
        not _NO_UNIT[language].search(text),
        not _PERSON[language].search(text),
    ]
    impression, findings = (pattern[language].search(text) for pattern in (_IMPRESSION, _FINDINGS))
    if impression and findings:
        checks.append(findings.start() < impression.start())
    if impression:
        above, below = (
            {f.code for f in read(part).findings if f.presence is Presence.PRESENT}
            for part in (text[: impression.start()], text[impression.end() :])
        )
        checks.append(below <= above)
    return float(np.mean([float(check) for check in checks]))
