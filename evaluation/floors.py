"""What takes no image to write: the drafts every model must beat, scored beside it.

Texts (constant, normal, random, nearest neighbour) get every score; findings without a text
(all-positive, all-negative) get the scores that know presence alone. The nearest neighbour has read the
reference to choose its report: it is what retrieval could reach at best, not a draft without images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from scipy.sparse import csr_matrix

from evaluation.findings import Findings, Parse
from mla_med.types import Finding, Presence

RANDOM_SEED = 7
NEAREST = "nearest neighbour"
MOST_TRIED = 120
"""Reports on which the candidates for the constant are tried."""
_PER_STRATUM = 4
_ROWS = 256


def floor_texts(
    references: Sequence[str],
    source: Sequence[str],
    parse: Parse,
    is_train: bool = False,
    groups: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """One draft per reference, for each floor that is a text. `source`: where they come from;
    `is_train`: other reports than the references, so that any of them may be taken. `groups`: whose each
    reference is; nobody's other report is taken for theirs. None: each is somebody else's."""
    texts = {"constant": [best_constant(source)] * len(references)}
    normal = [text for text in source if is_normal(parse(text))]
    if normal:
        texts["normal"] = [medoid(normal)] * len(references)
    if is_train:
        drawn = np.random.default_rng(RANDOM_SEED).integers(len(source), size=len(references))
        texts["random"] = [source[k] for k in drawn]
        texts[NEAREST] = [source[k] for k in nearest(references, source)]
    elif len(references) > 1:
        whose = list(map(str, range(len(references)))) if groups is None else groups
        texts["random"] = [references[k] for k in random_others(whose)]
        texts[NEAREST] = [references[k] for k in nearest(references, references, apart=whose)]
    return texts


def floor_findings(codes: Sequence[str], num_reports: int) -> dict[str, list[Findings]]:
    everything = tuple(Finding(code, Presence.PRESENT) for code in codes)
    nothing = tuple(Finding(code, Presence.ABSENT) for code in codes)
    return {"all positive": [everything] * num_reports, "all negative": [nothing] * num_reports}


def describe_floors(
    source_name: str, source: Sequence[str], constant: str, is_train: bool = False
) -> dict[str, str]:
    count = source.count(constant)
    others = "" if is_train else " of other cases"
    drawn = "a training report, drawn" if is_train else "the reference of another case, permuted"
    return {
        "constant": f"one of the {source_name} for every case, {count} of {len(source)}: "
        "of those nearest in their words to all others, the one with the highest BLEU-4",
        "normal": f"the medoid of those {source_name} that state no finding as present",
        "random": f"{drawn} with seed {RANDOM_SEED}",
        NEAREST: f"of the {source_name}{others}, the one whose words are nearest to the "
        "reference (which it has read): what retrieval could reach at best",
        "all positive": "every finding present in every report",
        "all negative": "every finding absent in every report",
    }


def is_normal(findings: Findings) -> bool:
    """Something is stated, and nothing of it as present."""
    return bool(findings) and all(f.presence is Presence.ABSENT for f in findings)


def best_constant(texts: Sequence[str]) -> str:
    """The central reports, the longer among them too, are tried on a sample: BLEU punishes brevity."""
    distinct = tuple(dict.fromkeys(texts))
    if len(distinct) == 1:
        return distinct[0]
    central = centrality(texts)
    lengths = np.array([len(text.split()) for text in texts])
    candidates: list[str] = []
    for share in (0.0, 0.5, 0.75):
        stratum = np.flatnonzero(lengths >= np.quantile(lengths, share))
        order = stratum[np.argsort(-np.round(central[stratum], 9), kind="stable")]
        candidates += list(dict.fromkeys(texts[k] for k in order))[:_PER_STRATUM]
    candidates = list(dict.fromkeys(candidates))
    step = max(1, len(texts) // MOST_TRIED)
    sample = [_plain(text) for text in texts[::step]]
    # to choose with, no score to publish
    metric = BLEU(tokenize="none", smooth_method="none", force=True, references=[sample])
    gains = [metric.corpus_score([_plain(text)] * len(sample), None).score for text in candidates]
    return candidates[int(np.argmax(np.round(gains, 9)))]


def medoid(texts: Sequence[str]) -> str:
    """The text with the largest mean cosine of word counts to all texts, the first of equals.
    Frequent texts pull it, so a common report is its own medoid."""
    return texts[int(np.argmax(np.round(centrality(texts), 9)))]


def centrality(texts: Sequence[str]) -> np.ndarray:
    words = _rows(texts, _vocabulary(texts))
    return np.asarray(words @ words.sum(axis=0).T).ravel()


def nearest(texts: Sequence[str], source: Sequence[str], apart: Sequence[str] | None = None) -> list[int]:
    """Place in `source` of the report nearest in its words (cosine of tf-idf), the first of equals.
    `apart`: whose each is, where both are the same; nobody is their own neighbour, unless there is nobody
    else."""
    vocabulary = _vocabulary(source)
    found = np.zeros(len(vocabulary))
    for text in source:
        found[[vocabulary[word] for word in set(_words(text))]] += 1
    weight = np.log((1 + len(source)) / (1 + found)) + 1
    ours, theirs = (_rows(t, vocabulary, weight) for t in (texts, source))
    owner_N = np.unique(np.asarray(apart or [], dtype=object).astype(str), return_inverse=True)[1]
    places: list[int] = []
    for first in range(0, len(texts), _ROWS):
        likeness = np.asarray((ours[first : first + _ROWS] @ theirs.T).todense())
        if apart is not None:
            rows = np.arange(len(likeness))
            likeness[owner_N[first + rows][:, None] == owner_N] = -1
            likeness[rows, first + rows] = -2
        places += [int(k) for k in np.argmax(np.round(likeness, 9), axis=1)]
    return places


def random_others(groups: Sequence[str]) -> list[int]:
    """A permutation in which nobody takes what is of their own group: each takes the next in a shuffled ring,
    in which groups stand together, behind the largest. Where that one is more than half, nobody keeps their
    place."""
    ring = np.random.default_rng(RANDOM_SEED).permutation(len(groups))
    first: dict[str, int] = {}
    for place, k in enumerate(ring):
        first.setdefault(groups[k], place)
    ring = np.array(sorted(ring, key=lambda k: first[groups[k]]), dtype=int)
    most = max(Counter(groups).values(), default=1)
    others = np.empty(len(groups), dtype=int)
    others[ring] = np.roll(ring, -most if 2 * most <= len(groups) else -1)
    return [int(k) for k in others]


def _plain(text: str) -> str:
    return " ".join(_words(text))


@lru_cache(maxsize=1 << 15)
def _words(text: str) -> tuple[str, ...]:
    """Chinese has no spaces: each of its characters is a word."""
    spaced = "".join(f" {c} " if "\u4e00" <= c <= "\u9fff" else c for c in text.lower())
    return tuple(word.strip(".,;:!?()\"'。，；：（）") or word for word in spaced.split())


def _vocabulary(texts: Sequence[str]) -> dict[str, int]:
    return {word: k for k, word in enumerate(dict.fromkeys(w for text in texts for w in _words(text)))}


def _rows(
    texts: Sequence[str],
    vocabulary: dict[str, int],
    weight: np.ndarray | None = None,
) -> csr_matrix:
    """A row of unit length for each text."""
    values, columns, ends = [], [], [0]
    for text in texts:
        counted = Counter(vocabulary[w] for w in _words(text) if w in vocabulary)
        row = np.array(list(counted.values()), dtype=np.float64)
        places = np.array(list(counted), dtype=np.intp)
        row = row * weight[places] if weight is not None and len(places) else row
        values.append(row / (np.sqrt((row**2).sum()) or 1.0))
        columns.append(places)
        ends.append(ends[-1] + len(places))
    return csr_matrix(
        (np.concatenate(values), np.concatenate(columns), ends), shape=(len(texts), max(1, len(vocabulary)))
    )
