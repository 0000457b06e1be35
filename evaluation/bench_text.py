"""The text scores beside the packages that people use today: the same values, in which time.

    python -m evaluation.bench_text --pairs 2000
    python -m evaluation.bench_text --expected tests/expected_text.json

The second writes what pycocoevalcap (with its Java tokenizer) and nltk make of invented texts, for tests to
hold us against where neither is installed. A package that cannot be imported is named and left out. Every
text is made up here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from evaluation.findings import reader_of
from evaluation.ngrams import count_grams, number_words
from evaluation.pairs import Coverage, Pair, Pairs
from evaluation.protocols import find_protocol
from evaluation.run import score_pairs, write_results
from evaluation.statistics import TRIALS, paired_randomisation
from evaluation.text import text_scores

TextPairs = tuple[list[list[str]], list[str]]
"""References, several to a pair, and drafts."""
Run = tuple[str, int, Callable[[], object]]
"""What is done, with how many pairs, and the doing."""

SENTENCES = (
    "The trachea and both main bronchi are open.",
    "No pleural effusion or pneumothorax is seen.",
    "There is a solid nodule of 8 mm in the right upper lobe.",
    "A 12 mm ground-glass opacity is seen in the left lower lobe, unchanged.",
    "The heart is not enlarged.",
    "Mild calcification of the coronary arteries.",
    "No enlarged lymph nodes in the mediastinum or at the hila.",
    "Linear atelectasis in both lower lobes.",
    "A cyst of 2.5 x 3 cm is seen in the left kidney.",
    "The liver, spleen and pancreas are unremarkable.",
    "Small right pleural effusion, up to 1.5 cm wide.",
    "Degenerative changes of the thoracic spine; no fracture.",
    "There is no evidence of pulmonary embolism.",
    "Emphysema with an upper-lobe predominance.",
    "The left ventricle is dilated (5.8 cm).",
    "Bronchial walls are thickened in both lungs.",
    "Consolidation in the right middle lobe, most likely pneumonia.",
    "Comparison with 12/03/2019: the nodule has grown from 6 to 9 mm.",
    "The patient's port catheter ends in the superior vena cava.",
    "Hiatal hernia of moderate size.",
    "Doesn't reach the pleura.",
    "No. 5 rib on the right: old fracture.",
    "Thickening of interlobular septa, e.g. in the lingula.",
    "Adrenal glands are of normal size, approx. 10 mm wide each.",
)
TRICKY = (
    "No. 5 and no. Five; fig. 3, Fig. a; figs. 2-4.",
    "Seen in CT. Dr. Smith vs. Dr. Jones, e.g. i.e., etc. The end.",
    "1.Normal heart.2.No effusion.clear.No change",
    "it's the patient's lesion, patients' rooms, can't, cannot, doesn't, I've, they're, 'quoted' words",
    "12.5x3mm 5 mm, 5mm. 1.5cm 10-12 mm 5.5-10.5mm -0.5 +3 50%-60% 1/2 3 1/2 cm",
    "L4/5 L4-L5 T12. C5/C6-C7 and/or n/a 12/03/2019 2019-03-12 12:30 10:30am",
    "(IM274) [SE5,IM198] {x} <5 mm >10 mm a<b <b>bold</b> <br /> x",
    "T2-weighted, non-small-cell, pre- and post-contrast, 45-year-old x--y - z",
    "?? !! ?! ... .. . -- --- ----- _ __ a_b XXXX * ** *** a*b",
    "A. Foo B. The lobe, x. y. and z.; a.b. U.S. I.V. contrast p.o. b.i.d. A.B.C.",
    "$5 US$5 5$ £5 €5 5¢ #5 #a @x a@b.org www.foo.com/bar, http://foo.org/a?b=c. foo.com",
    "½ 1½ 5½mm ² cm² 10⁻³ µm 5µm ° 37°C ± × 5×6 → • · é naïve Ménière's β-blocker",
    "“smart” ‘single’ it’s don’t – — … « »",
    "AT&T R&D A&B a&b a &amp; b &lt; c &gt; d",
    "O'Brien d'Arc l'eau 5'4\" 5' 5'' 1990s '90s '98 90's 'em 'tis rock'n'roll",
    "a/b/c/d a-b/c a/b-c a-b-c-d/e 5-6/7 5/6-7 1/2-2/3",
    "Lt. lobe, rt. lung, Mt. X, ca. 5, ca. a, approx. 5 pts. vol. 5 p. 5 pp. 5-6",
    "mass. Mass. ill. Ill. la. La. del. wash. sun. Jan. may. Mon. in. Fri. pt. Pt.",
    "C++ C# :) ;) :( :-) a:(b x:y 5:6 :foo foo:: ;; ,, a,b a,5 5,a 1,000 1,000.5",
    'foo." "foo." foo.) foo?" foo!) foo.. foo... foo.? foo., foo.; foo.:',
    "gonna gotta wanna lemme gimme Cannot CANNOT cannot-do",
    "a tab\there and no-break\xa0space, thin\u2009space",
    "RADS-4A BI-RADS 4 Lung-RADS™ 2 SUVmax 3.5 HU -850 to -950 kVp 120 mAs 80",
    "5.The aorta 6.5.The T12.foo ab.5 ab.5c a-b.c foo.Bar.Baz",
)


def invented_sets() -> dict[str, TextPairs]:
    """The same on every machine and in every version of Python."""
    draw = _numbers(23)
    told = [_report(draw) for _ in range(24)]
    others = [_report(draw) for _ in range(24)]
    sets: dict[str, tuple[Sequence[str | list[str]], list[str]]] = {
        "same": (told, told),
        "shuffled": (told, [*told[5:], *told[:5]]),
        "constant": (told, [others[0]] * 24),
        "no negation": (told, [re.sub(r"\b(?:[Nn]o|not) ", "", text) for text in told]),
        "sides swapped": (told, [_swap_sides(text) for text in told]),
        "ten times the size": (told, [re.sub(r"(\d+)(?= mm)", r"\g<1>0", text) for text in told]),
        "first half": (told, [text[: len(text) // 2] for text in told]),
        "some empty": (told, [*(text if k % 3 else "" for k, text in enumerate(others[1:])), told[3]]),
        "repetitive": (told, [" ".join([text.split(". ")[0] + "."] * 6) for text in told]),
        "two readers": ([[a, b] for a, b in zip(told, others, strict=True)], [*others[3:], *told[:3]]),
        "tricky words": (TRICKY, [*TRICKY[1:], TRICKY[0]]),
        "no four words": (["There is a small nodule."], ["A small effusion there."]),
    }
    return {
        name: ([[text] if isinstance(text, str) else text for text in references], list(drafts))
        for name, (references, drafts) in sets.items()
    }


def invented_pairs(num: int, num_words: int) -> tuple[list[str], list[str]]:
    draw = _numbers(7)

    def text() -> str:
        words: list[str] = []
        while len(words) < num_words:
            # with a number, so that no two sentences in a row are always the same
            words += [*SENTENCES[next(draw) % len(SENTENCES)].split(), f"IM{next(draw) % 900}."]
        return " ".join(words)

    return [text() for _ in range(num)], [text() for _ in range(num)]


def expected() -> dict[str, Any]:
    """What the peers make of the invented texts."""
    sets = {}
    for name, (references, drafts) in invented_sets().items():
        told = _java(dict(enumerate(references)))
        drafted = _java({k: [text] for k, text in enumerate(drafts)})
        sets[name] = _coco(told, drafted)
    # a line between, because the Java tokenizer looks from the end of a text into the next one
    lines = _java({k: [text, "next"] for k, text in enumerate(TRICKY)})
    return {
        "peers": "pycocoevalcap 1.2 with stanford-corenlp-3.4.1; METEOR: nltk without WordNet",
        "sets": sets,
        "tokens": [[text, lines[k][0]] for k, text in enumerate(TRICKY)],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.bench_text", description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000, help="scored by us (%(default)s)")
    parser.add_argument("--peer-pairs", type=int, default=200, help="scored by the peers (%(default)s)")
    parser.add_argument("--cases", type=int, default=200, help="on a whole page (%(default)s)")
    parser.add_argument("--words", type=int, default=277, help="in a report (%(default)s)")
    parser.add_argument("--expected", type=Path, help="write what the peers make of invented texts, and stop")
    given = parser.parse_args(arguments)
    if given.expected:
        text = json.dumps(expected(), ensure_ascii=True, indent=1)
        given.expected.write_text(text + "\n", encoding="utf-8")
        return 0
    references, drafts = invented_pairs(max(given.pairs, given.cases), given.words)
    print(
        f"{given.pairs} pairs of {given.words} words; peers on the first {given.peer_pairs}. "
        "CPU seconds are of all processes; the last column is CPU seconds for 1,000 pairs.\n"
    )
    print("| what | pairs | wall s | CPU s | CPU s / 1000 | value |")
    print("|---|---:|---:|---:|---:|---|")
    texts = _runs(references[: given.pairs], drafts[: given.pairs], given.peer_pairs)
    page: Run = ("ours: the whole page", given.cases, partial(_page, references, drafts, given.cases))
    for name, num, run in chain(texts, [page]):
        wall, cpu = time.perf_counter(), _cpu_s()
        value = run()
        wall, cpu = time.perf_counter() - wall, _cpu_s() - cpu
        print(f"| {name} | {num} | {wall:.2f} | {cpu:.2f} | {1000 * cpu / num:.2f} | {value} |", flush=True)
    return 0


def _cpu_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _page(references: Sequence[str], drafts: Sequence[str], cases: int) -> str:
    """Pages of the same sentences in another order: harder to tell apart than two real reports."""
    pairs = tuple(Pair(str(k), references[k], drafts[k], {"sex": "FM"[k % 2]}) for k in range(cases))
    scores = score_pairs(Pairs(pairs, Coverage(cases)), reader_of())
    with tempfile.TemporaryDirectory() as folder:
        write_results(scores, Path(folder))
        size = (Path(folder) / "page.html").stat().st_size
    return f"{len(scores.rows)} scores, page of {size / 1e6:.1f} MB"


def _runs(references: list[str], drafts: list[str], few: int) -> Iterator[Run]:
    split = find_protocol("coco").split_draft
    lines: list[list[str]] = []

    def words() -> object:
        lines[:] = [[split(text) for text in texts] for texts in (references, drafts)]
        return ""

    def counts() -> object:
        rows = number_words([line.split() for texts in lines for line in texts])
        return sum(len(grams.gram_G) for grams in count_grams(rows, 4))

    def ours(texts: int, *names: str) -> Callable[[], object]:
        def run() -> object:
            scores = text_scores(references[:texts], drafts[:texts], only=names)
            found = names or ("BLEU-4", "ROUGE-L", "METEOR", "CIDEr", "chrF")
            return " ".join(f"{name} {scores[name].value:.6f}" for name in found)

        return run

    def randomise() -> object:
        rows = [text_scores(references, some, only=["BLEU-4"])["BLEU-4"].sums for some in (drafts, shifted)]
        began = time.process_time()
        p, smallest = paired_randomisation(rows[0].each_RT, rows[1].each_RT, rows[0].value_of)
        return f"p {p:.4f}, smallest {smallest:.1e}; the trials alone {time.process_time() - began:.2f} s CPU"

    num = len(references)
    shifted = [*drafts[1:], drafts[0]]
    yield "ours: words of both sides", num, words
    yield "ours: 1- to 4-grams of both sides", num, counts
    yield "ours: BLEU, ROUGE-L and CIDEr, words included", num, ours(num, "BLEU-4", "ROUGE-L", "CIDEr")
    yield "ours: the same", min(few, num), ours(few, "BLEU-4", "ROUGE-L", "CIDEr")
    yield "ours: every score, words included", num, ours(num)
    yield f"ours: {TRIALS} randomisation trials of BLEU-4, both counted anew", num, randomise
    told, drafted = [lines[0][:few], lines[1][:few]]
    gts, res = ({k: [text] for k, text in enumerate(side)} for side in (told, drafted))
    tokens = [[text.split()] for text in told], [text.split() for text in drafted]
    for name, module, run in (
        ("pycocoevalcap PTBTokenizer (Java)", "pycocoevalcap.tokenizer.ptbtokenizer", None),
        (
            "pycocoevalcap Bleu(4)",
            "pycocoevalcap.bleu.bleu",
            lambda m: m.Bleu(4).compute_score(gts, res)[0][3],
        ),
        ("pycocoevalcap Rouge", "pycocoevalcap.rouge.rouge", lambda m: m.Rouge().compute_score(gts, res)[0]),
        ("pycocoevalcap Cider", "pycocoevalcap.cider.cider", lambda m: m.Cider().compute_score(gts, res)[0]),
        ("nltk corpus_bleu", "nltk.translate.bleu_score", lambda m: m.corpus_bleu(*tokens)),
        ("nltk METEOR, no WordNet", "nltk.translate.meteor_score", lambda m: np.mean(_nltk(gts, res, m))),
        (
            "torchmetrics BLEUScore",
            "torchmetrics.text",
            lambda m: float(m.BLEUScore()(drafted, [[text] for text in told])),
        ),
        (
            "sacrebleu BLEU, none",
            "sacrebleu.metrics",
            lambda m: m.BLEU(tokenize="none", force=True).corpus_score(drafted, [told]).score / 100,
        ),
        (
            "sacrebleu chrF",
            "sacrebleu.metrics",
            lambda m: m.CHRF().corpus_score(drafts[:few], [references[:few]]).score / 100,
        ),
    ):
        peer = _import(module)
        if peer is None:
            print(f"| {name} | not installed | | | | |")
        elif run is None:
            yield name, min(few, num), lambda: len(_java(dict(enumerate([[t] for t in references[:few]]))))
        else:
            yield name, min(few, num), partial(_value, run, peer)


def _value(run: Callable[[Any], Any], peer: ModuleType) -> str:
    return f"{_quietly(lambda: run(peer)):.6f}"


def _import(module: str) -> ModuleType | None:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _quietly(run: Callable[[], Any]) -> Any:
    """pycocoevalcap prints its lengths."""
    with contextlib.redirect_stdout(io.StringIO()):
        return run()


def _java(texts: dict[int, list[str]]) -> dict[int, list[str]]:
    peer = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer")
    captions = {key: [{"caption": text} for text in several] for key, several in texts.items()}
    return peer.PTBTokenizer().tokenize(captions)


def _coco(told: dict[int, list[str]], drafted: dict[int, list[str]]) -> dict[str, float]:
    def score(module: str, name: str, *arguments: int) -> Any:
        peer = importlib.import_module(f"pycocoevalcap.{module}.{module}")
        return _quietly(lambda: getattr(peer, name)(*arguments).compute_score(told, drafted)[0])

    bleu = score("bleu", "Bleu", 4)
    meteor = _nltk(told, drafted, importlib.import_module("nltk.translate.meteor_score"))
    return {
        **{f"BLEU-{order}": float(value) for order, value in enumerate(bleu, start=1)},
        "ROUGE-L": float(score("rouge", "Rouge")),
        "CIDEr": float(score("cider", "Cider")),
        "METEOR": float(np.mean(meteor)),
    }


class _Stem:
    """The stemmer that ours uses, in nltk's form."""

    def stem(self, word: str) -> str:
        from evaluation.alignment import stem

        return stem(word)


class _NoWordNet:
    def synsets(self, word: str) -> list[object]:
        return []


def _nltk(told: dict[int, list[str]], drafted: dict[int, list[str]], peer: ModuleType) -> list[float]:
    return [
        max(
            peer.single_meteor_score(text.split(), drafted[key][0].split(), str, _Stem(), _NoWordNet())
            for text in several
        )
        for key, several in told.items()
    ]


def _report(draw: Iterator[int]) -> str:
    return " ".join(SENTENCES[next(draw) % len(SENTENCES)] for _ in range(4 + next(draw) % 6))


def _swap_sides(text: str) -> str:
    return re.sub(r"\b(?:left|right)\b", lambda m: {"left": "right", "right": "left"}[m[0]], text)


def _numbers(seed: int) -> Iterator[int]:
    """Lehmer's generator with the multiplier of Park and Miller; no promise of Python's is needed."""
    while True:
        seed = seed * 16807 % 2147483647
        yield seed >> 8


if __name__ == "__main__":
    sys.exit(main())
