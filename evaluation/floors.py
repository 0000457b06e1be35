"""What takes no image to write: the drafts every model must beat, scored beside it.

Texts (constant, normal, random) get every score; findings without a text (all-positive,
all-negative) get the F1 scores.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from evaluation.findings import Findings, Parse
from mla_med.types import Finding, Presence

RANDOM_SEED = 7


def floor_texts(references: Sequence[str], source: Sequence[str], parse: Parse) -> dict[str, list[str]]:
    """One draft per reference, for each floor that is a text. `source`: where constants come from."""
    texts = {"constant": [medoid(source)] * len(references)}
    normal = [text for text in source if is_normal(parse(text))]
    if normal:
        texts["normal"] = [medoid(normal)] * len(references)
    if len(references) > 1:
        texts["random"] = [references[k] for k in random_others(len(references))]
    return texts


def floor_findings(codes: Sequence[str], num_reports: int) -> dict[str, list[Findings]]:
    everything = tuple(Finding(code, Presence.PRESENT) for code in codes)
    nothing = tuple(Finding(code, Presence.ABSENT) for code in codes)
    return {"all positive": [everything] * num_reports, "all negative": [nothing] * num_reports}


def describe_floors(source_name: str, source: Sequence[str]) -> dict[str, str]:
    count = source.count(medoid(source))
    return {
        "constant": f"the medoid of the {source_name}, {count} of {len(source)}: "
        "the text nearest in its words to all others",
        "normal": f"the medoid of those {source_name} that state no finding as present",
        "random": f"the reference of another report, permuted with seed {RANDOM_SEED}",
        "all positive": "every finding present in every report",
        "all negative": "every finding absent in every report",
    }


def is_normal(findings: Findings) -> bool:
    """Something is stated, and nothing of it as present."""
    return bool(findings) and all(f.presence is Presence.ABSENT for f in findings)


def medoid(texts: Sequence[str]) -> str:
    """The text with the largest mean cosine of word counts to all texts, the first of equals.
    Frequent texts pull it, so a common report is its own medoid."""
    words = [Counter(text.lower().split()) for text in texts]
    norms = [np.sqrt(sum(n * n for n in counted.values())) or 1.0 for counted in words]
    centre: defaultdict[str, float] = defaultdict(float)
    for counted, norm in zip(words, norms, strict=True):
        for word, n in counted.items():
            centre[word] += n / norm
    nearness = [
        sum(n * centre[word] for word, n in counted.items()) / norm
        for counted, norm in zip(words, norms, strict=True)
    ]
    return texts[int(np.argmax(np.round(nearness, 9)))]


def random_others(count: int) -> list[int]:
    """A permutation in which nobody keeps their place: each takes the next in a shuffled ring."""
    ring = np.random.default_rng(RANDOM_SEED).permutation(count)
    others = np.empty(count, dtype=int)
    others[ring] = np.roll(ring, -1)
    return [int(k) for k in others]
