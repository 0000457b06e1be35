"""Pairs of texts -> BLEU-1..4, ROUGE-L, METEOR, CIDEr, chrF and what drafts repeat, each with a signature.

Every pair is counted once. What is left are a few numbers per pair, so any resample is a sum of them and no
text is seen again. Texts come in Python lists and never as lines of a file: an empty one, or one that holds
any kind of newline, cannot shift a pair. Values are from 0 to 1, CIDEr from 0 to 10. Knows words and their
order; of findings it knows nothing, and no score of these sees a left that became a right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np
import sacrebleu
from sacrebleu.metrics.chrf import CHRF

from evaluation.alignment import (
    BETA,
    METEOR_ALPHA,
    METEOR_BETA,
    METEOR_GAMMA,
    meteor,
    rouge_l,
    rouge_l_f1,
    rouge_n,
    rouge_words,
)
from evaluation.ngrams import Grams, count_grams, number_characters, number_words, shared
from evaluation.protocols import Protocol, Smoothing, Split, find_protocol
from evaluation.score import Unit
from evaluation.statistics import Measure, Sums, mean, share, share_of
from mla_med.errors import ReportError

# B resamples, R pairs, F references of all pairs, N orders, G n-grams of a text over all texts
# T = 10 sums of BLEU: lengths of draft and reference, 4 matches, 4 totals; C = 18 sums of chrF, 3 per order
Words = list[str]
Reference = str | Sequence[str]
"""Several texts where several people reported one study."""
ORDERS = 4
CIDER_SIGMA = 6.0
CHRF_ORDERS = 6
CHRF_BETA = 2
_CHRF_AT_ONCE = 200
"""Pairs; the numbers of longer rows of character n-grams would not fit into 64 bits."""


@dataclass(frozen=True, slots=True)
class Score:
    """A value with how it was made; `per_pair` ranks pairs and is no score to publish."""

    name: str
    value: float
    signature: str
    per_pair: np.ndarray
    n: int
    sums: Sums = field(repr=False)
    unit: Unit = Unit.RATE
    higher_is_better: bool = True

    @property
    def measure(self) -> Measure:
        """The score as a statistic of how often each pair is counted."""
        return Measure.of(self.name, self.sums, self.signature, self.unit, self.higher_is_better)

    def statistic(self, counts_BR: np.ndarray) -> np.ndarray:
        """Of resamples, given as how often they hold each pair."""
        return self.sums.statistic(counts_BR)

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4f} (n={self.n}, {self.signature})"


def text_scores(
    references: Sequence[Reference],
    drafts: Sequence[str],
    protocol: str = "coco",
    only: Collection[str] = (),
) -> dict[str, Score]:
    """By name, BLEU-4 first. `only`: names, where not every score is wanted."""
    return score_systems(references, {"drafts": drafts}, protocol, only)["drafts"]


def score_systems(
    references: Sequence[Reference],
    systems: Mapping[str, Sequence[str]],
    protocol: str = "coco",
    only: Collection[str] = (),
) -> dict[str, dict[str, Score]]:
    """The scores of each system's drafts. Texts that several systems have, and the references, count once."""
    for name, drafts in systems.items():
        if len(references) != len(drafts) or not len(drafts):
            raise ReportError(
                f"{len(references)} references and {len(drafts)} {name}; there must be one draft for each "
                "reference, and at least one."
            )
    rules = find_protocol(protocol)
    wanted = frozenset(only) or _EVERY
    words = _count_words(references, systems, rules, "CIDEr" in wanted)
    characters = _count_characters(references, systems) if "chrF" in wanted else {}
    made = {}
    for name, drafts in systems.items():
        texts = words[name]
        scores = _bleu_scores(texts, rules)
        if "ROUGE-L" in wanted:
            scores += _rouge_scores(references, drafts, texts, rules)
        if "METEOR" in wanted:
            scores.append(_mean("METEOR", texts.meteor_R, f"{_METEOR}|agg:mean|{texts.made}"))
        if "CIDEr" in wanted:
            scores.append(_mean("CIDEr", texts.cider_R, f"{_CIDER}|agg:mean|{texts.made}", Unit.TEN))
        if "chrF" in wanted:
            scores.append(_chrf_score(characters[name]))
        if wanted & _HABITS:
            scores += _habits(texts, drafts)
        made[name] = {score.name: score for score in scores if not only or score.name in wanted}
    return made


_HABITS = frozenset(("length ratio", "repetition", "identical outputs"))
_EVERY = _HABITS | {"BLEU-4", "ROUGE-L", "METEOR", "CIDEr", "chrF"}
_METEOR = f"exact+porter|alpha:{METEOR_ALPHA}|beta:{METEOR_BETA}|gamma:{METEOR_GAMMA}|synonyms:no"
_CIDER = f"cider-d|orders:{ORDERS}|sigma:{CIDER_SIGMA}|idf:references"


@dataclass(frozen=True)
class _Texts:
    """What the pairs of one system were counted to."""

    made: str
    lines: _Lines
    bleu_RT: np.ndarray
    cider_R: np.ndarray
    """Zeros where it is not wanted."""
    repeated_R: np.ndarray

    @property
    def num(self) -> int:
        return len(self.bleu_RT)

    @property
    def fourgrams_R(self) -> np.ndarray:
        return self.bleu_RT[:, 1 + 2 * ORDERS]

    @property
    def rouge_R(self) -> np.ndarray:
        # for pycocoevalcap's ROUGE-L an empty text is one empty word
        return np.array([rouge_l(told, draft) for told, draft in self.lines.pairs(" ")])

    @property
    def meteor_R(self) -> np.ndarray:
        return np.array([max(meteor(one, draft) for one in told) for told, draft in self.lines.pairs(None)])


@dataclass(frozen=True, slots=True)
class _Lines:
    """Split texts: each reference's, and the draft's."""

    told: list[list[str]]
    drafted: list[str]

    def pairs(self, blank: str | None) -> Iterator[tuple[list[Words], Words]]:
        for told, draft in zip(self.told, self.drafted, strict=True):
            yield [line.split(blank) for line in told], draft.split(blank)


def _count_words(
    references: Sequence[Reference], systems: Mapping[str, Sequence[str]], rules: Protocol, with_cider: bool
) -> dict[str, _Texts]:
    groups = [_several(told) for told in references]
    num_F = np.array([len(group) for group in groups])
    owner_F = np.repeat(np.arange(len(groups)), num_F)
    told_F = _split_all([text for group in groups for text in group], rules.split_reference)
    drafted = {name: _split_all(drafts, rules.split_draft) for name, drafts in systems.items()}
    place: dict[str, int] = {}
    for line in chain(told_F, *drafted.values()):
        place.setdefault(line, len(place))
    rows = number_words([line.split() for line in place])
    reference_F = np.array([place[line] for line in told_F])
    places = {name: np.array([place[line] for line in lines]) for name, lines in drafted.items()}
    bleu, cider, distinct = {}, {}, {}
    lengths_F = rows.lengths_T[reference_F]
    for name, draft_R in places.items():
        lengths_R = rows.lengths_T[draft_R]
        bleu[name] = np.zeros((len(groups), 2 + 2 * ORDERS))
        bleu[name][:, 0], bleu[name][:, 1] = lengths_R, _closest(lengths_R, lengths_F, owner_F)
        cider[name] = np.zeros((len(owner_F), ORDERS))
    for order, found in enumerate(count_grams(rows, ORDERS)):
        grams, kinds = found.renumber()
        theirs = grams.take(reference_F)
        idf = _idf(theirs, kinds, owner_F, len(groups)) if with_cider else None
        for name, draft_R in places.items():
            ours = grams.take(draft_R)
            hits = shared(ours, theirs, owner_F)
            bleu[name][:, 2 + order] = _matches(ours, theirs, hits)
            bleu[name][:, 2 + ORDERS + order] = ours.totals_T
            if idf is not None:
                cider[name][:, order] = _cosines(ours, theirs, hits, owner_F, idf)
            distinct[name] = ours.distinct_T
    told = [told_F[end - num : end] for end, num in zip(np.cumsum(num_F), num_F, strict=True)]
    made = (
        f"nrefs:{num_F.max() if num_F.max() == num_F.min() else 'var'}|tok:{rules.tok}|"
        f"{rules.signature}|n:{len(groups)}"
    )
    counted = {}
    for name, lines in drafted.items():
        # pycocoevalcap takes the bigrams of a text for its length
        lengths_R = bleu[name][:, 0]
        apart_F = np.maximum(lengths_R - 1, 0)[owner_F] - np.maximum(lengths_F - 1, 0)
        cider_F = cider[name].mean(axis=1) * np.exp(-(apart_F**2) / (2 * CIDER_SIGMA**2))
        counted[name] = _Texts(
            made=made,
            lines=_Lines(told, lines),
            bleu_RT=bleu[name],
            cider_R=10 * np.bincount(owner_F, cider_F, minlength=len(groups)) / num_F,
            repeated_R=bleu[name][:, 1 + 2 * ORDERS] - distinct[name],
        )
    return counted


def _several(told: Reference) -> tuple[str, ...]:
    return (told,) if isinstance(told, str) else tuple(told)


def _split_all(texts: Sequence[str], split: Split) -> list[str]:
    lines = {text: split(text) for text in dict.fromkeys(texts)}  # a constant draft is split once
    return [lines[text] for text in texts]


def _closest(lengths_R: np.ndarray, lengths_F: np.ndarray, owner_F: np.ndarray) -> np.ndarray:
    """The length of the reference that is nearest in length, the shorter of two."""
    order = np.lexsort((lengths_F, np.abs(lengths_F - lengths_R[owner_F]), owner_F))
    first = np.flatnonzero(np.diff(owner_F[order], prepend=-1))
    return lengths_F[order[first]]


def _matches(ours: Grams, theirs: Grams, hits: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """An n-gram of a draft matches as often as the reference that holds it most often."""
    held_G = np.zeros(len(ours.gram_G))
    np.maximum.at(held_G, hits[0], theirs.count_G[hits[1]])
    return np.bincount(ours.text_G, np.minimum(held_G, ours.count_G), minlength=ours.num_texts)


def _idf(theirs: Grams, kinds: int, owner_F: np.ndarray, num_pairs: int) -> np.ndarray:
    """Of each n-gram, from how many pairs have a reference that holds it."""
    holding = np.bincount(_once_a_pair(theirs, kinds, owner_F), minlength=kinds)
    return np.log(num_pairs) - np.log(np.maximum(holding, 1))


def _cosines(
    ours: Grams, theirs: Grams, hits: tuple[np.ndarray, np.ndarray], owner_F: np.ndarray, idf: np.ndarray
) -> np.ndarray:
    """Of the tf-idf vectors of one order, the draft's clipped at the reference's: CIDEr-D (Vedantam et al.,
    CVPR 2015, section 6.2) as pycocoevalcap computes it, with the counts themselves for tf."""
    our_weight_G, their_weight_G = ours.count_G * idf[ours.gram_G], theirs.count_G * idf[theirs.gram_G]
    a, b = hits
    dot_F = np.bincount(
        theirs.text_G[b],
        np.minimum(our_weight_G[a], their_weight_G[b]) * their_weight_G[b],
        minlength=theirs.num_texts,
    )
    norm_R = np.sqrt(np.bincount(ours.text_G, our_weight_G**2, minlength=ours.num_texts))
    norm_F = np.sqrt(np.bincount(theirs.text_G, their_weight_G**2, minlength=theirs.num_texts))
    norms_F = norm_R[owner_F] * norm_F
    return np.divide(dot_F, norms_F, out=np.zeros(theirs.num_texts), where=norms_F > 0)


def _once_a_pair(theirs: Grams, kinds: int, owner_F: np.ndarray) -> np.ndarray:
    """The n-grams of the references, those that several references of one pair hold only once."""
    if len(owner_F) == owner_F[-1] + 1:
        return theirs.gram_G
    keys = np.sort(owner_F[theirs.text_G] * kinds + theirs.gram_G)
    return keys[np.flatnonzero(np.diff(keys, prepend=-1))] % kinds


def _bleu_scores(texts: _Texts, rules: Protocol) -> list[Score]:
    agg = "mean" if rules.is_mean else "corpus"
    smooth, version = rules.smoothing, sacrebleu.__version__
    signature = f"case:mixed|eff:no|smooth:{smooth}|agg:{agg}|{texts.made}|version:{version}"
    scores = []
    for order in range(ORDERS, 0, -1):
        of_order = partial(bleu, order=order, smoothing=rules.smoothing)
        per_pair = of_order(texts.bleu_RT)
        name = f"BLEU-{order}"
        scores.append(
            _mean(name, per_pair, signature)
            if rules.is_mean
            else _score(name, Sums(texts.bleu_RT, of_order), signature, per_pair)
        )
    return scores


def bleu(sums_BT: np.ndarray, order: int, smoothing: Smoothing) -> np.ndarray:
    """Of many corpora at once, or of many pairs (Papineni et al., ACL 2002, section 2.3)."""
    draft_length, reference_length = sums_BT[:, 0], sums_BT[:, 1]
    matches_BN, totals_BN = sums_BT[:, 2 : 2 + order], sums_BT[:, 2 + ORDERS : 2 + ORDERS + order]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_precision = np.log(_precisions(matches_BN, totals_BN, smoothing)).mean(axis=1)
        brevity = np.minimum(1, np.exp(1 - reference_length / draft_length))
    if smoothing is Smoothing.TINY:
        # pycocoevalcap/bleu/bleu_scorer.py, with the same two small numbers
        length_ratio = (draft_length + 1e-15) / (reference_length + 1e-9)
        with np.errstate(over="ignore"):
            brevity = np.where(length_ratio < 1, np.exp(1 - 1 / length_ratio), 1)
        return brevity * np.exp(log_precision)
    return np.where((draft_length > 0) & (matches_BN[:, 0] > 0), brevity * np.exp(log_precision), 0.0)


def _precisions(matches_BN: np.ndarray, totals_BN: np.ndarray, smoothing: Smoothing) -> np.ndarray:
    match smoothing:
        case Smoothing.TINY:
            return (matches_BN + 1e-15) / (totals_BN + 1e-9)
        case Smoothing.NONE:
            return matches_BN / totals_BN
        case Smoothing.FLOOR:
            return np.where(matches_BN > 0, matches_BN, 0.1) / np.maximum(totals_BN, 1)
        case Smoothing.EXP:
            unmatched_BN = (matches_BN == 0) & (totals_BN > 0)
            halved_BN = np.where(unmatched_BN, 0.5 ** np.cumsum(unmatched_BN, axis=1), matches_BN)
            return np.where(totals_BN > 0, halved_BN / totals_BN, 0)


def _rouge_scores(
    references: Sequence[Reference], drafts: Sequence[str], texts: _Texts, rules: Protocol
) -> list[Score]:
    if not rules.has_rouge_score:
        return [_mean("ROUGE-L", texts.rouge_R, f"lcs:f|beta:{BETA}|agg:mean|{texts.made}")]
    pairs = [
        ([rouge_words(text) for text in _several(told)], rouge_words(draft))
        for told, draft in zip(references, drafts, strict=True)
    ]
    made = f"rouge_score|stemmer:porter|f1|agg:mean|protocol:{rules.name}|n:{texts.num}"
    return [
        _mean("ROUGE-L", np.array([rouge_l_f1(told, draft) for told, draft in pairs]), f"lcs|{made}"),
        _mean("ROUGE-1", np.array([rouge_n(told, draft, 1) for told, draft in pairs]), f"n-grams:1|{made}"),
        _mean("ROUGE-2", np.array([rouge_n(told, draft, 2) for told, draft in pairs]), f"n-grams:2|{made}"),
    ]


def _chrf_score(sums_RC: np.ndarray) -> Score:
    """Of the texts as they are, whatever the protocol: chrF needs no words (Popović, WMT 2015)."""
    metric = CHRF(char_order=CHRF_ORDERS, beta=CHRF_BETA)
    metric.num_refs = 1
    signature = f"{metric.get_signature()}|agg:corpus|pre:none|refs:full|n:{len(sums_RC)}"
    return _score("chrF", Sums(sums_RC, chrf), signature, chrf(sums_RC))


def chrf(sums_BC: np.ndarray) -> np.ndarray:
    """sacrebleu's: means over the orders that both sides have, then one F."""
    drafted_BN, told_BN, matched_BN = sums_BC[:, 0::3], sums_BC[:, 1::3], sums_BC[:, 2::3]
    both_BN = (drafted_BN > 0) & (told_BN > 0)
    orders_B = np.maximum(both_BN.sum(axis=1), 1)
    zero_BN = np.zeros_like(matched_BN)
    precision_B = np.divide(matched_BN, drafted_BN, out=zero_BN.copy(), where=both_BN).sum(axis=1) / orders_B
    recall_B = np.divide(matched_BN, told_BN, out=zero_BN, where=both_BN).sum(axis=1) / orders_B
    whole_B = CHRF_BETA**2 * precision_B + recall_B
    return np.divide(
        (1 + CHRF_BETA**2) * precision_B * recall_B, whole_B, out=np.zeros_like(whole_B), where=whole_B > 0
    )


def _count_characters(
    references: Sequence[Reference], systems: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """3 sums per order and pair; of several references, those of the best chrF."""
    counted: dict[str, list[np.ndarray]] = {name: [] for name in systems}
    for begin in range(0, len(references), _CHRF_AT_ONCE):
        end = begin + _CHRF_AT_ONCE
        some = [_several(told) for told in references[begin:end]]
        owner_F = np.repeat(np.arange(len(some)), [len(group) for group in some])
        place: dict[str, int] = {}

        def places(texts: Iterable[str], place: dict[str, int] = place) -> np.ndarray:
            return np.array([place.setdefault("".join(text.split()), len(place)) for text in texts])

        reference_F = places(chain.from_iterable(some))
        drafted = {name: places(drafts[begin:end]) for name, drafts in systems.items()}
        sums = {name: np.zeros((len(owner_F), 3 * CHRF_ORDERS)) for name in systems}
        for order, grams in enumerate(count_grams(number_characters(list(place)), CHRF_ORDERS)):
            theirs = grams.take(reference_F)
            told_F = theirs.totals_T
            for name, draft_R in drafted.items():
                ours = grams.take(draft_R)
                a, b = shared(ours, theirs, owner_F)
                matched = np.minimum(ours.count_G[a], theirs.count_G[b])
                # as sacrebleu: an order that the reference does not have counts for neither side
                sums[name][:, 3 * order] = np.where(told_F > 0, ours.totals_T[owner_F], 0)
                sums[name][:, 3 * order + 1] = told_F
                sums[name][:, 3 * order + 2] = np.bincount(theirs.text_G[b], matched, minlength=len(owner_F))
        for name, sums_FC in sums.items():
            order_F = np.lexsort((-chrf(sums_FC), owner_F))
            counted[name].append(sums_FC[order_F[np.flatnonzero(np.diff(owner_F[order_F], prepend=-1))]])
    return {name: np.vstack(parts) for name, parts in counted.items()}


def _habits(texts: _Texts, drafts: Sequence[str]) -> list[Score]:
    """What a model does that repeats itself, or writes the same whatever it sees."""
    plain = [" ".join(draft.split()) for draft in drafts]
    times = Counter(plain)
    identical_R = np.array([float(times[text] > 1) for text in plain])
    made, sums_RT = texts.made, texts.bleu_RT
    lengths = _ratio("length ratio", sums_RT[:, 0], sums_RT[:, 1], f"words of drafts / references|{made}")
    repeated = f"4-grams that stood in the same draft before|{made}"
    return [
        lengths,
        _ratio("repetition", texts.repeated_R, texts.fourgrams_R, repeated, higher_is_better=False),
        _mean(
            "identical outputs",
            identical_R,
            f"drafts that another report has word for word|n:{texts.num}",
            higher_is_better=False,
        ),
    ]


def _ratio(
    name: str, part_R: np.ndarray, whole_R: np.ndarray, signature: str, higher_is_better: bool = True
) -> Score:
    sums, made = share(part_R, whole_R), f"agg:corpus|{signature}"
    return _score(name, sums, made, share_of(sums.each_RT), higher_is_better=higher_is_better)


def _mean(
    name: str,
    per_pair: np.ndarray,
    signature: str,
    unit: Unit = Unit.RATE,
    higher_is_better: bool = True,
) -> Score:
    return _score(name, mean(per_pair), signature, per_pair, unit, higher_is_better)


def _score(
    name: str,
    sums: Sums,
    signature: str,
    per_pair: np.ndarray,
    unit: Unit = Unit.RATE,
    higher_is_better: bool = True,
) -> Score:
    num = len(per_pair)
    value = float(sums.statistic(np.ones((1, num)))[0])
    return Score(name, value, signature, per_pair, num, sums, unit, higher_is_better)
