"""The same findings in two styles -> BLEU-4 between the texts: the ceiling of text scores.

    python -m evaluation.ceilings --n 1000

A draft that is right in every finding and written in another style than its reference cannot score more
than this. Also printed: a colleague's wording within one style. Findings are random, the seed is fixed.
"""

from __future__ import annotations

import argparse
import random
import sys
from importlib.metadata import version
from itertools import product

from sacrebleu.metrics import BLEU

from evaluation.linter import SEED, random_findings
from mla_med.report.render import body_text, render_report
from mla_med.report.schema import SCHEMAS
from mla_med.report.style import load_style, packaged_languages, packaged_styles


def ceilings(examination: str, language: str, n: int) -> dict[tuple[str, str], float]:
    """(reference style, draft style) -> corpus BLEU-4, 0 to 100. On the diagonal both texts are of one
    style, each with its own choice among colleagues' phrases."""
    rng = random.Random(SEED)
    sets = [random_findings(examination, rng) for _ in range(n)]
    styles = packaged_styles(language)

    def texts(name: str, writer: int) -> list[str]:
        style = load_style(name, language)
        return [
            body_text(render_report(found, style, examination, rng=random.Random(f"{writer}-{k}")), style)
            for k, found in enumerate(sets)
        ]

    written = {(name, writer): texts(name, writer) for name in styles for writer in (1, 2)}
    return {
        (reference, draft): _bleu4(written[reference, 1], written[draft, 2], language)
        for reference, draft in product(styles, repeat=2)
    }


def _bleu4(references: list[str], drafts: list[str], language: str) -> float:
    return _metric(language).corpus_score(drafts, [references]).score


def _metric(language: str) -> BLEU:
    """Chinese by characters: its words have no spaces between them."""
    return BLEU(tokenize="zh" if language == "zh" else "13a", force=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.ceilings", description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="reports of each examination (1000)")
    options = parser.parse_args(arguments)
    for examination, language in product(SCHEMAS, packaged_languages()):
        table = ceilings(examination, language, options.n)
        styles = packaged_styles(language)
        made = f"tok:{'zh' if language == 'zh' else '13a'}|smooth:exp|version:{version('sacrebleu')}"
        print(f"\n{examination}, {language}: BLEU-4 of the same findings, reference down, draft across")
        print(f"{options.n} reports, {made}\n")
        print("| | " + " | ".join(styles) + " |\n| --- |" + " ---: |" * len(styles))
        for reference in styles:
            row = " | ".join(f"{table[reference, draft]:.1f}" for draft in styles)
            print(f"| {reference} | {row} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
